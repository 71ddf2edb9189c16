"""Capacity on paper: what the full suite takes for dense models of 1B to 405B, from stated formulas.

    python -m benchmarks.capacity [--generated 5000] [--read 50000] [--processes 1] [--model NAME]

Without rates the table says how much there is to do; with them (tokens a second that one copy of the model reads and
generates, measured by you) also how long it takes. Memory is that of `lm-eval-cna paper --dry-run`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_cna.paper.memory import ROWS, Memory, memory_for, tokens_of
from lm_eval_cna.paper.presets import PresetTask
from lm_eval_cna.paper.targets import ModelSize, known_models
from lm_eval_cna.sweep.config import SweepConfig
from lm_eval_cna.sweep.grid import plan_cells

GPUS = {"80 GB": 80e9, "141 GB": 141e9}
#: Share of a GPU's memory that a model may take; the rest is for the CUDA context and fragmentation.
SHARE = 0.9
#: Of all models here; lm-eval splits a model over a number of processes that divides this.
KEY_VALUE_HEADS = 8
GENERATED = (
    PresetTask("jbb_harmful_refusal", None, "refusal_rate", 100, 60, 150),
    PresetTask("jbb_benign_refusal", None, "refusal_rate", 100, 60, 150),
    PresetTask("strongreject", None, "strongreject_score", 313, 60, 150),
)
#: Five examples and a question; the same examples before all questions of a subject are read once in each cell. On the
#: slice of results/benchmarks, 539 of 626 tokens of the median prompt are shared.
MMLU_DOCUMENTS, MMLU_SUBJECTS, MMLU_SHARED, MMLU_OWN = 14_042, 57, 600, 100
MMLU_SLICE = 100  # documents: 4 subjects of 25, as `make bench` has them
_DISCOVERY = (2 * 100 + 48) * 50  # tokens: the contrast set's prompts and those of the universal filter, roughly
_405B = ModelSize(405_853_388_800, 126, 8 * 128, 128_256, "shape of meta-llama/Llama-3.1-405B's config.json")
MODELS = (
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.1-405B-Instruct",
)


@dataclass(frozen=True)
class Suite:
    """Cells of the full suite, and tokens that it reads and generates."""

    cells: int
    """Cells of the default sweep, controls included."""
    capability_cells: int
    """Cells that run capability tasks."""
    read: int
    """Tokens read by discovery and by tasks with generated answers."""
    generated: int
    """Tokens generated if every answer has 150; a refusal is shorter."""
    mmlu: int
    """Tokens read by all of MMLU, with shared prefixes once in each cell."""
    mmlu_slice: int
    """Tokens read by a slice of four subjects of MMLU."""


def suite() -> Suite:
    """The default sweep (cna, caa and 19 random controls) on JBB, StrongREJECT and MMLU."""
    cells = plan_cells(SweepConfig(model="any", output=Path("any")))
    capable = sum(not cell.is_control for cell in cells)
    read, generated = tokens_of([(task, task.documents) for task in GENERATED], cells=len(cells))
    mmlu = capable * (MMLU_SUBJECTS * MMLU_SHARED + MMLU_DOCUMENTS * MMLU_OWN)
    return Suite(
        len(cells),
        capable,
        read + _DISCOVERY,
        generated,
        mmlu,
        capable * (4 * MMLU_SHARED + MMLU_SLICE * MMLU_OWN),
    )


def shape_of(name: str) -> ModelSize:
    """The shape of one of `MODELS`."""
    if name == MODELS[-1]:
        return _405B
    row = known_models()[name]
    return ModelSize(
        row["parameters"], row["layers"], row["kv_heads"] * row["head_dim"], row["vocabulary"], row["source"]
    )


def memory(size: ModelSize, *, width: int = 2, rows: int = ROWS) -> Memory:
    """Memory for the suite's longest task: MMLU's prompts are the longest that stay in a cache."""
    longest = PresetTask("mmlu", None, "acc", MMLU_DOCUMENTS, MMLU_SHARED + MMLU_OWN, 0)
    return memory_for(size, [*GENERATED, longest], width=width, rows=rows)


def gpus(needed: Memory, each: float) -> int:
    """How many GPUs of `each` bytes hold one copy of the model: a power of two, as tensor parallelism wants it.

    Weights and cache are cut over them; logits and reserve are not.
    """
    count = 1
    while (needed.weights + needed.cache) / count + needed.logits + needed.reserve > SHARE * each:
        count *= 2
    return count


def seconds(work: Suite, *, generated: float, read: float, processes: int = 1, whole_mmlu: bool = True) -> float:
    """How long the suite takes.

    Args:
        work: the suite.
        generated: tokens a second that one copy of the model generates, at the batch size that is used.
        read: tokens a second that it reads.
        processes: copies of the model that share the batches.
        whole_mmlu: all of MMLU, or a slice.
    """
    tokens = work.read + (work.mmlu if whole_mmlu else work.mmlu_slice)
    return (tokens / read + work.generated / generated) / processes


def command(name: str) -> str:
    """The command for a node of eight GPUs of 80 GB; where that is too little, for larger GPUs, and for four bits."""
    count = gpus(memory(shape_of(name)), GPUS["80 GB"])
    sweep = f"sweep suite.yaml --model {name} --output runs/{name.rpartition('/')[2]} --model-args dtype=bfloat16"
    if count == 1:
        return f"accelerate launch --multi_gpu --num_processes 8 -m lm_eval_cna {sweep}"
    in_step = f"torchrun --nproc-per-node {min(count, KEY_VALUE_HEADS)} -m lm_eval_cna {sweep},tp_plan=auto"
    if count <= KEY_VALUE_HEADS:
        return in_step
    return f"{in_step}  # GPUs of 141 GB\nlm-eval-cna {sweep},load_in_4bit=True,parallelize=True  # GPUs of 80 GB"


def table(names: Sequence[str], *, generated: float | None, read: float | None, processes: int) -> str:
    """The table as Markdown; hours are empty where no rates are given."""
    work = suite()
    head = [
        "model",
        "weights",
        "cache",
        "80 GB GPUs",
        "141 GB GPUs",
        "4 bits, 80 GB",
        "hours, MMLU slice",
        "hours, MMLU",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in names:
        size = shape_of(name)
        needed = memory(size)
        packed = Memory(size.parameters // 2, needed.cache, needed.logits, needed.reserve)
        hours = ["", ""]
        if generated is not None and read is not None:
            hours = [
                f"{seconds(work, generated=generated, read=read, processes=processes, whole_mmlu=whole) / 3600:.2g}"
                for whole in (False, True)
            ]
        cells = [
            name.rpartition("/")[2],
            f"{needed.weights / 1e9:.1f} GB",
            f"{needed.cache / 1e9:.2f} GB",
            *(str(gpus(needed, each)) for each in GPUS.values()),
            str(gpus(packed, GPUS["80 GB"])),
            *hours,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{work.cells} cells, {work.capability_cells} of them on MMLU. Tokens: {work.read / 1e6:.2f} M read and "
        f"{work.generated / 1e6:.2f} M generated on JBB and StrongREJECT, {work.mmlu_slice / 1e6:.2f} M read on "
        f"{MMLU_SLICE} questions of MMLU, {work.mmlu / 1e6:.1f} M on all of it.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=float, help="tokens a second that one copy generates")
    parser.add_argument("--read", type=float, help="tokens a second that one copy reads")
    parser.add_argument("--processes", type=int, default=1, help="copies of the model that share the work")
    parser.add_argument("--model", choices=MODELS, help="this model alone, and its command")
    asked = parser.parse_args()
    if (asked.generated is None) != (asked.read is None):
        parser.error("give both rates, or none")
    if asked.generated is not None and asked.model is None:
        parser.error("rates are a model's: give --model too")
    names = MODELS if asked.model is None else (asked.model,)
    print(table(names, generated=asked.generated, read=asked.read, processes=asked.processes))
    if asked.model is not None:
        print("\n" + command(asked.model))


if __name__ == "__main__":
    main()
