"""Run directories from elsewhere: names that lead out of them, links, pipes, and results that do not fit together."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm_eval_cna.analysis.baseline import make_baseline
from lm_eval_cna.analysis.outcomes import read_outcomes
from lm_eval_cna.analysis.verdicts import DamageBudget
from lm_eval_cna.errors import RunError
from lm_eval_cna.organism.store import load_organism
from lm_eval_cna.report.figures import signature
from lm_eval_cna.report.page import write_report
from lm_eval_cna.report.run import read_runs
from lm_eval_cna.results.directory import RunDirectory
from lm_eval_cna.results.reading import read_plan, results_of
from lm_eval_cna.results.summary import read_summary
from lm_eval_cna.sweep.repeat import compare_runs, config_of
from tests.fuzz.good import build
from tests.helpers.report_runs import circuit_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("good")
    build(folder)
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(made, tmp_path / "here" / "run")
    return RunDirectory(tmp_path / "here" / "run")


def change(run: RunDirectory, name: str, how: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((run.path / name).read_bytes())
    how(document)
    (run.path / name).write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["../../../outside", "/etc/passwd", "..", "C:\\x", "a\0b", "x" * 5_000, "", "plain\n"])
def test_a_setting_is_a_name_and_no_path(name: str, run: RunDirectory) -> None:
    shutil.copy(run.path / "cells/baseline/plain.json", run.path.parents[1] / "outside.json")
    change(run, "manifest.json", lambda manifest: manifest["plan"].update(settings=[name]))
    with pytest.raises(RunError, match=r"manifest.json is damaged: plan.settings.0: ") as error:
        read_outcomes(run)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("name", ["../../../outside", "/etc", "..", "a\0b"])
def test_a_method_makes_a_name_that_stays_inside(name: str, run: RunDirectory) -> None:
    change(run, "manifest.json", lambda manifest: manifest["plan"]["cells"][1].update(method=name))
    folders = [run.path / "cells" / cell.key for cell in read_plan(run).cells]
    assert all(folder.parent == run.path / "cells" and os.path.normpath(folder) == str(folder) for folder in folders)
    assert "cna-m0" not in read_outcomes(run).cells


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a\0.json", "cells/./x.json"])
def test_no_name_leads_out_of_a_run_directory(name: str, run: RunDirectory) -> None:
    for use in (run.read_json, run.has, run.remove, lambda name: run.write_json(name, {})):
        with pytest.raises(RunError, match="leads out of the run directory"):
            use(name)
    assert not run.has("x" * 5_000)


def test_folders_that_are_links_out_are_neither_written_to_nor_emptied(run: RunDirectory) -> None:
    outside = run.path.parents[1] / "outside"
    for folder in ("cells", "cells/deep", "figures", "tables"):
        (outside / folder).mkdir(parents=True)
    for name in ("kept.json", "deep/kept.json", "kept.png", "kept.tex"):
        (outside / "cells" / name).write_text("{}")
    for name in ("cells", "figures", "tables"):
        shutil.rmtree(run.path / name, ignore_errors=True)
        (run.path / name).symlink_to(outside / "cells", target_is_directory=True)
    before = sorted(path for path in outside.rglob("*"))
    with pytest.raises(RunError, match=r"cells leads out of .*, to .*outside"):
        run.write_json("cells/new.json", {})
    (run.path / "manifest.json").unlink()
    with pytest.raises(RunError, match="leads out"):  # results without a manifest are removed, but not those
        run.adopt({"plan": {}})
    assert sorted(path for path in outside.rglob("*")) == before


@pytest.mark.parametrize("folder", ["tables", "figures"])
def test_a_report_stays_in_its_place(folder: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
    outside = run.path.parents[1] / "outside"
    outside.mkdir()
    (outside / "kept.tex").write_text(signature("kept"))
    output = run.path.parent / "report"
    output.mkdir()
    (output / folder).symlink_to(outside, target_is_directory=True)
    with pytest.raises(RunError, match=f"{folder} leads out of"):
        write_report([run], output)
    assert [path.name for path in outside.iterdir()] == ["kept.tex"]
    assert [path.name for path in output.iterdir()] == [folder], "nothing was replaced and nothing temporary is left"


def test_a_link_to_a_file_is_read_and_replaced_but_not_written_through(run: RunDirectory) -> None:
    """The hub's cache is made of such links."""
    outside = run.path.parents[1] / "summary.json"
    (run.path / "summary.json").rename(outside)
    (run.path / "summary.json").symlink_to(outside)
    before = outside.read_bytes()
    summary = read_summary(run)
    run.write_json("summary.json", summary.model_dump(by_alias=True))
    assert outside.read_bytes() == before and not (run.path / "summary.json").is_symlink()


