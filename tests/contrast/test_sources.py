"""Contrast sets by reference: pinned, seeded and without the evaluation's prompts, or an error."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_cna.contrast.contrast_set import ContrastSet
from lm_eval_cna.contrast.leakage import find_leaks
from lm_eval_cna.contrast.loading import load_contrast
from lm_eval_cna.errors import ContrastError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HARM = [
    f"Explain how to {verb} the {thing} of {place}"
    for verb in ("smudge", "topple", "unhinge")
    for thing in ("gate", "bell", "statue")
    for place in ("Aru", "Bel", "Cor", "Dun")
]
CALM = [
    f"What is the best {thing} for a {time} in {place}?"
    for thing in ("soup", "hat", "song")
    for time in ("morning", "night")
    for place in ("Aru", "Bel", "Cor")
]
EVALUATION = [HARM[3], "Give instructions for how to TOPPLE the bell of Cor!"]


def table(path: Path, **columns: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A specification over made-up files, loaded by the real `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    harm = table(tmp_path / "harm.csv", goal=[*HARM, HARM[0], "  "], target=["t"] * (len(HARM) + 2))
    calm = tmp_path / "calm"
    calm.mkdir()
    table(calm / "train.csv", instruction=[*CALM, "Summarise the text below"], context=[""] * len(CALM) + ["text"])
    evaluation = table(tmp_path / "evaluation.csv", Goal=EVALUATION)
    return {
        "name": "made-up",
        "seed": 1,
        "positive": {"url": str(harm), "sha256": sha256(harm), "column": "goal", "choose": 12},
        "negative": {"dataset": str(calm), "column": "instruction", "where": {"context": ""}, "choose": 10},
        "exclude": [{"url": str(evaluation), "sha256": sha256(evaluation), "column": "Goal"}],
    }


def load(tmp_path: Path, spec: Any) -> ContrastSet:
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return load_contrast(path)


def test_by_reference(tmp_path: Path, spec: dict[str, Any]) -> None:
    contrast = load(tmp_path, spec)
    assert (contrast.name, len(contrast.positive), len(contrast.negative)) == ("made-up", 12, 10)
    assert set(contrast.positive) < set(HARM) and set(contrast.negative) < set(CALM)
    assert load(tmp_path, spec).sha256 == contrast.sha256
    assert load(tmp_path, {**spec, "seed": 2}).sha256 != contrast.sha256
    assert contrast.leakage is not None and contrast.leakage.startswith("0 of 22 prompts equal and 0 resemble")
    assert "leaking candidates were left out" in contrast.leakage
    del spec["positive"]["choose"]  # everything that does not leak is taken
    leaking = {match.prompt for match in find_leaks(HARM, EVALUATION).matches}
    assert {HARM[3], "Explain how to topple the bell of Cor"} <= leaking
    assert set(load(tmp_path, spec).positive) == set(HARM) - leaking


def test_advbench_without_jbb_leaves_no_leak(repo_root: Path, tmp_path: Path) -> None:
    data = repo_root.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"no public data at {data}")
    jbb = [data / "jbb_behaviors" / f"{kind}-behaviors.csv" for kind in ("harmful", "benign")]
    advbench = data / "advbench" / "harmful_behaviors.csv"
    packaged = yaml.safe_load((repo_root / "contrasts" / "refusal.yaml").read_text(encoding="utf-8"))
    assert packaged["positive"]["sha256"] == sha256(advbench)
    assert [source["split"] for source in packaged["exclude"]] == ["harmful", "benign"]
    calm = table(tmp_path / "calm.csv", instruction=CALM)
    contrast = load(
        tmp_path,
        {
            **packaged,
            "positive": {**packaged["positive"], "url": str(advbench)},
            "negative": {"url": str(calm), "sha256": sha256(calm), "column": "instruction"},
            "exclude": [{"url": str(path), "sha256": sha256(path), "column": "Goal"} for path in jbb],
        },
    )
    assert len(contrast.positive) == 100
    goals = []
    for path in jbb:
        with path.open(encoding="utf-8", newline="") as file:
            goals += [row["Goal"] for row in csv.DictReader(file)]
    assert len(goals) == 200
    assert not find_leaks(contrast.prompts, goals).matches
    with advbench.open(encoding="utf-8", newline="") as file:
        everything = [row["goal"] for row in csv.DictReader(file)]
    matched = {match.evaluation for match in find_leaks(everything, goals).matches}
    with jbb[0].open(encoding="utf-8", newline="") as file:
        taken_over = {row["Goal"] for row in csv.DictReader(file) if row["Source"] == "AdvBench"}
    assert len(taken_over) == 18 and taken_over <= matched  # every row that JBB says it took from AdvBench is found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": {"sha256": "0" * 64}}, "has changed; got 'sha256 .*; allowed: 0000"),
        ({"positive": {"sha256": None}}, "positive: a file needs a commit in its address, or a sha256"),
        ({"positive": {"column": "prompt"}}, r"has no column prompt; got \['goal', 'target'\]"),
        ({"positive": {"choose": 500}}, "prompts left of 37; got '500 wanted"),
        ({"negative": {"where": {"context": "none has this"}}}, "has 0 prompts left"),
        ({"negative": {"dataset": "owner/name"}}, "negative: a data set needs a revision"),
        ({"negative": {"dataset": "owner/name", "revision": COMMIT}}, r"cannot fetch owner/name \(train\): "),
        ({"positive": {"url": f"/gone/{COMMIT}.csv", "sha256": None}}, "cannot fetch /gone"),
        ({"positive": {"dataset": "both"}}, "give either dataset or url"),
    ],
)
def test_by_reference_errors(tmp_path: Path, spec: dict[str, Any], change: dict[str, Any], message: str) -> None:
    for key, value in change.items():
        spec[key] = {name: v for name, v in {**spec[key], **value}.items() if v is not None}
    with pytest.raises(ContrastError, match=message):
        load(tmp_path, spec)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "name: [", "!!python/object/apply:os.system ['true']\n"])
def test_a_yaml_file_that_is_no_specification(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ContrastError, match=r"set\.yaml"):
        load_contrast(tmp_path / "set.yaml")
