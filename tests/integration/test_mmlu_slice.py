"""lm-eval's own MMLU under steering, by letters and generated; nothing of its files is changed but where rows are.

By letters a model cannot fall below chance, however broken: it always takes one of four. Only generated answers show a
wreck (DESIGN section 7).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_cna.interventions.compatibility import describe_model
from lm_eval_cna.models.hf import CNAHFLM
from lm_eval_cna.transformer.decoder import find_architecture
from tests.helpers.checkpoints import save_llama
from tests.helpers.interventions import circuit
from tests.helpers.scores import alike

SLICE = Path(__file__).resolve().parents[3] / "shared" / "data" / "mmlu_slice" / "jsonl"
STOCK = Path(lm_eval.__file__).resolve().parent / "tasks" / "mmlu"
LETTERS = "ABCD"
SHOTS = 5
#: In the layout of cais/mmlu, the right letters spread evenly over the test rows.
ROWS = [
    {
        "question": f"What is {n} and {n}?",
        "subject": "sums",
        "choices": [str(2 * n + (i - n) % 4) for i in range(4)],
        "answer": n % 4,
    }
    for n in range(8)
]
DEV = [
    {"question": f"Which is {n}?", "subject": "sums", "choices": ["0", "1", "2", "3"], "answer": n} for n in (0, 1, 2)
] + [{"question": f"Is it {n}?", "subject": "sums", "choices": ["a", "b", "c", "d"], "answer": n} for n in (3, 0)]


def stock_manager(folder: Path, files: dict[str, dict[str, str]] | dict[str, str]) -> TaskManager:
    """lm-eval's `mmlu` and `mmlu_generative` on local rows: {split: file} for all subjects, or so for each of some."""
    for kind, suffix in (("default", ""), ("generative", "_generative")):
        for path in (STOCK / kind).glob("mmlu_*.yaml"):
            subject = path.stem.removeprefix("mmlu_")
            data = files if "test" in files else files.get(subject)
            if data is None:
                continue
            override = {
                "include": str(path),
                "task": f"mmlu_{subject}{suffix}",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": data, "cache_dir": str(folder / "cache")},
            }
            (folder / f"{override['task']}.yaml").write_text(yaml.safe_dump(override), encoding="utf-8")
    # A later include path wins. Only lm-eval's MMLU is read, not its thousands of other files.
    return TaskManager(include_path=[STOCK / "default", STOCK / "generative", folder], include_defaults=False)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("mmlu")
    files = {}
    for split, rows in (("test", ROWS), ("dev", DEV)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(path)
    return stock_manager(folder, files)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HFLM]:
    """Stock hf, and cna-hf at multipliers 0 and 1 as the command line makes it."""
    folder = save_llama(tmp_path_factory.mktemp("model"))
    arguments = {"pretrained": str(folder), "device": "cpu", "batch_size": 4, "max_length": 8192}
    stock = HFLM(**arguments)
    architecture = find_architecture(stock.model)
    chosen = circuit(architecture, per_layer=16)
    info = describe_model(architecture, [(n.layer, n.index) for n in chosen.neurons], id=str(folder), revision="main")
    file = folder / "circuit.json"
    chosen.model_copy(update={"model": info}).write(file)
    steered = {f"m={m}": CNAHFLM(**arguments, circuit=str(file), multiplier=m) for m in (0, 1)}
    return {"stock": stock, **steered}


class Scripted(LM):
    """Answers with what two functions of the prompt say."""

    def __init__(self, letter: Any, text: Any) -> None:
        super().__init__()
        self.letter, self.text = letter, text

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self.letter(context, continuation.strip()), False) for context, continuation in _args(requests)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.text(context) for context, _ in _args(requests)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("MMLU does not ask for this")


def _args(requests: list[Any]) -> list[Any]:
    return [request.args for request in requests]


def evaluate(model: LM, manager: TaskManager, tasks: list[str], limit: int | None = None) -> dict[str, Any]:
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        num_fewshot=SHOTS,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        gen_kwargs="max_gen_toks=24" if any("generative" in task for task in tasks) else None,
    )
    assert results is not None
    return results


def answers(results: dict[str, Any]) -> dict[str, list[Any]]:
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


def known(context: str) -> str:
    """The right letter of the last question of a prompt."""
    question = context.rsplit("\n\n", 1)[-1].split("\nA. ")[0]
    (row,) = [row for row in ROWS if row["question"] == question]
    return LETTERS[int(str(row["answer"]))]


