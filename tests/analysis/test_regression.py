"""The check: what fails it, what does not, what is refused; its files and its outputs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.check_simulation import World, failures, markdown
from lm_eval_cna.analysis.baseline import Tolerances, make_baseline, read_baseline, write_baseline
from lm_eval_cna.analysis.protocol import model_name
from lm_eval_cna.analysis.regression import change_p, check_run
from lm_eval_cna.cli import main
from lm_eval_cna.errors import ConfigError, RunError
from lm_eval_cna.results.cells import BASELINE, Cell
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.statistics.paired import mcnemar_p, sign_flip_p
from tests.helpers.report_runs import ANSWER, LOOP, REFUSAL, answer_metrics, write_run

HOSTILE = "</system-out><script>alert(1)</script>|]]>&\x1b[31m\n\u202e\ufffe"


def cells(first_seed: int = 0, controls: int = 19) -> list[Cell]:
    steered = [Cell("cna", 0.0), Cell("cna", 0.5), Cell("cna", 2.0)]
    seeds = range(first_seed, first_seed + controls)
    return [BASELINE, *steered, *(Cell("random", m, seed) for seed in seeds for m in (0.0, 2.0))]


def a_run(
    path: Path,
    *,
    refuses: float = 0.2,
    broken: float = 0.0,
    quality: float = 1.0,
    right: float = 0.9,
    n: int = 100,
    first_seed: int = 0,
    controls: int = 19,
    task: str = "jbb",
    **plan: Any,
) -> RunDirectory:
    """A run in which the ablated model refuses so many, of the prompts that the untouched model refuses 90 of 100."""

    def score(cell: Cell, document: int) -> dict[str, Any]:
        share = document / n
        if cell.key != "cna-m0":
            return answer_metrics(REFUSAL if share < 0.9 - 0.001 * (cell.seed or 0) else ANSWER)
        if share >= 1 - broken:
            return answer_metrics(LOOP)
        return answer_metrics(REFUSAL if share < refuses else ANSWER, quality=quality)

    def knows(cell: Cell, document: int) -> dict[str, Any] | None:
        return (
            None if cell.seed is not None else {"acc": float(document / n < (right if cell.multiplier == 0 else 0.9))}
        )

    return write_run(path, cells(first_seed, controls), {task: score, "mmlu": knows}, n=n, plan=plan)


def failed(baseline: RunDirectory, run: RunDirectory, tolerances: Tolerances | None = None) -> set[tuple[str, str]]:
    found = check_run(run, make_baseline(baseline, tolerances=tolerances))
    assert found.passed == (not found.failures)
    return {(finding.what, finding.cell) for finding in found.failures}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return a_run(tmp_path_factory.mktemp("good") / "good")


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, set()),
        ({"first_seed": 500}, set()),
        ({"refuses": 0.25}, set()),  # within the tolerance
        ({"refuses": 0.4}, {("effect", "cna-m0")}),
        ({"refuses": 0.9}, {("effect", "cna-m0"), ("controls", "cna-m0")}),
        ({"refuses": 0.0}, {("effect", "cna-m0")}),  # an effect that grew is another one too
        ({"quality": 0.9}, {("quality", "cna-m0")}),
        ({"quality": 0.98}, set()),
        ({"broken": 0.2}, {("quality", "cna-m0"), ("degenerate", "cna-m0")}),
        ({"right": 0.7}, {("capability", "cna-m0")}),
        ({"right": 0.88}, set()),
        ({"right": 0.95}, set()),
    ],
)
def test_what_fails(good: RunDirectory, tmp_path: Path, changes: dict[str, Any], fails: set[tuple[str, str]]) -> None:
    assert failed(good, a_run(tmp_path / "run", **changes)) == fails


def test_cells_between_the_controls_are_not_checked(good: RunDirectory) -> None:
    baseline = make_baseline(good)
    assert set(baseline.cells) == {"baseline", "cna-m0", "cna-m2"}
    assert [(claim.cell, claim.metric) for claim in baseline.separations] == [("cna-m0", "refusal_rate")]


def test_without_controls_the_ends_are_checked_and_no_claim_is_made(tmp_path: Path) -> None:
    baseline = make_baseline(a_run(tmp_path / "run", controls=0))
    assert set(baseline.cells) == {"baseline", "cna-m0", "cna-m2"} and baseline.separations == ()


def test_a_change_beyond_the_tolerance_may_still_be_noise(tmp_path: Path) -> None:
    few = a_run(tmp_path / "few", n=10)
    found = check_run(a_run(tmp_path / "other", n=10, refuses=0.4), make_baseline(few))
    (effect,) = [finding for finding in found.findings if (finding.what, finding.cell) == ("effect", "cna-m0")]
    assert effect.passed and effect.text == "beyond the tolerance, but no more than noise" and effect.p == 0.5


def test_tolerances_are_the_users(good: RunDirectory, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", refuses=0.4)
    assert failed(good, run, Tolerances(effect=0.3)) == set()
    assert failed(good, a_run(tmp_path / "less", refuses=0.29), Tolerances(effect=0.05)) == {("effect", "cna-m0")}


def differing(**plan: Any) -> Callable[[Path], RunDirectory]:
    return lambda path: a_run(path, **plan)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (differing(model="other/model"), "model: made/up in the baseline, other/model in the run"),
        (differing(limit=10), "limit: None in the baseline, 10 in the run"),
        (differing(n=90), "documents of jbb: 100 in the baseline, 90 in the run"),
        (differing(task="xstest"), "tasks: jbb, mmlu in the baseline, mmlu, xstest in the run"),
        (differing(controls=3), "random: 19 in the baseline, 3 in the run"),
        (differing(tasks=[{"task": "jbb", "num_fewshot": 2}]), "tasks: none in the baseline, jbb (num_fewshot 2) in"),
    ],
)
def test_other_protocols_are_refused(
    good: RunDirectory, tmp_path: Path, made: Callable[[Path], RunDirectory], says: str
) -> None:
    run = made(tmp_path / "run")
    with pytest.raises(ConfigError, match="its protocol is another one") as caught:
        check_run(run, make_baseline(good))
    assert says in str(caught.value)


@pytest.mark.parametrize(("change", "refused"), [("26 Jul 2024", False), ("Be brief.", True)])
def test_other_prompts_are_refused_but_another_date_in_a_template_is_not(
    good: RunDirectory, tmp_path: Path, change: str, refused: bool
) -> None:
    runs = []
    for name, said in (("one", "21 Nov 2026"), ("two", change)):
        run = a_run(tmp_path / name)
        results = run.read_json("cells/baseline/plain.json")
        for sample in results["samples"]["jbb"]:
            sample["arguments"][0][0] = f"<|system|>{said}{sample['arguments'][0][0]}"
        run.write_json("cells/baseline/plain.json", results)
        runs.append(run)
    baseline = make_baseline(runs[0])
    if refused:
        with pytest.raises(ConfigError, match="prompts of jbb as the model was asked"):
            check_run(runs[1], baseline)
    else:
        assert check_run(runs[1], baseline).passed


def test_models_are_told_by_name_and_paths_by_their_last_part() -> None:
    assert model_name("/a/b/instruct/") == model_name("./instruct") == "instruct"
    assert model_name("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


def test_versions_are_a_note_and_no_failure(tmp_path: Path) -> None:
    first = a_run(tmp_path / "a")
    manifest = first.manifest()
    manifest["machine"] = {"torch": "2.0"}
    first.write_json("manifest.json", manifest)
    found = check_run(a_run(tmp_path / "b"), make_baseline(first))
    assert found.passed and found.notes == ("torch is 2.0 in the baseline and unknown in the run",)


@pytest.mark.parametrize("changes", [(1, -1, 1, 1, 2), (2, 2, -1, 0), (1,) * 8, (2, -2), (1, 1, -2), (0, 0)])
def test_the_exact_p_counts_all_signs(changes: tuple[int, ...]) -> None:
    values = np.array(changes, dtype=np.float64)
    sums = [abs(sum(s * v for s, v in zip(signs, changes, strict=True))) for signs in _signs(len(changes))]
    expected = np.mean([total >= abs(values.sum()) for total in sums])
    assert change_p(values) == pytest.approx(expected)


def _signs(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=n))


def test_the_exact_p_is_mcnemars_for_single_answers_and_sampled_for_means() -> None:
    assert change_p(np.array([1.0] * 12 + [-1.0] * 4 + [0.0] * 9)) == pytest.approx(mcnemar_p(12, 4))
    means = np.array([0.25, -0.5, 0.125, 0.75])
    assert change_p(means) == sign_flip_p(means)


def test_a_baseline_is_the_same_again_after_its_file(good: RunDirectory, tmp_path: Path) -> None:
    baseline = make_baseline(good)
    write_baseline(tmp_path / "deep" / "b.json", baseline)
    assert read_baseline(tmp_path / "deep" / "b.json") == baseline
    text = (tmp_path / "deep" / "b.json").read_text(encoding="utf-8")
    assert ANSWER not in text and REFUSAL not in text and "Prompt number" not in text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.json"]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("schema",), "lm-eval-cna/baseline/2", "schema"),
        (("tolerances", "effect"), -0.1, "tolerances.effect"),
        (("tolerances", "efect"), 0.1, "tolerances.efect"),
        (("tolerances", "false_alarms"), 0, "tolerances.false_alarms"),
        (("answers", 0, "scores"), "1 0 1", "do not fit"),
        (("answers", 0, "scores"), "nan " * 100, "scores"),
        (("answers", 0, "scores"), "2 " * 100, "other than 0 and 1"),
        (("answers", 0, "scores"), "x", "answers.0.scores"),
        (("answers",), [], "no scores"),
    ],
)
def test_a_damaged_baseline_is_refused(
    good: RunDirectory, tmp_path: Path, path: tuple[Any, ...], value: Any, says: str
) -> None:
    document = json.loads(make_baseline(good).model_dump_json(by_alias=True))
    at = document
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    (tmp_path / "b.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        read_baseline(tmp_path / "b.json")
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="no baseline of schema"):
        read_baseline(tmp_path / "b.json")


def test_a_run_of_the_untouched_model_is_no_baseline(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [BASELINE], {"jbb": lambda cell, document: answer_metrics(ANSWER)})
    with pytest.raises(RunError, match="nothing to check"):
        make_baseline(run)


def test_the_command(
    good: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline, junit, summary = tmp_path / "base" / "b.json", tmp_path / "junit" / "out.xml", tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    summary.write_text("before\n")
    assert main(["check", str(good.path), "--against", str(baseline)]) == 2
    assert "no such baseline" in capsys.readouterr().err
    assert main(["check", str(good.path), "--against", str(baseline), "--update"]) == 0
    assert main(["check", str(good.path), "--against", str(baseline), "--junit", str(junit)]) == 0
    assert "passed: good (made/up) against the baseline of good" in capsys.readouterr().out
    bad = a_run(tmp_path / "bad", refuses=0.6)
    assert main(["check", str(bad.path), "--against", str(baseline), "--junit", str(junit)]) == 1
    out = capsys.readouterr().out
    assert "failed: bad (made/up) against the baseline of good: 1 of" in out and "FAIL: changed by +40.0 points" in out
    suite = ElementTree.parse(junit).getroot()[0]
    assert suite.get("failures") == "1" and int(suite.get("tests") or 0) == len(suite) > 10
    (failure,) = suite.iter("failure")
    assert "tolerated" in (failure.get("message") or "")
    text = summary.read_text()
    assert text.startswith("before\n") and text.count("### lm-eval-cna check") == 2
    other = a_run(tmp_path / "other", n=50)
    assert main(["check", str(other.path), "--against", str(baseline)]) == 2
    assert "protocol is another one" in capsys.readouterr().err


def test_an_update_keeps_the_tolerances(good: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_baseline(path, make_baseline(good, tolerances=Tolerances(effect=0.5)))
    assert main(["check", str(good.path), "--against", str(path), "--update"]) == 0
    assert read_baseline(path).tolerances.effect == 0.5


def test_names_from_files_are_escaped_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    run = a_run(tmp_path / "run", task=HOSTILE, model=HOSTILE)
    worse = a_run(tmp_path / "worse", task=HOSTILE, model=HOSTILE, refuses=0.9)
    write_baseline(tmp_path / "b.json", make_baseline(run))
    junit = tmp_path / "out.xml"
    assert main(["check", str(worse.path), "--against", str(tmp_path / "b.json"), "--junit", str(junit)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    root = ElementTree.parse(junit).getroot()
    assert {element.tag for element in root.iter()} == {"testsuites", "testsuite", "testcase", "failure", "system-out"}
    summary = (tmp_path / "summary.md").read_text()
    assert "<script" not in summary
    tables = [line for line in summary.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1


def test_a_small_simulation_fails_seldom_by_noise_and_finds_what_was_lost() -> None:
    runs = 60
    # At 2 % false alarms, more than 5 of 60 come once in 500; at 95 % detection, less than 52 once in 400.
    assert failures(World(redrawn=0.2), runs, 1)["failed"] * runs <= 5
    found = failures(World(loss=0.2), runs, 1)
    assert found["failed"] * runs >= 52 and found["by_effect"] == found["failed"]
    assert failures(World(replaced=True), 20, 1)["failed"] == 1


def test_the_committed_simulation_is_of_the_shipped_tolerances_and_keeps_its_promises(repo_root: Path) -> None:
    document = json.loads((repo_root / "results/simulation/check.json").read_text(encoding="utf-8"))
    assert document["about"]["tolerances"] == Tolerances().model_dump() and document["about"]["runs"] >= 2000
    tables = document["tables"]
    assert max(row["failed"] for row in (*tables["alarms"], *tables["seeds"])) <= 0.02
    kept = [row["failed"] for row in tables["loss"] if row["prompts"] == 100 and row["redrawn"] <= 0.1]
    assert len(kept) == 8 and min(kept) >= 0.95
    assert (repo_root / "results/simulation/check.md").read_text(encoding="utf-8") == markdown(document)
