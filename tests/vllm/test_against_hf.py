"""cna-vllm says what cna-hf says: every method, every multiplier, one process and two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")

from lm_eval.api.instance import Instance

from lm_eval_cna.discovery.controls import draw_neurons, draw_vectors
from lm_eval_cna.errors import ConfigError, InterventionError, SteeringError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.neurons import Neuron
from tests.helpers.interventions import circuit, vectors
from tests.vllm.conftest import Pair

METHODS = ("cna", "random", "caa", "caa-residual", "random-vectors")
MULTIPLIERS = (0.0, 0.5, 1.0, 2.0)
TEXTS = ["Hello", "How do I bake a cake?", "A longer prompt, so that the rows of a batch differ in length."]
GREEDY = {"until": [], "max_gen_toks": 16, "do_sample": False}


def intervention(pair: Pair, method: str) -> Circuit | Vectors:
    model, architecture = pair.theirs.model, pair.theirs.architecture
    made: dict[str, Any] = {
        "cna": lambda: circuit(architecture, per_layer=width_of(architecture) // 4),
        "random": lambda: draw_neurons(model, intervention(pair, "cna"), seed=3),
        "caa": lambda: vectors(architecture),
        "caa-residual": lambda: vectors(architecture, place="block"),
        "random-vectors": lambda: draw_vectors(model, intervention(pair, "caa"), seed=3),
    }
    return made[method]()


def width_of(architecture: Any) -> int:
    return architecture.layers[0].projections[0].width


def generated(lm: Any, options: dict[str, Any] | None = None) -> list[str]:
    asked = [Instance("generate_until", {}, (text, options or GREEDY), i) for i, text in enumerate(TEXTS)]
    return lm.generate_until(asked, disable_tqdm=True)


def scored(lm: Any) -> list[tuple[float, bool]]:
    asked = [Instance("loglikelihood", {}, (text, " no, not at all"), i) for i, text in enumerate(TEXTS)]
    return lm.loglikelihood(asked, disable_tqdm=True)


@pytest.fixture
def untouched(engines: Pair) -> Any:
    """What both say without steering; they are left as they were found."""
    engines.ours.unsteer()
    engines.theirs.unsteer()
    yield generated(engines.theirs), scored(engines.theirs)
    engines.ours.unsteer()
    engines.theirs.unsteer()


@pytest.mark.parametrize("method", METHODS)
def test_texts_and_likelihoods_at_every_multiplier(engines: Pair, untouched: Any, method: str) -> None:
    texts, scores = untouched
    chosen = intervention(engines, method)
    for multiplier in MULTIPLIERS:
        setting = Setting(chosen, multiplier)
        engines.ours.steer(setting)
        engines.theirs.steer(setting)
        assert engines.ours.mode_in_use == ("none" if multiplier == 1 else "hook")
        said, likely = generated(engines.theirs), scored(engines.theirs)
        assert generated(engines.ours) == said, multiplier
        for (ours, greedy), (theirs, greedily) in zip(scored(engines.ours), likely, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-4) and greedy == greedily, multiplier
        # A test that could not fail: steering that does not show in the oracle's own answers.
        assert said != texts if multiplier in (0, 2) else said == texts or multiplier != 1
        assert (likely == scores) == (multiplier == 1)


def test_undone_and_the_prefix_cache_forgotten(engines: Pair, untouched: Any) -> None:
    before = generated(engines.ours), scored(engines.ours)
    assert before[0] == untouched[0]
    # Greedy also where a request does not say whether to sample.
    options = {"until": ["e"], "max_gen_toks": 16}
    assert generated(engines.ours, options) == generated(engines.theirs, options)
    engines.ours.steer(Setting(intervention(engines, "cna"), 0.0))
    # The same prompts: with the keys and values of the untouched model they would be answered as before.
    steered = generated(engines.ours)
    assert steered != before[0]
    engines.ours.unsteer()
    assert (generated(engines.ours), scored(engines.ours)) == before


def test_what_does_not_fit_is_refused_and_nothing_stays_steered(engines: Pair, untouched: Any) -> None:
    outside = Circuit(method="random", name="x", neurons=(Neuron(0, width_of(engines.theirs.architecture)),))
    with pytest.raises(InterventionError):
        engines.ours.steer(Setting(outside, 0.0))
    engines.ours.mode = "fold"
    with pytest.raises(SteeringError, match="packed copies"):
        engines.ours.steer(Setting(intervention(engines, "cna"), 0.0))
    engines.ours.mode = "auto"
    assert generated(engines.ours) == untouched[0]


def test_a_partial_match_is_refused(engines: Pair, untouched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = intervention(engines, "cna")
    rpc = engines.ours.model.collective_rpc

    def forgetful(method: str, *args: Any, **kwargs: Any) -> Any:
        answers = rpc(method, *args, **kwargs)
        if method == "cna_steer":
            answers[-1]["touched"] = answers[-1]["touched"][1:]
        return answers

    monkeypatch.setattr(engines.ours.model, "collective_rpc", forgetful)
    with pytest.raises(SteeringError, match="the workers steered"):
        engines.ours.steer(Setting(chosen, 0.0))
    monkeypatch.undo()
    assert generated(engines.ours) == untouched[0]


def test_the_results_file_says_what_was_done(engines: Pair, untouched: Any) -> None:
    chosen = intervention(engines, "cna")
    engines.ours.steer(Setting(chosen, 0.5))
    info = engines.ours.get_model_info()
    assert info["cna"]["multiplier"] == 0.5 and info["cna"]["mode"] == "hook"
    assert info["cna"]["intervention_sha256"] == chosen.sha256
    assert info["model_num_parameters"] == engines.theirs.model.num_parameters()
    half = info["cna"]["fingerprint"]
    engines.ours.steer(Setting(chosen, 0.0))
    assert engines.ours.fingerprint != half
    engines.theirs.steer(Setting(chosen, 0.0))
    assert engines.ours.fingerprint != engines.theirs.fingerprint


def test_data_parallelism_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from lm_eval_cna.models.vllm import CNAVLLM

    with pytest.raises(ConfigError, match="data_parallel_size"):
        CNAVLLM(pretrained=str(tmp_path / "absent"), data_parallel_size=2)
    with pytest.raises(ConfigError, match="cannot load the model"):
        CNAVLLM(pretrained=str(tmp_path / "absent"))
