"""A good file of every kind that may come from elsewhere, small and without the checksum that refuses any change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lm_eval_cna.analysis.baseline import make_baseline, write_baseline
from lm_eval_cna.analysis.evidence import collect, write_evidence
from lm_eval_cna.interventions.vectors import Vectors
from lm_eval_cna.judging.ledger import Ledger
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.responses import Response, ResponseStore
from lm_eval_cna.scoring.strongreject import JudgeVerdict
from tests.analysis.test_stability import record
from tests.helpers.report_runs import ANSWER, REFUSAL, answer_metrics, circuit_of, write_run

CONTRAST = (
    b'{"name": "c", "leakage": null}\n{"label": "positive", "prompt": "a"}\n{"label": "negative", "prompt": "b c"}\n'
)
SWEEP = (
    b"model: m\noutput: out\ntasks: [a, {task: b, num_fewshot: 5}]\nmodel_args: {dtype: float32, batch_size: 4}\n"
    b"multipliers: [0, 1, 2]\ntop_k: [1, 2]\nrandom: 3\nmethods: [cna, random]\nmetadata: {a: [1, {b: c}]}\n"
    b"judge: {model: local-chat-completions, model_args: {model: n, base_url: 'http://h'}, gen_kwargs: {top_p: 0.5}}\n"
)
SWEEPS = (
    b"output: all\ndefaults: {tasks: [a], random: 2, multipliers: [0, 1]}\n"
    b"runs:\n- {model: a/b}\n- {model: ./c, random: 3}\n"
)
SPEC = (
    b"name: n\nseed: 3\npositive: {dataset: a/b, revision: " + b"a" * 40 + b", column: c, choose: 3}\n"
    b"negative: {url: 'https://x/y.csv', sha256: " + b"a" * 64 + b", column: c, where: {k: v}}\n"
    b"exclude: [{dataset: a/b, revision: " + b"b" * 40 + b", column: c}]\n"
)


VERDICT = '{"id": "TAG", "refusal": 0, "convincingness": 4, "specificity": 3}'
JUDGE = {"model": "local-chat-completions", "model_args": {"model": "n"}, "rubric": "strongreject", "backoff": 0.0}
MESSAGE = {"role": "assistant", "content": f"It says little.\n{VERDICT}"}
FILES = {
    "contrast.jsonl": CONTRAST,
    "contrast.yaml": SPEC,
    "sweep.yaml": SWEEP,
    "leaderboard.yaml": SWEEPS,
    "prompts.jsonl": b'{"prompt": "a"}\n{"prompt": "b"}\n',
    "prompts.txt": b"a\nb c\n",
    "template.txt": b"Grade.\n\n{prompt}\n\n{response}\n",
    "judge.json": json.dumps(JUDGE).encode(),
    "reply.json": json.dumps({"choices": [{"index": 0, "message": MESSAGE}], "usage": {"total_tokens": 9}}).encode(),
    "verdict.txt": MESSAGE["content"].encode(),
    "reference.json": b'{"1,-1,2": 0.5, "0,-1,3": -0.25}',
}
KEY = "k" * 64


def build(folder: Path) -> None:
    """Write one file of every kind into the folder."""
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    _interventions(folder)
    _run(folder / "run")
    write_baseline(folder / "baseline.json", make_baseline(RunDirectory(folder / "run")))
    (folder / "store").mkdir()
    with ResponseStore(folder / "store") as store:
        store.put({("context", "a"): Response("text", 1, 0), ("context", "b"): Response((-1.5, True))})
        store._database.execute("PRAGMA journal_mode = DELETE")
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.add(KEY, judge="j", rubric="r", reply=VERDICT, verdict=JudgeVerdict(None, {}, "why"), attempts=1)
        ledger._database.execute("PRAGMA journal_mode = DELETE")
    for path in folder.rglob("*.json"):  # a checksum would refuse any change
        document = json.loads(path.read_bytes())
        if isinstance(document, dict):
            document.pop("sha256", None)
        path.write_text(json.dumps(document))


def _interventions(folder: Path) -> None:
    circuit_of([(1, 2), (0, 3), (7, 5)]).write(folder / "circuit.json")
    universal = {"fraction": 0.1, "share": 0.8, "prompts": 3, "prompts_sha256": "p", "neurons": [[0, 1, 2]]}
    sizes = {"count": 4, "width": 8, "shared_width": 16, "layers": [0, 1]}
    found = {"contrast": "refusal", "fraction": 0.1, "versions": {"torch": "2"}, "universal_filter": universal}
    experts = {
        "schema": "lm-eval-cna/circuit/2",
        "method": "random",
        "name": "refusal",
        "model": {"num_layers": 4, "mlp_width": 8, "experts": sizes},
        "discovery": found,
        "neurons": [
            {"layer": 0, "expert": 1, "index": 2, "delta": 1.5},
            {"layer": 1, "expert": "shared", "index": 9, "delta": None},
            {"layer": 2, "expert": None, "index": 3, "delta": None},
        ],
    }
    (folder / "experts.json").write_text(json.dumps(experts))
    tensors = {0: torch.ones(4), 1: torch.arange(4).float()}
    header = Vectors(method="caa", name="v", place="write", tensors=tensors).model_dump(by_alias=True, mode="json")
    named = {f"layer.{layer}": tensor for layer, tensor in tensors.items()}
    save_file(named, folder / "vectors.safetensors", metadata={"lm-eval-cna": json.dumps(header)})
    (folder / "circuit.stability.json").write_text(record().model_dump_json(by_alias=True))


def _run(path: Path) -> None:
    """A judged run of three cells and a group of tasks."""
    cells = [BASELINE, Cell("cna", 0.0), Cell("random", 0.0, 0)]

    def refusal(cell: Cell, document: int) -> dict[str, Any]:
        text = REFUSAL if (document + (cell.method == "cna")) % 3 else ANSWER
        return answer_metrics(text) | {"unscored": 0.0, "strongreject_score": 0.5, "judge_refusal": 1.0}

    run = write_run(
        path,
        cells,
        {"asked": refusal, "part": lambda cell, document: {"acc": float(document % 2)}},
        n=4,
        plan={
            "judged": ["asked"],
            "rows": 4,
            "tasks": [{"task": "asked"}, {"task": "all", "num_fewshot": 5}],
            "scale": 1.0,
            "limit": 4,
            "weights_sha256": "w",
            "model_args": {"dtype": "float32"},
            "multipliers": [0.0, 1.0],
        },
        groups={"all": ["part"]},
        circuit=((7, 1), (7, 2)),
    )
    rows = [
        {"cell": cell.key, "task": "asked", "doc_id": document, "score": 0.5 if document else None}
        | {"judgements": {"refusal": 0, "convincingness": 3, "specificity": 3} if document else {}}
        | {"unscored_because": None if document else "no verdict in the reply"}
        for cell in cells
        for document in range(4)
    ]
    judged = {
        "judge": {"model": "m", "fingerprint": "f" * 64},
        "rubric_version": "strongreject/1/a/9",
        "verdicts": rows,
    }
    run.write_json(f"judged/{'f' * 12}.json", judged)
    run.write_json("harmless_kl.json", {cell.key: {"values": [0.1, None], "mean": 0.1, "p95": 0.1} for cell in cells})
    proven = {"prompts": 2, "identity": 0.0, "change": 1.5, "layers": [7], "columns_sha256": "c"}
    run.write_json("self_check.json", {"mode": "rows", "noise": 0.0, "interventions": {"circuit.json": proven}})
    write_evidence(run, collect(run))
