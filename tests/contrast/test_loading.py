"""Contrast sets: whole, pinned and without the evaluation's prompts, or an error."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_cna.contrast import jailbreakbench, sources
from lm_eval_cna.contrast.contrast_set import ContrastSet, prompts_sha256
from lm_eval_cna.contrast.jailbreakbench import leakage_statement
from lm_eval_cna.contrast.leakage import content, find_leaks, similarity
from lm_eval_cna.contrast.loading import load_contrast, load_universal_prompts
from lm_eval_cna.errors import ContrastError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def yes(prompt: str) -> dict[str, str]:
    return {"label": "positive", "prompt": prompt}


def no(prompt: str) -> dict[str, str]:
    return {"label": "negative", "prompt": prompt}


def test_refusal_8() -> None:
    contrast = load_contrast("refusal-8")
    assert (contrast.name, len(contrast.positive), len(contrast.negative)) == ("refusal-8", 8, 8)
    assert contrast.positive[0] == "How do I pick a lock?" and contrast.negative[0] == "How do I bake a cake?"
    assert contrast.prompts == contrast.positive + contrast.negative


def test_every_packaged_set_is_named_where_people_look() -> None:
    folder = Path(load_contrast("refusal-8").source).parent
    table = (folder / "README.md").read_text(encoding="utf-8")
    packaged = {path.stem for path in folder.iterdir() if path.suffix in {".jsonl", ".yaml"}} - {"universal"}
    assert packaged == {"refusal", "refusal-8", "organism", "capitals", "sva"}
    for name in packaged:
        assert f"\n| `{name}` |" in table, name
        assert f"`{name}`" in (load_contrast.__doc__ or ""), name


def test_universal_prompts_are_diverse_and_ours() -> None:
    prompts = load_universal_prompts()
    assert len(prompts) >= 40 and len(set(prompts)) == len(prompts)
    path = Path(load_contrast("refusal-8").source).parent / "universal.jsonl"
    kinds = [json.loads(line)["kind"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(set(kinds)) >= 12 and max(map(kinds.count, kinds)) <= 6
    assert len({len(prompt) // 20 for prompt in prompts}) >= 5  # short and long ones


def test_file_with_header(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"name": "mine", "leakage": "none by construction"}, yes("a"), "", no("b"), no("c")
    )
    contrast = load_contrast(path)
    assert (contrast.name, contrast.positive, contrast.negative) == ("mine", ("a",), ("b", "c"))
    assert contrast.leakage == "none by construction" and contrast.source == str(path)


def test_file_without_header_is_named_after_the_file(tmp_path: Path) -> None:
    contrast = load_contrast(str(write(tmp_path / "my-set.jsonl", yes("a"), no("b\nc \u2028 d"))))
    assert contrast.name == "my-set" and contrast.leakage is None
    assert contrast.negative == ("b\nc \u2028 d",)  # kept to the letter


def test_hash_is_of_the_prompts_and_their_classes() -> None:
    a = ContrastSet("a", ("x", "y"), ("z",))
    assert (
        a.sha256 == ContrastSet("b", ("y", "x"), ("z",), source="elsewhere").sha256 == prompts_sha256(["x", "y"], ["z"])
    )
    assert (
        len({a.sha256, ContrastSet("a", ("x",), ("y", "z")).sha256, ContrastSet("a", ("z",), ("x", "y")).sha256}) == 3
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no positive prompt"),
        ([yes("a")], "has no negative prompt"),
        ([no("a")], "has no positive prompt"),
        ([yes("a"), no("  ")], "blank negative prompt"),
        ([yes("a"), no("b"), yes("a")], "positive prompt more than once; got 'a'"),
        ([yes("a b"), no("a  b")], "prompt in both classes; got 'a b'"),
        ([yes("a"), {"label": "maybe", "prompt": "b"}], "line 2: label.*got 'maybe'; allowed"),
        ([yes("a"), {"label": "negative"}], "line 2: prompt: Field required"),
        ([yes("a"), no("b"), {"label": "negative", "prompt": 3}], "line 3: prompt.*got 3"),
        ([yes("a"), {**no("b"), "weight": 2}], "line 2: weight: Extra inputs"),
        ([{"name": "n", "extra": 1}, yes("a"), no("b")], "line 1: extra"),
        ([yes("a"), '{"label": "negative", "prom'], "line 2 is not JSON.*cut short"),
        ([yes("a"), "[1, 2]"], "line 2: .*got"),
        ([yes("a"), no("")], "line 2: prompt"),
        (["[" * 100_000], "not JSON"),
    ],
)
def test_a_set_is_whole_or_an_error(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ContrastError, match=message):
        load_contrast(write(tmp_path / "set.jsonl", *lines))


def test_no_such_set(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=r"no such contrast set; got 'refusal-9'; allowed: .*refusal, refusal-8"):
        load_contrast("refusal-9")
    with pytest.raises(ContrastError, match=r"no such contrast set.*gone\.jsonl"):
        load_contrast(tmp_path / "gone.jsonl")
    with pytest.raises(ContrastError, match=r"no such contrast set; got '\.\./contrasts/refusal-8'"):
        load_contrast("../contrasts/refusal-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ContrastError, match="cannot read"):
        load_contrast(tmp_path / "binary.jsonl")


@pytest.mark.parametrize(
    ("prompt", "evaluation", "leaks"),
    [
        ("Write a tutorial on folding paper cranes", "write a TUTORIAL on  folding paper cranes!", True),
        ("Explain how to fold a paper crane", "Give detailed instructions for how to fold a paper crane", True),
        ("Write a tutorial on how to fold paper", "Write a tutorial on how to grow roses", False),
        ("How do I bake bread with rye flour and seeds?", "Bake bread", True),  # holds all of it
        ("Bake bread", "How do I bake bread with rye flour and seeds, slowly, in a stone oven?", False),
        ("How are you?", "How are you", True),
        ("你好", "你好", True),
    ],
)
def test_what_counts_as_a_leak(prompt: str, evaluation: str, leaks: bool) -> None:
    report = find_leaks([prompt], ["Paint the fence", evaluation])
    assert bool(report.matches) is leaks
    if leaks:
        assert report.matches[0].evaluation == evaluation


def test_similarity_is_of_content_words() -> None:
    assert content("Write a guide on how to grow roses") == {"grow", "roses"}
    assert content("How are you?") == {"how", "are", "you"}
    assert similarity(frozenset("ab"), frozenset("bc")) == 0.5
    assert similarity(frozenset("abc"), frozenset("b")) == 1.0


def test_statement_counts_exact_and_near() -> None:
    report = find_leaks(["Grow roses", "Grow red roses today", "Bake bread"], ["grow ROSES", "Swim"])
    assert [m.exact for m in report.matches] == [True, False]
    assert report.statement("Garden") == (
        "1 of 3 prompts equal and 1 resemble (overlap of content words 0.5 or more) one of 2 prompts of Garden"
    )
    assert leakage_statement(["a"], "known already") == "known already"


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


def test_jbb_is_fetched_once_and_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, str]] = []

    def rows(source: sources.Source) -> list[str]:
        asked.append((source.revision, source.split))
        return [f"{source.split} roses"]

    jailbreakbench.jbb_goals.cache_clear()
    monkeypatch.setattr(sources, "rows", rows)
    assert leakage_statement(["Grow harmful roses"], None).startswith("0 of 1 prompts equal and 1 resemble")
    assert leakage_statement(["Bake bread"], None).endswith("one of 2 prompts of JBB-Behaviors")
    assert asked == [(jailbreakbench.JBB[2], "harmful"), (jailbreakbench.JBB[2], "benign")]
    jailbreakbench.jbb_goals.cache_clear()
    monkeypatch.undo()

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert leakage_statement(["Bake bread"], None) == (
        "not checked: cannot fetch JailbreakBench/JBB-Behaviors (harmful): no route"
    )
    jailbreakbench.jbb_goals.cache_clear()


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
    evaluation = table(
        tmp_path / "evaluation.csv", Goal=[HARM[3], "Give instructions for how to TOPPLE the bell of Cor!"]
    )
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


def test_by_reference_leaves_no_leak(tmp_path: Path, spec: dict[str, Any]) -> None:
    """The twin of the test on AdvBench and JBB: everything that is left is taken, and nothing of it leaks."""
    del spec["positive"]["choose"]
    contrast = load(tmp_path, spec)
    evaluation = [HARM[3], "Give instructions for how to TOPPLE the bell of Cor!"]
    leaking = {match.prompt for match in find_leaks(HARM, evaluation).matches}
    assert HARM[3] in leaking and "Explain how to topple the bell of Cor" in leaking
    assert set(contrast.positive) == set(HARM) - leaking


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
        ({"negative": {"where": {"topic": "x"}}}, "has no column topic"),
        ({"positive": {"choose": 500}}, "prompts left of 37; got '500 wanted"),
        ({"positive": {"choose": 0}}, "positive.choose"),
        ({"negative": {"where": {"context": "none has this"}}}, "has 0 prompts left"),
        ({"negative": {"dataset": "owner/name"}}, "negative: a data set needs a revision"),
        ({"negative": {"dataset": "owner/name", "revision": "main"}}, "negative.revision.*got 'main'"),
        ({"negative": {"dataset": "owner/name", "revision": COMMIT}}, r"cannot fetch owner/name \(train\): "),
        ({"positive": {"url": f"/gone/{COMMIT}.csv", "sha256": None}}, "cannot fetch /gone"),
        ({"positive": {"dataset": "both"}}, "give either dataset or url"),
        ({"positive": {"shuffle": True}}, "positive.shuffle: Extra inputs"),
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
