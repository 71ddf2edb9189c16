"""The import hook against a stand-in for lm-eval: versions, other hooks, reloads, threads and failures in seconds.

Every case is a script in an interpreter of its own, since the hook changes the interpreter.
tests/integration/test_entry.py does the same with the real lm-eval.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STAND_IN = {
    "lm_eval/__init__.py": "",
    "lm_eval/api/__init__.py": "",
    "lm_eval/api/registry.py": """
class Registry(dict):
    def register(self, name, *, target):
        assert name not in self, "registered twice"
        self[name] = target

model_registry = Registry()
""",
    "lm_eval/models/__init__.py": """
from lm_eval.api.registry import model_registry
if "hf" not in model_registry:
    model_registry.register("hf", target="somewhere:HFLM")
""",
    "lm_eval/tasks/__init__.py": "from lm_eval.tasks.manager import TaskManager",
    "lm_eval/tasks/manager.py": """
class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
        self.indexed = (["defaults"] if include_defaults else []) + [str(path) for path in given]
""",
}


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with a package ``lm_eval`` of the parts of 0.4.13 that the hook touches."""
    for name, source in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return tmp_path


Run = Callable[..., str]


@pytest.fixture
def run(stand_in: Path, repo_root: Path) -> Run:
    """Runs code after what autoload.pth says, and gives its output; a really installed .pth file is switched off."""
    pth = (repo_root / "lm_eval_cna" / "autoload.pth").read_text(encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{stand_in}{os.pathsep}{repo_root}", "LM_EVAL_CNA_AUTOLOAD": "0"}

    def run(code: str, *, autoload: bool = True) -> str:
        setup = "import os; os.environ.pop('LM_EVAL_CNA_AUTOLOAD')\n" if autoload else ""
        command = [sys.executable, "-c", f"{setup}{pth}\n{code}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=stand_in, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


REGISTERED = """
import lm_eval.models
from lm_eval.api.registry import model_registry
ours = {"cna-hf": "lm_eval_cna.models.hf:CNAHFLM", "cna-vllm": "lm_eval_cna.models.vllm:CNAVLLM"}
assert model_registry == {"hf": "somewhere:HFLM", **ours}, model_registry
"""


def test_models_are_registered_after_the_built_in_ones_and_nothing_is_imported_before(run: Run) -> None:
    code = f"""
import sys
early = sorted(name for name in sys.modules if name.startswith(("lm_eval", "typing", "logging")))
assert early == ["lm_eval_cna", "lm_eval_cna.autoload"], early
{REGISTERED}"""
    assert run(code) == ""


def test_switched_off_it_does_nothing_until_register_is_called(run: Run) -> None:
    code = """
import sys, lm_eval.models
from lm_eval.api.registry import model_registry
assert list(model_registry) == ["hf"]
assert not [name for name in sys.modules if name.startswith("lm_eval_cna")]
import lm_eval_cna
lm_eval_cna.register()
from lm_eval.tasks import TaskManager
assert list(model_registry) == ["hf", "cna-hf", "cna-vllm"]
assert len(TaskManager().indexed) == 2
"""
    run(code, autoload=False)


def test_a_missing_package_is_silent(stand_in: Path, repo_root: Path) -> None:
    pth = (repo_root / "lm_eval_cna" / "autoload.pth").read_text(encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -S: no site-packages, so no lm_eval_cna either; -P: nor the current folder.
    command = [sys.executable, "-S", "-P", "-c", f"{pth}\nimport sys; print('lm_eval_cna' in sys.modules)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=stand_in, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_native_discovery_is_left_alone(stand_in: Path, run: Run) -> None:
    with (stand_in / "lm_eval/api/registry.py").open("a", encoding="utf-8") as registry:
        registry.write("\ndef load_plugins(group, registry):\n    return []\n")
    code = """
import lm_eval.models
from lm_eval.api.registry import model_registry
assert list(model_registry) == ["hf"]
from lm_eval.tasks import TaskManager
assert len(TaskManager().indexed) == 2, "tasks are not plugins there either"
"""
    assert run(code) == ""


def test_where_tasks_come_from(run: Run, repo_root: Path) -> None:
    ours = str(repo_root / "tasks")
    code = f"""
from pathlib import Path
from lm_eval.tasks import TaskManager
ours = {ours!r}
assert TaskManager().indexed == ["defaults", ours]
assert TaskManager().include_path is None
assert TaskManager(include_path="mine").indexed == ["defaults", ours, "mine"], "the user's come last and win"
assert TaskManager(None, ["a", "b"], metadata={{}}).indexed == ["defaults", ours, "a", "b"]
assert TaskManager(include_path=["a"]).include_path == ["a"]
assert TaskManager(include_path=Path(ours)).indexed == ["defaults", ours], "not twice"
assert TaskManager(include_path="mine", include_defaults=False).indexed == ["mine"], "only what was named"
class Sub(TaskManager):
    pass
assert Sub().indexed == ["defaults", ours]
"""
    run(code)


def test_reloads_register_again_and_once(run: Run) -> None:
    code = f"""{REGISTERED}
import importlib, lm_eval.api.registry, lm_eval.tasks.manager
importlib.reload(lm_eval.models)
assert "cna-hf" in model_registry
importlib.reload(lm_eval.api.registry)
importlib.reload(lm_eval.models)
assert "cna-hf" in lm_eval.api.registry.model_registry
for _ in range(2):
    importlib.reload(lm_eval.tasks.manager)
    assert len(lm_eval.tasks.manager.TaskManager().indexed) == 2
import lm_eval_cna, lm_eval_cna.autoload, sys
lm_eval_cna.register()
lm_eval_cna.register()
lm_eval_cna.autoload.install()
assert len(lm_eval.tasks.manager.TaskManager().indexed) == 2
assert sum(type(finder).__module__ == "lm_eval_cna.autoload" for finder in sys.meta_path) == 1
"""
    run(code)


def test_modules_look_as_if_nobody_had_watched(run: Run) -> None:
    code = """
import importlib.util, inspect, sys
from importlib.machinery import SourceFileLoader
assert "TaskManager" in importlib.util.find_spec("lm_eval.tasks.manager").loader.get_source("lm_eval.tasks.manager")
import lm_eval.models, lm_eval.tasks.manager
for module in (lm_eval.models, lm_eval.tasks.manager):
    assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader
assert "class TaskManager" in inspect.getsource(lm_eval.tasks.manager)
assert list(inspect.signature(lm_eval.tasks.manager.TaskManager).parameters)[1] == "include_path"
"""
    run(code)


@pytest.mark.parametrize("place", ["0", "1", "len(sys.meta_path)"])
def test_another_hook_of_this_kind_works_beside_it(run: Run, place: str) -> None:
    code = f"""
import importlib.util, sys
class Other:
    active = False
    executed = []
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("lm_eval.") or self.active:
            return None
        self.active = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.active = False
        original = spec.loader.exec_module
        def exec_module(module):
            self.executed.append(name)
            original(module)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert({place}, Other())
{REGISTERED}
from lm_eval.tasks import TaskManager
assert len(TaskManager().indexed) == 2
if {place!r} != "len(sys.meta_path)":  # behind the path finder it is never asked
    assert "lm_eval.models" in Other.executed
"""
    run(code)


def test_threads(run: Run) -> None:
    code = """
import sys, threading
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
found, errors = [], []
def work(number):
    start.wait()
    try:
        if number % 2:
            import lm_eval_cna
            lm_eval_cna.register()
        import lm_eval.models
        from lm_eval.tasks import TaskManager
        from lm_eval.api.registry import model_registry
        found.append((sorted(model_registry), len(TaskManager().indexed)))
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(20)
assert not errors, errors
assert found == [(["cna-hf", "cna-vllm", "hf"], 2)] * 8, found
"""
    run(code)


def test_our_failure_is_a_warning_and_theirs_an_error(stand_in: Path, run: Run) -> None:
    (stand_in / "lm_eval/api/registry.py").write_text("class model_registry(dict): pass\n", encoding="utf-8")
    (stand_in / "lm_eval/models/__init__.py").write_text("LOADED = True\n", encoding="utf-8")
    (stand_in / "lm_eval/tasks/manager.py").write_text("raise RuntimeError('theirs')\n", encoding="utf-8")
    code = """
import lm_eval.models
assert lm_eval.models.LOADED
try:
    import lm_eval.tasks
except RuntimeError as error:
    assert str(error) == "theirs"
else:
    raise AssertionError("their error was swallowed")
"""
    lines = run(code).splitlines()
    assert len(lines) == 1
    assert "could not add itself to lm_eval.models" in lines[0]
    assert "python -m lm_eval_cna run" in lines[0]
