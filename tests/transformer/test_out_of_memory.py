"""What a model that has room for few rows gives: the same in smaller batches, or one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch

from lm_eval_cna import cli
from lm_eval_cna.discovery.activations import count_in_top, mean_activations
from lm_eval_cna.errors import out_of_memory
from lm_eval_cna.steering.setting import Setting
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.out_of_memory import with_less_memory
from lm_eval_cna.validation.first_token_kl import harmless_kl
from lm_eval_cna.validation.self_check import self_check
from tests.helpers.interventions import circuit
from tests.helpers.models import VOCAB, tiny


class Letters:
    """One token a letter; no chat template."""

    bos_token = None
    pad_token_id = 0
    eos_token_id = 2
    chat_template = None

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [3 + ord(letter) % (VOCAB - 3) for letter in text]}


@contextmanager
def room_for(model: Any, rows: int, at_layer: int = 2) -> Iterator[list[int]]:
    """A model that runs out of memory in the middle of a larger batch; yields the sizes that were tried."""
    tried: list[int] = []

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        tried.append(len(inputs[0]))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    handle = model.model.layers[at_layer].register_forward_pre_hook(look)
    try:
        yield tried
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("fits", "least", "tried_in_all"),
    [(3, 1, [13, 7, 4, 2]), (0, 1, [13, 7, 4, 2, 1]), (0, 13, [13]), (0, 5, [13, 7, 5])],
)
def test_half_as_many_until_they_fit_or_are_the_least(fits: int, least: int, tried_in_all: list[int]) -> None:
    tried = []

    def ask(rows: int) -> str:
        tried.append(rows)
        if rows > fits:
            raise torch.OutOfMemoryError
        return "done"

    with nullcontext() if fits else pytest.raises(torch.OutOfMemoryError):
        assert with_less_memory(ask, 13, least=least) == "done"
    assert tried == tried_in_all


def test_discovery_goes_on_and_counts_no_prompt_twice() -> None:
    model = tiny("llama")
    architecture = find_architecture(model)
    prompts, groups = [[5 + i, 7, 11 + i] for i in range(8)], [0, 1] * 4
    wanted = mean_activations(architecture, prompts, groups, read=("neurons", "magnitudes", "writes"))
    counts = count_in_top(architecture, prompts, 30)
    with room_for(model, 3) as tried:
        found = mean_activations(architecture, prompts, groups, read=("neurons", "magnitudes", "writes"), batch_size=8)
        assert torch.equal(count_in_top(architecture, prompts, 30, batch_size=8), counts)
    assert tried == [8, 4, 2, 2, 2, 2] * 2
    for name in ("neurons", "magnitudes", "writes"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-7)


def test_divergence_goes_on() -> None:
    model = tiny("llama")
    setting = Setting(circuit(find_architecture(model)), 0.0)
    prompts = ["a", "How so?", "Why, and for how long?", "ok", "yes"]
    (wanted,) = harmless_kl(model, Letters(), [setting], prompts)
    with room_for(model, 2) as tried:
        (found,) = harmless_kl(model, Letters(), [setting], prompts)
    assert max(tried) > 2
    assert found.values == pytest.approx(wanted.values, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("mode", "rows"), [("fold", 1), ("hook", 1), ("rows", 3)])
def test_the_self_check_goes_on_with_one_prompt_at_a_time(mode: str, rows: int) -> None:
    model = tiny("llama")
    with room_for(model, rows) as tried:
        found = self_check(model, Letters(), {"circuit": circuit(find_architecture(model))}, mode=cast(Any, mode))
    assert max(tried) > rows
    checked = found.interventions["circuit"]
    assert (checked.prompts, checked.identity) == (2, 0.0) and checked.change > 0


def test_weights_that_are_cut_keep_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes would wait for ever in the pass that this one gave up."""
    model = tiny("llama")
    architecture = find_architecture(model)
    assert not architecture.is_cut
    chosen, prompts = circuit(architecture), [[5, 7, 11]] * 8
    monkeypatch.setattr(type(architecture), "is_cut", True)
    asked: list[Callable[[], object]] = [
        lambda: mean_activations(architecture, prompts, [0, 1] * 4, batch_size=8),
        lambda: count_in_top(architecture, prompts, 30, batch_size=8),
        lambda: harmless_kl(model, Letters(), [Setting(chosen, 0.0)], ["a"] * 8, batch_size=8),
        lambda: self_check(model, Letters(), {"circuit": chosen}, mode="hook"),
    ]
    for ask in asked:
        with room_for(model, 1) as tried, pytest.raises(torch.OutOfMemoryError):
            ask()
        assert len(tried) == 1


def test_the_command_line_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def short(*_: Any, **__: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has ...")

    monkeypatch.setattr(cli, "app", short)
    assert cli.main(["sweep", "sweep.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: out of memory: CUDA out of memory; give a smaller batch_size")


def test_what_is_a_lack_of_memory() -> None:
    assert out_of_memory(MemoryError()) == (
        "out of memory: no memory left; give a smaller batch_size, a smaller dtype, or a larger device or more of them"
    )
    assert out_of_memory(ValueError("out of memory")) is None
