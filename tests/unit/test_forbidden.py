"""What the package must never call: whatever runs or builds what a file says. Words in comments do not count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    [*(ROOT / "lm_eval_cna").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("tasks/**/*.py")]
)

IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "telnetlib"}
#: Last names of calls, with the object that they are called on where it matters.
CALLS = {
    ("", "eval"),
    ("", "exec"),
    ("", "__import__"),
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("os", "system"),
    ("os", "popen"),
    ("tempfile", "mktemp"),
    ("np", "load"),
    ("numpy", "load"),
    ("pd", "read_pickle"),
}
#: Keyword arguments with values that open a door.
ARGUMENTS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"imports {name.name}" for name in node.names if name.name.split(".")[0] in IMPORTS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in IMPORTS:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and ("", node.func.id) in CALLS:
                yield f"calls {node.func.id}"
            if isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if owner and (owner, node.func.attr) in CALLS:
                    yield f"calls {owner}.{node.func.attr}"
            for argument in node.keywords:
                value = argument.value.value if isinstance(argument.value, ast.Constant) else None
                if any(argument.arg == name and value is bad for name, bad in ARGUMENTS):
                    yield f"passes {argument.arg}={value}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_a_file_says_is_run_or_built(path: Path) -> None:
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from joblib import load",
        "import os\nos.system('true')",
        "def f(x):\n    return eval(x)",
        "import torch\ntorch.load('f')",
        "import yaml\nyaml.load('a', Loader=yaml.Loader)",
        "import subprocess\nsubprocess.run('true', shell=True)",
        "import numpy as np\nnp.load('f')",
        "f(weights_only=False)",
    ],
)
def test_a_planted_fault_is_found(planted: str) -> None:
    assert list(faults(planted))


def test_words_and_harmless_relatives_are_no_faults() -> None:
    harmless = '"""pickle, eval(x), torch.load"""\nimport yaml, re\nmodel.eval()\nyaml.safe_load("a")\nf(shell=False)\n'
    assert not list(faults(harmless))
