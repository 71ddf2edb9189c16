"""DESIGN section 3: imports go down and never in a circle, and some packages must not know others at all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

#: Package, or file at the top -> floor. A new package needs a line here: choose its floor on purpose.
FLOORS = {
    "errors": 1,
    "files": 1,
    "scoring": 1,
    "transformer": 2,
    "statistics": 2,
    "resources": 2,
    "contrast": 3,
    "interventions": 3,
    "organism": 3,
    "behaviours": 3,
    "plugin": 3,
    "discovery": 4,
    "steering": 4,
    "results": 4,
    "autoload": 4,
    "validation": 5,
    "models": 5,
    "judging": 5,
    "analysis": 5,
    "sweep": 6,
    "report": 6,
    "paper": 7,
    "demo": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,  # the public API, imported lazily
}

#: Package -> what it must not import, whatever the floors say. They meet in the intervention file.
STRANGERS = {"discovery": {"steering"}, "steering": {"discovery"}}

#: Packages that read results only, and the libraries that would make that slow.
LIGHT = ("scoring", "statistics", "results", "analysis", "report", "behaviours")
HEAVY = {"torch", "transformers"}

PACKAGE = Path(__file__).resolve().parents[2] / "lm_eval_cna"


def modules() -> dict[str, Path]:
    """Dotted name inside the package (``scoring.refusal``, ``__init__``) -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "_resources":
            found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str) -> Iterator[str]:
    """Every absolute name that the source imports, at module level, inside functions or for types only.

    ``import lm_eval_cna`` counts as the names that are then taken from it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "lm_eval_cna" or alias.asname)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lm_eval_cna":
            yield f"lm_eval_cna.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(names: Iterator[str]) -> set[str]:
    """The modules or sub-packages of ours among the names, as keys of ``FLOORS``; the version is anybody's."""
    parts = [name.split(".") for name in names]
    ours = {part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "lm_eval_cna"}
    return {name if name in FLOORS else "__init__" for name in ours - {"__version__"}}


def faults(module: str, source: str) -> list[str]:
    """What the source of a module breaks of the floor rule, in words."""
    key = module.split(".")[0]
    if key not in FLOORS:
        return [f"lm_eval_cna.{module} stands on no floor: give {key!r} one in FLOORS of tests/unit/test_floors.py"]
    if key == "__init__":
        return []
    found = [
        f"lm_eval_cna.{module} (floor {FLOORS[key]}) imports {other!r} (floor {FLOORS[other]})"
        for other in sorted(inside(imported(source)))
        if FLOORS[other] > FLOORS[key]
    ]
    found += [
        f"lm_eval_cna.{module} must not know {other!r}"
        for other in sorted(inside(imported(source)) & STRANGERS.get(key, set()))
    ]
    if key in LIGHT:
        found += [
            f"lm_eval_cna.{module} imports {name}: {key} runs without {name.split('.')[0]}"
            for name in imported(source)
            if name.split(".")[0] in HEAVY
        ]
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The nodes of a circle in a graph, or nothing where there is none."""
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    assert not faults(module, modules()[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("errors", "from lm_eval_cna import contrast", "imports 'contrast'"),
        ("scoring.text", "def f():\n    import lm_eval_cna.cli", "imports 'cli'"),
        ("contrast", "from lm_eval_cna import CNAError", "imports '__init__'"),
        ("contrast", "import lm_eval_cna\nlm_eval_cna.steer", "imports '__init__'"),
        ("contrast", "import lm_eval_cna as us", "imports '__init__'"),
        ("discovery", "from lm_eval_cna.steering.apply import steer", "must not know 'steering'"),
        ("steering", "if TYPE_CHECKING:\n    from lm_eval_cna.discovery import discover", "must not know 'discovery'"),
        ("analysis.tables", "import torch.nn", "runs without torch"),
        ("scoring.refusal", "from transformers import AutoTokenizer", "runs without transformers"),
        ("novelty", "", "stands on no floor"),
    ],
)
def test_a_fault_is_found(module: str, source: str, word: str) -> None:
    (fault,) = faults(module, source)
    assert word in fault


def test_no_packages_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module, path in modules().items():
        if (key := module.split(".")[0]) != "__init__":
            edges.setdefault(key, set()).update(inside(imported(path.read_text(encoding="utf-8"))) - {key})
    assert circle(edges) == []
    assert max(FLOORS.values()) <= 9 and len(FLOORS) <= 28


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("package", [name for name in LIGHT if (PACKAGE / name).is_dir()])
def test_light_packages_load_without_heavy_libraries(package: str) -> None:
    names = [f"lm_eval_cna.{name}" for name in modules() if name.split(".")[0] == package]
    assert names
    code = f"import {', '.join(names)}, sys; print(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_every_module_is_on_a_page_of_the_documentation() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (PACKAGE.parent / "docs" / "api").glob("*.md")]
    shown = re.findall(r"^::: lm_eval_cna\.(\w+)$", "".join(pages), re.MULTILINE)
    # A sub-package is shown with everything in it.
    there = {name.split(".")[0] for name in modules()} - {"__init__", "__main__"}
    assert sorted(shown) == sorted(there), "a new module takes a line `::: lm_eval_cna.NAME` on a page of docs/api"


def test_every_class_has_a_name_of_its_own() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name.lstrip("_"), []).append(module)
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}