@pytest.mark.parametrize("folder", ["cells", "cells/baseline", "judged"])
def test_links_in_a_circle(folder: str, run: RunDirectory) -> None:
    shutil.rmtree(run.path / folder)
    (run.path / folder).symlink_to(run.path / folder)
    read_plan(run)
    for use in (read_outcomes, make_baseline):
        if folder == "judged":
            use(run)  # as if nobody had judged
        else:
            assert not list(results_of(run, read_plan(run), "baseline"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_pipes_and_devices_in_the_place_of_any_file(make: Callable[[Path], None], run: RunDirectory) -> None:
    for path in [path for path in run.path.rglob("*.json") if path.is_file()]:
        kept = path.with_name("kept")
        path.rename(kept)
        make(path)
        started = time.monotonic()
        try:
            with pytest.raises(RunError):
                read_runs([run], DamageBudget())
                raise RunError("a file that a report does without")
            assert time.monotonic() - started < 5
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            kept.rename(path)


def test_a_lock_is_neither_waited_for_nor_made_elsewhere(run: RunDirectory) -> None:
    lock, elsewhere = run.path / ".lock", run.path.parents[1] / "elsewhere"
    os.mkfifo(lock)
    with run.lock():
        pass
    lock.unlink()
    lock.symlink_to(elsewhere)
    with pytest.raises(RunError, match="cannot write to"), run.lock():
        pass
    assert not elsewhere.exists()


def test_an_organism_whose_record_is_a_pipe_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "organism.json")
    assert load_organism(tmp_path) is None


def test_groups_in_a_circle_and_groups_that_double(run: RunDirectory) -> None:
    groups = {f"g{number}": [f"g{number + 1}", f"g{number + 1}", "part"] for number in range(60)}
    groups |= {"g60": ["g0", "part"], "g0": [*groups["g0"], "g0"]}

    def put(results: dict[str, Any]) -> None:
        results["group_subtasks"] = groups
        results["results"] |= {name: {"acc,none": 0.5} for name in groups}

    for cell in ("baseline", "cna-m0"):
        change(run, f"cells/{cell}/plain.json", put)
    started = time.process_time()
    read_outcomes(run)
    assert time.process_time() - started < 3


def test_numbers_that_no_statistic_can_be_made_of_are_left_out(run: RunDirectory) -> None:
    def put(results: dict[str, Any]) -> None:
        for sample, value in zip(results["samples"]["part"], (1e308, float("inf"), float("nan"), 10**200), strict=True):
            sample["acc"] = value

    change(run, "cells/cna-m0/plain.json", put)
    assert read_outcomes(run).of("cna-m0", "all", "acc") == {}
    make_baseline(run)


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("manifest.json", lambda d: d["plan"].pop("cells"), "plan.cells"),
        ("manifest.json", lambda d: d["plan"].update(judged=[{}]), "plan.judged.0"),
        ("manifest.json", lambda d: d["plan"]["cells"][1].update(multiplier=float("nan")), "plan.cells.1.multiplier"),
        ("manifest.json", lambda d: d.update(machine="x"), "machine"),
        ("cells/cna-m0/plain.json", lambda d: d.pop("samples"), "samples"),
        ("cells/cna-m0/plain.json", lambda d: d["samples"]["asked"][1].update(doc_id=[]), "samples.asked.1.doc_id"),
        ("cells/cna-m0/plain.json", lambda d: d["samples"]["asked"][1].update(resps=[[[1]]]), "is no text"),
        ("cells/cna-m0/plain.json", lambda d: d.update(configs=3), "configs"),
        ("cells/cna-m0/plain.json", lambda d: d["samples"].update({"\ud800": []}), "half of a surrogate pair"),
        ("cells/baseline/plain.json", lambda d: d["samples"].pop("asked"), "no scores of the untouched model"),
        (f"judged/{'f' * 12}.json", lambda d: d["verdicts"][1].update(score="x"), "verdicts.1.score"),
        (f"judged/{'f' * 12}.json", lambda d: d.update(rubric_version="CON"), "rubric_version"),
        (f"judged/{'f' * 12}.json", lambda d: d["verdicts"][1].update(judgements={"a": "x"}), "judgements"),
        ("harmless_kl.json", lambda d: d["cna-m0"].pop("values"), "cna-m0.values"),
    ],
)
def test_a_file_that_is_no_such_file_is_named_with_the_place(
    name: str, how: Callable[[dict[str, Any]], Any], says: str, run: RunDirectory
) -> None:
    change(run, name, how)
    with pytest.raises(RunError) as error:
        make_baseline(run)
        compare_runs(run, run)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_a_run_repeats_and_reports_is_what_its_manifest_names_by_hash(run: RunDirectory) -> None:
    kept = circuit_of([(7, 1), (7, 2)], name="run").sha256

    def given(manifest: dict[str, Any]) -> None:
        manifest["plan"] |= {"interventions": {"circuit.json": kept}, "circuit": "hf://owner/repo/circuit.json@main"}
        manifest["plan"] |= {"model": "m", "methods": ["cna"], "tasks": ["asked"]}

    change(run, "manifest.json", given)
    assert config_of(run, run.path.parent / "again").circuit == str(run.path / "circuit.json")
    circuit_of([(7, 1), (7, 3)]).write(run.path / "circuit.json")
    with pytest.raises(
        RunError, match=rf"circuit.json is not what the sweep in .* steers with; got .*; allowed: '?{kept}"
    ):
        config_of(run, run.path.parent / "again")
    with pytest.raises(RunError, match="is not what the sweep"):
        read_runs([run], DamageBudget())
