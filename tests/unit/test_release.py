"""What a release says of itself in several files is the same thing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import lm_eval_cna
from tests.helpers import versions

ISSUE_FORMS = ("bug.yml", "number.yml", "architecture.yml")


def test_the_version_stands_in_one_place_and_other_files_agree(repo_root: Path) -> None:
    citation = yaml.safe_load((repo_root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lm_eval_cna.__version__
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]
    newest = re.search(
        r"^## (?!Unreleased)(\S+)", (repo_root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest is not None and newest[1] == lm_eval_cna.__version__
    assert 'dynamic = ["version"]' in (repo_root / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_the_check_that_a_clone_has(repo_root: Path) -> None:
    workflow = yaml.safe_load((repo_root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["check"]["steps"][-1] == {"run": ".ci/run"}
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    check, make = ((repo_root / name).read_text(encoding="utf-8") for name in (".ci/run", "Makefile"))
    assert "suite=test\n" in check and 'make "$suite"' in check and "suite=test-all" in check
    assert "test: SELECTED := -m 'not slow'" in make and '"make test-all ' in make


def test_issue_forms_ask_what_is_needed(repo_root: Path) -> None:
    for name in ISSUE_FORMS:
        form = yaml.safe_load((repo_root / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        kinds = {field["type"] for field in form["body"]}
        assert kinds <= {"input", "textarea", "dropdown", "checkboxes", "markdown"}
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_oldest_versions_that_are_claimed_were_run(repo_root: Path) -> None:
    found = versions.records()
    assert versions.RECORDS.joinpath("README.md").read_text(encoding="utf-8") == versions.page(found)
    assert all(one["failed"] == 0 and one["passed"] > 500 for one in found.values())
    oldest, usual = found["oldest"]["versions"], versions.tested_with()
    added = found["oldest"].get("added_since", {})  # by hand, since running all tests with the oldest versions is slow
    assert not added.keys() & oldest.keys()
    for name, claim in versions.claimed().items():
        if name in added:
            assert added[name].startswith(f"{claim}, run on "), f"{name} {claim} is claimed"
            continue
        assert _numbers(oldest[name]) == _numbers(claim), f"{name} {claim} is claimed and {oldest[name]} was run"
    said = (repo_root / "README.md").read_text(encoding="utf-8")
    for name in ("lm_eval", "transformers", "torch"):
        assert f"{name} {_short(oldest[name])}" in said, f"README names another {name} than was run"
    assert f"transformers {usual['transformers']}" in said


def _short(number: str) -> str:
    return ".".join(str(part) for part in _numbers(number))


def _numbers(version: str) -> tuple[int, ...]:
    """The parts of a version, without zeros behind and without a build's own mark (torch's +cpu)."""
    parts = [int(part) for part in version.partition("+")[0].split(".")]
    while parts[-1] == 0:
        parts.pop()
    return tuple(parts)
