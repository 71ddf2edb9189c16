"""What a release says of itself in several files is the same thing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import lm_eval_cna

ISSUE_FORMS = ("bug.yml", "number.yml", "architecture.yml")


def test_the_version_stands_in_one_place_and_other_files_agree(repo_root: Path) -> None:
    citation = yaml.safe_load((repo_root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lm_eval_cna.__version__
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]
    newest = re.search(r"^## (\S+)", (repo_root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest[1] == lm_eval_cna.__version__
    assert 'dynamic = ["version"]' in (repo_root / "pyproject.toml").read_text(encoding="utf-8")


def test_issue_forms_ask_what_is_needed(repo_root: Path) -> None:
    for name in ISSUE_FORMS:
        form = yaml.safe_load((repo_root / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        kinds = {field["type"] for field in form["body"]}
        assert kinds <= {"input", "textarea", "dropdown", "checkboxes", "markdown"}
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert any(field.get("validations", {}).get("required") for field in form["body"])