def test_the_stock_group_with_five_examples(manager: TaskManager, models: dict[str, HFLM]) -> None:
    found = {name: evaluate(model, manager, ["mmlu"], limit=1) for name, model in models.items()}
    stock = found["stock"]
    assert len(stock["samples"]) == 57 and set(stock["n-shot"].values()) == {SHOTS}
    assert stock["groups"]["mmlu"]["acc,none"] == pytest.approx(
        sum(stock["results"][task]["acc,none"] for task in stock["samples"]) / 57
    )
    (sample,) = stock["samples"]["mmlu_anatomy"]
    prompt = sample["arguments"][0][0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")
    asked = [line for line in prompt.splitlines() if line.endswith("?")]
    assert asked == [row["question"] for row in DEV] + [ROWS[0]["question"]], "the dev rows in order, then the test row"
    assert answers(found["m=1"]) == answers(stock), "to the last digit"
    assert not alike(answers(found["m=0"]), answers(stock))
    assert found["m=1"]["results"]["mmlu"] == stock["results"]["mmlu"]


def test_the_generative_group_under_steering(manager: TaskManager, models: dict[str, HFLM]) -> None:
    task = "mmlu_anatomy_generative"
    found = {name: evaluate(model, manager, [task]) for name, model in models.items()}
    assert answers(found["m=1"]) == answers(found["stock"]) != answers(found["m=0"])
    assert found["stock"]["n-shot"][task] == SHOTS
    # A model of random weights is a wreck, and here that shows.
    assert found["m=0"]["results"][task]["exact_match,get_response"] == 0


def test_a_sound_model_is_right_by_letters_and_in_writing(manager: TaskManager) -> None:
    sound = Scripted(lambda context, letter: -1.0 if letter == known(context) else -2.0, lambda c: f" {known(c)}\n")
    results = evaluate(sound, manager, ["mmlu", "mmlu_generative"], limit=2)["groups"]
    assert results["mmlu"]["acc,none"] == 1
    assert results["mmlu_generative"]["exact_match,get_response"] == 1


@pytest.mark.parametrize("favourite", [*LETTERS, None])
def test_a_wreck_is_at_chance_by_letters_and_at_zero_in_writing(manager: TaskManager, favourite: str | None) -> None:
    # One that always prefers the same letter, or none: all are equally likely, or not a number at all.
    def letter(context: str, candidate: str) -> float:
        return float("nan") if favourite is None else -1.0 - (candidate != favourite)

    wreck = Scripted(letter, lambda context: "the the the the the")
    results = evaluate(wreck, manager, ["mmlu_anatomy", "mmlu_anatomy_generative"])["results"]
    assert results["mmlu_anatomy"]["acc,none"] == 0.25
    assert results["mmlu_anatomy_generative"]["exact_match,get_response"] == 0


@pytest.mark.parametrize(
    ("written", "score"),
    [("{}", 1), (" {}.\nNext question", 1), ("{}. Because it is", 0), ("The answer is {}", 0), ("\n{}", 0)],
)
def test_generative_mmlu_wants_the_letter_alone(manager: TaskManager, written: str, score: int) -> None:
    # So a low score is damage only where the baseline, asked in the same way, has a high one.
    model = Scripted(None, lambda context: written.format(known(context)))
    results = evaluate(model, manager, ["mmlu_anatomy_generative"])["results"]
    assert results["mmlu_anatomy_generative"]["exact_match,get_response"] == score


def test_real_rows(tmp_path: Path, models: dict[str, HFLM]) -> None:
    subjects = sorted(path.name.removesuffix("_test.jsonl") for path in SLICE.glob("*_test.jsonl"))
    if not subjects:
        pytest.skip(f"the MMLU slice is not here: {SLICE}")
    files = {
        subject: {split: str(SLICE / f"{subject}_{split}.jsonl") for split in ("test", "dev")} for subject in subjects
    }
    tasks = [f"mmlu_{subject}" for subject in subjects]
    manager = stock_manager(tmp_path, files)
    found = {name: evaluate(model, manager, tasks, limit=1) for name, model in models.items()}
    assert answers(found["m=1"]) == answers(found["stock"])
    assert not alike(answers(found["m=0"]), answers(found["stock"]))
    for subject, task in zip(subjects, tasks, strict=True):
        (sample,) = found["m=0"]["samples"][task]
        rows = {}
        for split, file in files[subject].items():
            rows[split] = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        prompt = sample["arguments"][0][0]
        places = [prompt.index(row["question"].strip()) for row in [*rows["dev"], rows["test"][0]]]
        assert len(rows["dev"]) == SHOTS and places == sorted(places)
        assert sample["doc"] == rows["test"][0]
