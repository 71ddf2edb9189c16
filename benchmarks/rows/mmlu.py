"""lm-eval's own MMLU, 5-shot, on a 6-layer random Llama: cna-hf against stock hf with the same batch size.

The rows are a slice of MMLU where ../shared/data holds one, and made-up rows of the same shape elsewhere; the tokenizer
is a BPE trained on them.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.machine import ROOT
from benchmarks.sides import Outcome, Side, compare, row
from benchmarks.workbench import Workbench, no_environment_report, random_llama, some_circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.steering.apply import apply
from lm_eval_cna.steering.setting import Setting

SLICE = ROOT.parent / "shared" / "data" / "mmlu_slice" / "jsonl"
SUBJECTS = 4
DOCUMENTS = 25  # a subject
SHOTS = 5
BATCH_SIZE = 8
VOCABULARY = 32_000
MULTIPLIERS = (0.0, 0.5, 1.0, 1.5, 2.0)
_MODEL = "6-layer random Llama of width 512, vocabulary 32,000"


class Setup(NamedTuple):
    """What both rows use."""

    checkpoint: Path
    circuit: Path
    manager: Any
    tasks: list[str]
    source: str


@row(
    "mmlu",
    f"MMLU slice, 5-shot, m = 0, {_MODEL}",
    "stock hf on the same weights, same batch size",
    rounds=3,
    at_least=6,
)
def once(bench: Workbench) -> Outcome:
    """One evaluation each, stock's weights folded beforehand; the log-likelihoods are compared as well."""
    from lm_eval.models.huggingface import HFLM

    from lm_eval_cna.models.hf import CNAHFLM

    setup = _setup(bench)
    arguments: dict[str, Any] = {
        "pretrained": str(setup.checkpoint),
        "device": "cpu",
        "dtype": "float32",
        "batch_size": BATCH_SIZE,
    }
    ours, stock = CNAHFLM(**arguments, circuit=str(setup.circuit), multiplier=0), HFLM(**arguments)
    apply(stock.model, Setting(read_intervention(str(setup.circuit)), 0.0), mode="fold")
    found: dict[str, Any] = {}

    def evaluate(name: str, model: Any, limit: int = DOCUMENTS) -> None:
        found[name] = _evaluate(model, setup, limit)

    evaluate("ours", ours, 1)
    evaluate("stock", stock, 1)
    outcome = compare(
        Side("cna-hf", lambda: evaluate("ours", ours)),
        Side("hf", lambda: evaluate("stock", stock)),
        bench.rounds,
        warm_up=False,
        note=_note(setup),
    )
    outcome.details.update(_prefixes(found["stock"], ours.tokenizer))
    outcome.details.update(_agreement(found["ours"], found["stock"]))
    return outcome


@row(
    "mmlu-5-multipliers",
    f"MMLU slice, 5-shot, over 5 multipliers, {_MODEL}",
    "five stock hf runs",
    rounds=2,
    at_least=5,
)
def five(bench: Workbench) -> Outcome:
    """A sweep against stock runs, which are five times the same."""
    from lm_eval.models.huggingface import HFLM

    from lm_eval_cna.sweep.config import parse_config
    from lm_eval_cna.sweep.runner import run_sweep

    setup = _setup(bench)
    stock = HFLM(pretrained=str(setup.checkpoint), device="cpu", dtype="float32", batch_size=BATCH_SIZE)

    def ours() -> None:
        config = {
            "model": str(setup.checkpoint),
            "model_args": {"device": "cpu", "dtype": "float32", "batch_size": BATCH_SIZE},
            "circuit": str(setup.circuit),
            "methods": ["cna"],
            "multipliers": MULTIPLIERS,
            "tasks": [{"task": task, "num_fewshot": SHOTS, "chat_template": False} for task in setup.tasks],
            "limit": DOCUMENTS,
            "harmless_kl": False,
            "output": str(bench.folder("mmlu-run")),
        }
        with no_environment_report():
            run_sweep(parse_config(config), task_manager=setup.manager, command=["benchmarks"])

    return compare(
        Side("run_sweep", ours),
        Side("hf", lambda: _evaluate(stock, setup, DOCUMENTS), len(MULTIPLIERS), "one run"),
        bench.rounds,
        warm_up=False,
        note=_note(setup),
    )


