"""The stock lm-eval of this environment finds us, installed editable and from a wheel; and `python -m lm_eval_cna`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from lm_eval.api.registry import model_registry

from lm_eval_cna import CNAError
from lm_eval_cna.plugin import run_lm_eval
from tests.helpers.environments import build, call, make_environment

OURS = {"jbb_harmful_refusal", "jbb_benign_refusal"}

#: What a plain interpreter must not have loaded when its start is over.
UNWANTED = ("lm_eval", "torch", "transformers", "typing", "logging", "importlib.metadata", "pathlib")

LOOK = f"""
import json, sys
unwanted = [name for name in {UNWANTED!r} if name in sys.modules]
import lm_eval.models
from lm_eval.api.registry import model_registry
registered = "cna-hf" in model_registry
built_in = "hf" in model_registry
early = "torch" in sys.modules or "lm_eval_cna.models.hf" in sys.modules
import lm_eval_cna
print(json.dumps([unwanted, registered, built_in, early, lm_eval_cna.__file__]))
"""


@pytest.fixture(scope="module", params=[pytest.param("editable", marks=pytest.mark.slow), "wheel"])
def python(request: pytest.FixtureRequest, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the package installed in one of the two ways."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "editable":
        return make_environment(folder / "env", "--editable", str(repo_root))
    return make_environment(folder / "env", str(build("wheel", repo_root, folder / "dist")))


def look(python: Path, **environment: str) -> tuple[list[str], bool, bool, bool, str]:
    """What a fresh interpreter sees of us: see ``LOOK``."""
    done = call([str(python), "-c", LOOK], cwd=python.parent, **environment)
    result: tuple[list[str], bool, bool, bool, str] = json.loads(done.stdout)
    return result


def test_the_model_is_known_and_nothing_is_loaded_for_it(python: Path, repo_root: Path) -> None:
    unwanted, registered, built_in, early, file = look(python)
    assert unwanted == []
    assert (registered, built_in, early) == (True, True, False)
    at_home = Path(file).is_relative_to(repo_root)
    assert at_home == (not list(python.parent.parent.glob("lib/python*/site-packages/lm_eval_cna/plugin.py")))


def test_it_can_be_switched_off(python: Path) -> None:
    unwanted, registered, built_in, _, _ = look(python, LM_EVAL_CNA_AUTOLOAD="0")
    assert unwanted == []
    assert (registered, built_in) == (False, True)


def test_entry_points_are_the_tables_and_tasks_are_found_beside_lm_evals_own(python: Path) -> None:
    code = f"""
from importlib.metadata import distribution
from lm_eval.tasks import TaskManager
from lm_eval_cna.plugin import MODELS
from lm_eval_cna.resources import tasks_dir
found = {{point.name: point.value for point in distribution("lm-eval-cna").entry_points.select(group="lm_eval.models")}}
assert found == MODELS, (found, MODELS)
known = TaskManager()
missing = {OURS | {"arc_easy"}!r} - set(known.all_tasks)
assert not missing, missing
assert known.task_index["jbb_harmful_refusal"].yaml_path.is_relative_to(tasks_dir())
assert TaskManager(include_defaults=False).all_tasks == []
assert {OURS!r} <= set(TaskManager(include_defaults=False, include_path=tasks_dir()).all_tasks)
"""
    assert "overrides" not in call([str(python), "-c", code], cwd=python.parent).stderr


def test_our_run_is_lm_evals_command(python: Path) -> None:
    command = [str(python), "-m", "lm_eval_cna", "run", "run", "--help"]
    done = call(command, cwd=python.parent, LM_EVAL_CNA_AUTOLOAD="0")
    assert "--model_args" in done.stdout


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (None, 0, ""),
        (SystemExit(), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("no tasks"), 1, "no tasks\n"),
        (CNAError("bad\nfile", got=1), 2, "error: bad file; got 1\n"),
    ],
)
def test_exit_status(
    outcome: BaseException | None,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def instead_of_lm_eval() -> None:
        assert sys.argv == ["lm_eval", "--model", "cna-hf"]
        assert "cna-hf" in model_registry
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", instead_of_lm_eval)
    before = list(sys.argv)
    assert run_lm_eval(["--model", "cna-hf"]) == status
    assert sys.argv == before
    assert capsys.readouterr().err == words


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_lm_eval([])
