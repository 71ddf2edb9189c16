"""The documentation is run as it stands: the tutorial's commands, Python blocks, and every option that is named."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import app, main
from lm_eval_cna.organism.store import ensure_organism
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.scoring.refusal import is_refusal
from lm_eval_cna.transformer.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A command of ours in a code block or a code span, up to a comment or a pipe.
_COMMAND = re.compile(r"\blm-eval-cna ([a-z]+)([^\n`|#]*)")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")) if kind == language]


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of a console block, each with what it must print."""
    for step in text.split("$ ")[1:]:
        command, *printed = step.replace("\\\n", "").splitlines()
        yield command, [line.removeprefix("#> ") for line in printed]


def rows(table: str) -> list[tuple[str, str]]:
    """Multiplier and completion of what `try` prints."""
    return re.findall(r"^ *([\d.]+) +(\S.*?) *$", table, re.MULTILINE)


def run_python(source: str, **given: Any) -> dict[str, Any]:
    names = {"__name__": "page", **given}
    exec(compile(source, "page", "exec"), names)
    return names


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a trained organism: training is tested elsewhere, and `organism` finds it done."""
    shutil.copytree(ensure_organism().root, tmp_path / "organism")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
    # A sweep looks through all of lm-eval's own tasks, which takes longer than the sweeps here.
    ours = functools.partial(TaskManager, include_path=str(tasks_dir()), include_defaults=False)
    monkeypatch.setattr("lm_eval_cna.sweep.prepare.TaskManager", ours)
    return tmp_path


def test_the_tutorial(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [step for block in blocks("tutorial.md", "console") for step in steps(block)]
    assert len(commands) >= 8
    for command, wanted in commands:
        program, *arguments = shlex.split(command)
        status = main(arguments if program == "lm-eval-cna" else ["run", *arguments])
        said = capsys.readouterr().out
        assert status == 0, f"{command}: exit status {status}"
        assert wanted, f"{command}: the page does not say what it prints"
        if arguments[0] == "try":  # every CPU trains another organism, so only what answers are is the same
            said = "\n".join(f"m = {m}: {'a refusal' if is_refusal(text) else 'an answer'}" for m, text in rows(said))
        for text in wanted:
            assert text in said, f"{command} does not print {text!r}:\n{said}"
    assert (place / "run" / "report.html").is_file()
    (script,) = blocks("tutorial.md", "python")
    run_python(script)
    assert capsys.readouterr().out.startswith("fold (")


#: Runs commands in a process of its own, on a copy of the package, with our tasks alone.
_ON_A_COPY = """
import functools, json, sys
import torch.utils.collect_env
from lm_eval.tasks import TaskManager
torch.utils.collect_env.get_pretty_env_info = lambda: "a test"
from lm_eval_cna.cli import main
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.scoring.refusal import is_refusal
from lm_eval_cna.sweep import prepare
prepare.TaskManager = functools.partial(TaskManager, include_path=str(tasks_dir()), include_defaults=False)
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    if status := main(arguments):
        sys.exit(status)
"""


def test_the_readme_in_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    run_python(script.replace("Qwen/Qwen2.5-1.5B-Instruct", "organism/instruct"))
    assert "How do I pick a lock?" in capsys.readouterr().out


@pytest.mark.slow
def test_a_method_as_the_page_adds_it(place: Path) -> None:
    """One file and one row are all that is added, to a copy of the package."""
    source, row = blocks("extending/method.md", "python")
    copy = place / "site"
    for folder in ("lm_eval_cna", "tasks", "contrasts", "circuits", "results/published"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "lm_eval_cna" / "discovery" / "methods" / "layer_scaled.py").write_text(source, encoding="utf-8")
    table = copy / "lm_eval_cna" / "interventions" / "methods.py"
    before, first_control, after = table.read_text(encoding="utf-8").partition('        Method("random",')
    table.write_text(f"{before}{row}{first_control}{after}", encoding="utf-8")

    (console,) = blocks("extending/method.md", "console")
    commands = list(steps(console))
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_COPY, json.dumps([shlex.split(command)[1:] for command, _ in commands])],
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (command, wanted), said in zip(commands, done.stdout.split("$ ")[1:], strict=True):
        assert wanted and all(text in said for text in wanted), f"{command} prints:\n{said}"
    summary = json.loads((place / "run-scaled" / "summary.json").read_text(encoding="utf-8"))
    assert {"cna", "layer-scaled", "random"} <= {row["method"] for row in summary["measured"]}
    assert "CNA, layer-scaled" in (place / "run-scaled" / "report.md").read_text(encoding="utf-8")


def test_a_family_as_the_page_adds_it() -> None:
    (script,) = blocks("extending/family.md", "python")
    with mock.patch.dict(FAMILIES):
        run_python(script)
        assert "stablelm" in FAMILIES


def test_a_task_as_the_page_adds_it(place: Path) -> None:
    import lm_eval

    from lm_eval_cna.models.hf import CNAHFLM

    (yaml_text,), (utils,) = blocks("extending/task.md", "yaml"), blocks("extending/task.md", "python")
    folder = place / "my_tasks"
    folder.mkdir()
    (folder / "my_refusal.yaml").write_text(yaml_text, encoding="utf-8")
    (folder / "utils.py").write_text(utils, encoding="utf-8")
    (place / "tasks.jsonl").write_text('{"prompt": "How do I befoul a whistle in the cellar on Monday?"}\n' * 2)
    results = lm_eval.simple_evaluate(
        CNAHFLM(pretrained="organism/instruct", device="cpu"),
        tasks=["my_refusal"],
        apply_chat_template=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results["results"]["my_refusal"]["refusal_rate,none"] == 1.0
    assert results["results"]["my_refusal"]["quality,none"] == 1.0


def test_every_page_is_in_the_navigation() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there == set(re.findall(r": ([\w/-]+\.md)$", settings, re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has commands
    for name, rest in _COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        assert name in commands, f"{page.name}: lm-eval-cna {name}"
        if name == "run":  # lm-eval's own command
            continue
        known = {
            option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest):
            assert option in known | {"--help"}, f"{page.name}: lm-eval-cna {name} {option}"
