"""Log-likelihoods under several settings at once against one setting after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lm_eval_cna.errors import ConfigError, InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.models.shared_batches.likelihood import score_settings
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.checkpoints import byte_tokenizer, save_llama
from tests.helpers.interventions import circuit, vectors
from tests.helpers.models import DENSE, TINY, VOCAB, tiny
from tests.helpers.requests import instances
from tests.helpers.scores import alike
from tests.models.decoding.test_likelihood import ASKED, QUESTIONS

#: Few-shot blocks, several answers of one and of more tokens, an empty context; in a vocabulary that tiny models have.
SMALL: Any = [tuple("".join(chr(33 + ord(c) % 60) for c in text[-150:].lstrip()) for text in pair) for pair in ASKED]
MULTIPLIERS = (0.0, 0.5, 1.0, 1.5, 2.0)


def model_of(family: str, **arguments: Any) -> CNAHFLM:
    tokenizer = byte_tokenizer(adds_bos=False)
    assert max(max(tokenizer(context + answer).input_ids) for context, answer in SMALL) < VOCAB
    settings: dict[str, Any] = {"batch_size": 6, "device": "cpu"} | arguments
    return CNAHFLM(pretrained=tiny(family) if family in DENSE else TINY[family](), tokenizer=tokenizer, **settings)


def upper(lm: CNAHFLM, layer: int) -> Circuit:
    """A circuit that begins at a layer."""
    whole = circuit(find_architecture(lm.model), per_layer=16)
    return whole.model_copy(update={"neurons": tuple(n for n in whole.neurons if n.layer >= layer)})


def one_by_one(lm: CNAHFLM, settings: list[Setting]) -> list[Any]:
    found = []
    for setting in settings:
        lm.steer(setting)
        found.append(lm.loglikelihood(instances("loglikelihood", SMALL), disable_tqdm=True))
    lm.unsteer()
    return found


def calls(lm: CNAHFLM) -> list[int]:
    """Counts, layer by layer, how often its MLP is computed from here on."""
    counts = [0] * len(lm.architecture.layers)

    def counter(index: int) -> Any:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    for layer in lm.architecture.layers:
        layer.projections[0].down.register_forward_hook(counter(layer.index))
    return counts


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", DENSE)
def test_every_setting_has_the_scores_of_its_own_run(family: str, layer: int) -> None:
    lm = model_of(family)
    settings = [Setting(upper(lm, layer), multiplier) for multiplier in MULTIPLIERS]
    expected = one_by_one(lm, settings)
    assert alike(score_settings(lm, SMALL, settings), expected)
    assert not alike(expected[0], expected[2])


@pytest.mark.parametrize("mode", ["auto", "fold", "hook", "rows"])
def test_every_mode(mode: str) -> None:
    lm = model_of("llama")
    settings = [Setting(upper(lm, 1), multiplier) for multiplier in MULTIPLIERS]
    assert alike(score_settings(lm, SMALL, settings, mode=mode), one_by_one(lm, settings))


@pytest.mark.parametrize("mode", ["hook", "rows"])
@pytest.mark.parametrize("place", ["write", "block"])
def test_vectors(place: str, mode: str) -> None:
    lm = model_of("gemma2")
    whole = vectors(lm.architecture)
    chosen = whole.model_copy(update={"tensors": {2: whole.tensors[2]}, "place": place})
    settings = [Setting(chosen, 0.0), Setting(), Setting(upper(lm, 1), 0.0)]
    assert alike(score_settings(lm, SMALL, settings, mode=mode), one_by_one(lm, settings))


@pytest.mark.parametrize("lowest", [2, 0])
def test_layers_below_all_settings_are_computed_once(lowest: int) -> None:
    lm = model_of("llama")
    counts = calls(lm)
    score_settings(lm, SMALL, [Setting(upper(lm, 2), 0.0), Setting(upper(lm, 2), 0.5), Setting(upper(lm, lowest), 2.0)])
    assert counts[0] == counts[1] > 0 and counts[2] == counts[0] * (3 if lowest else 1)


def test_the_model_is_left_as_it_was() -> None:
    lm = model_of("llama")
    before = Setting(upper(lm, 1), 0.5)
    lm.steer(before)
    scores = lm.loglikelihood(instances("loglikelihood", SMALL), disable_tqdm=True)
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    for mode in ("fold", "rows"):
        score_settings(lm, SMALL, [Setting(), Setting(upper(lm, 1), 0.0)], mode=mode)
        with pytest.raises(ConfigError):
            score_settings(lm, [*SMALL, ("a", "")], [Setting(), Setting(upper(lm, 1), 0.0)], mode=mode)
    assert lm.setting == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lm.model.state_dict().items())
    assert lm.loglikelihood(instances("loglikelihood", SMALL), disable_tqdm=True) == scores
    for block in (layer.block for layer in lm.architecture.layers):
        assert not block._forward_hooks and "forward" not in block.__dict__


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of("llama")
    settings = [Setting(upper(lm, 1), multiplier) for multiplier in (0.0, 0.5)]
    untouched = one_by_one(lm, [Setting()])

    def fails(*_: Any) -> None:
        # Only in the second pass, when layers are being replaced.
        if lm.setting == settings[1]:
            raise RuntimeError("the machine is out of luck")

    handle = lm.architecture.layers[2].block.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        score_settings(lm, SMALL, settings)
    handle.remove()
    assert lm.setting == Setting() and one_by_one(lm, [Setting()]) == untouched


def test_few_settings_or_requests() -> None:
    lm = model_of("llama")
    assert score_settings(lm, SMALL, []) == []
    assert score_settings(lm, [], [Setting(), Setting(upper(lm, 1), 0.0)]) == [[], []]
    assert alike(score_settings(lm, SMALL, [Setting()]), one_by_one(lm, [Setting()]))
    both = score_settings(lm, SMALL, [Setting(), Setting(upper(lm, 1), 1.0)])
    assert both[0] == both[1]


def test_a_model_that_cannot_share_is_asked_in_full() -> None:
    lm = model_of("granitemoe")
    assert alike(score_settings(lm, SMALL, [Setting()]), one_by_one(lm, [Setting()]))


def test_wrong_arguments(tmp_path: Path) -> None:
    lm = model_of("llama")
    with pytest.raises(ConfigError, match="allowed: auto, fold, hook, rows"):
        score_settings(lm, SMALL, [Setting()], mode="bend")
    other = CNAHFLM(pretrained=str(save_llama(tmp_path)), device="cpu")
    with pytest.raises(InterventionError):
        score_settings(lm, SMALL, [Setting(circuit(other.architecture), 0.0)])
    assert lm.setting == Setting() and len(QUESTIONS) == 12
