"""Discovery against the plain loop, and the memory that its sums take."""

from __future__ import annotations

from benchmarks import plain_loop
from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import Workbench
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.discovery.activations import mean_activations
from lm_eval_cna.discovery.circuit_size import circuit_size
from lm_eval_cna.discovery.means import RunningSums
from lm_eval_cna.discovery.measurement import Settings, measure
from lm_eval_cna.discovery.methods import cna
from lm_eval_cna.organism.recipe import CIRCUIT_FRACTION
from lm_eval_cna.transformer.decoder import find_architecture
from lm_eval_cna.transformer.prompts import encode_prompts, render_prompts


@row(
    "discovery",
    "CNA circuit of the organism, 100 + 100 prompts",
    "plain loop: one prompt a forward pass, hooks set per prompt, host lists, ranking in Python",
    rounds=15,
    at_least=10,
)
def discovery(bench: Workbench) -> Outcome:
    """Both render, encode, run and rank; neither filters universal neurons, and both find the same neurons."""
    model, tokenizer = bench.instruct
    contrast = load_contrast("organism")
    k = circuit_size(CIRCUIT_FRACTION, len(model.model.layers) * model.config.intermediate_size)

    def ours() -> list[tuple[int, int]]:
        found = measure(model, tokenizer, contrast, read=("neurons",), universal_filter=False, check_leakage=False)
        return [(n.layer, n.index) for n in cna.find(found, top_k=k).neurons]

    def theirs() -> list[tuple[int, int]]:
        return plain_loop.discover(model, tokenizer, contrast.positive, contrast.negative, k)

    assert ours() == theirs()
    lengths = [len(ids) for ids in encode_prompts(render_prompts(contrast.prompts, tokenizer), tokenizer)]
    return compare(
        Side("measure() and cna.find()", ours),
        Side("plain loop", theirs),
        bench.rounds,
        note=f"The same {k} neurons in the same order. Prompts of {min(lengths)} to {max(lengths)} tokens.",
        batch_size=Settings().batch_size,
    )


@row("accumulators", "memory of discovery's sums, two classes", rounds=1, at_most=16, unit="bytes a neuron")
def accumulators(bench: Workbench) -> Outcome:
    """The sums that a real discovery makes, whatever the number of prompts."""
    model, tokenizer = bench.instruct
    architecture = find_architecture(model)
    prompts = load_contrast("organism").prompts
    rows = encode_prompts(render_prompts(prompts, tokenizer), tokenizer)
    taken: dict[str, float] = {}
    real = RunningSums.means
    for number in (20, 100, 200, 400):
        sizes: list[int] = []

        def means(self: RunningSums, *args: object, _sizes: list[int] = sizes, **kwargs: object) -> object:
            _sizes.append(self.nbytes)
            return real(self, *args, **kwargs)  # type: ignore[arg-type]

        RunningSums.means = means  # type: ignore[method-assign,assignment]
        try:
            mean_activations(architecture, (rows * 2)[:number], [i % 2 for i in range(number)])
        finally:
            RunningSums.means = real  # type: ignore[method-assign]
        taken[f"{number} prompts"] = sum(sizes) / architecture.num_neurons
    assert len(set(taken.values())) == 1, taken
    return Outcome(values=(max(taken.values()),), note="Constant in the number of prompts.", details=taken)