def _evaluate(model: Any, setup: Setup, limit: int) -> Any:
    from lm_eval import simple_evaluate

    with no_environment_report():
        return simple_evaluate(
            model, tasks=setup.tasks, num_fewshot=SHOTS, limit=limit, task_manager=setup.manager, bootstrap_iters=0
        )


def _note(setup: Setup) -> str:
    return f"{setup.source}: {len(setup.tasks)} subjects x {DOCUMENTS} documents, batch size {BATCH_SIZE}"


def _prefixes(results: Any, tokenizer: Any) -> dict[str, Any]:
    """How long prompts are, and how much of them a subject's prompts share."""
    lengths, shared = [], []
    for samples in results["samples"].values():
        rows = [tokenizer(sample["arguments"][0][0])["input_ids"] for sample in samples]
        lengths += [len(ids) for ids in rows]
        first, last = min(rows), max(rows)
        shared.append(next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)))
    return {
        "prompt tokens, median": statistics.median(lengths),
        "prompt tokens, range": [min(lengths), max(lengths)],
        "tokens that a subject's prompts share": shared,
    }


def _agreement(ours: Any, stock: Any) -> dict[str, Any]:
    differences = [
        abs(float(a[0][0]) - float(b[0][0]))
        for task, samples in stock["samples"].items()
        for mine, theirs in zip(ours["samples"][task], samples, strict=True)
        for a, b in zip(mine["resps"], theirs["resps"], strict=True)
    ]
    same = all(ours["results"][task]["acc,none"] == stock["results"][task]["acc,none"] for task in stock["samples"])
    return {"largest difference of a log-likelihood": max(differences), "same accuracies": same}


@cache
def _setup(bench: Workbench) -> Setup:
    from lm_eval.tasks import TaskManager

    folder = bench.folder("mmlu")
    folder.mkdir()
    found = sorted(path.name.removesuffix("_test.jsonl") for path in SLICE.glob("*_test.jsonl"))
    data, source = (SLICE, "slice of MMLU") if found else (_made_up(folder / "rows"), "made-up rows")
    names = found or sorted(path.name.removesuffix("_test.jsonl") for path in data.glob("*_test.jsonl"))
    subjects = names[:: len(names) // SUBJECTS][:SUBJECTS]
    tokenizer = _tokenizer(data)
    model = random_llama(seed=bench.seed, layers=6, hidden=512, width=2048, heads=8, vocabulary=VOCABULARY)
    checkpoint = folder / "llama"
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    circuit = folder / "circuit.json"
    some_circuit(model, tokenizer).write(circuit)
    source = f"{source}, a BPE of {len(tokenizer)} tokens trained on it"
    return Setup(
        checkpoint, circuit, _manager(folder, data, subjects, TaskManager), [f"mmlu_{s}" for s in subjects], source
    )


def _manager(folder: Path, data: Path, subjects: list[str], kind: Any) -> Any:
    """lm-eval's own MMLU files on local rows; a later include path wins."""
    import lm_eval

    stock = Path(lm_eval.__file__).resolve().parent / "tasks" / "mmlu" / "default"
    for subject in subjects:
        files = {split: str(data / f"{subject}_{split}.jsonl") for split in ("test", "dev")}
        override = {
            "include": str(stock / f"mmlu_{subject}.yaml"),
            "task": f"mmlu_{subject}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        }
        (folder / f"mmlu_{subject}.yaml").write_text(yaml.safe_dump(override), encoding="utf-8")
    return kind(include_path=[stock, folder], include_defaults=False)


def _tokenizer(data: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _texts(data: Path) -> Iterator[str]:
    for path in sorted(data.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield "\n".join([found["question"], *found["choices"]])


def _made_up(folder: Path) -> Path:
    """Questions of made-up words, about as long as MMLU's: 5 worked examples and `DOCUMENTS` questions a subject."""
    folder.mkdir()
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "on")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(9000)]

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    for subject in ("anatomy", "astronomy", "global_facts", "world_religions"):
        for split, number in (("dev", SHOTS), ("test", DOCUMENTS)):
            rows = [
                {
                    "question": text(15, 60) + "?",
                    "subject": subject,
                    "choices": [text(2, 14) for _ in range(4)],
                    "answer": draw.randrange(4),
                }
                for _ in range(number)
            ]
            (folder / f"{subject}_{split}.jsonl").write_text(
                "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
            )
    return folder
