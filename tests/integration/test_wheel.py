"""What a wheel and a source distribution carry, and that an installed wheel finds it."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.environments import build, call, make_environment

RESOURCES = ("tasks", "contrasts", "circuits", "results/published")


def under(root: Path, folder: str) -> set[str]:
    """Files below a folder, as paths from the root, that are no byte code."""
    return {
        str(path.relative_to(root))
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", repo_root, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_the_package_and_its_resources_and_nothing_else(wheel: Path, repo_root: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = under(repo_root, "lm_eval_cna") - {"lm_eval_cna/autoload.pth"}
    carried = {f"lm_eval_cna/_resources/{name}" for folder in RESOURCES for name in under(repo_root, folder)}
    assert names == package | carried | {"lm_eval_cna.pth"}
    assert "lm_eval_cna/py.typed" in names


def test_the_pth_file_is_one_line_that_site_runs(wheel: Path) -> None:
    (line,) = zipfile.ZipFile(wheel).read("lm_eval_cna.pth").decode().splitlines()
    assert line.startswith("import ")


def test_the_license_and_the_commands_are_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").decode()
    assert "lm-eval-cna = lm_eval_cna.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_an_installed_wheel_finds_its_resources(wheel: Path, repo_root: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", str(wheel))
    code = """
from lm_eval_cna import resources as r
for folder in (r.tasks_dir(), r.contrasts_dir(), r.circuits_dir(), r.published_dir()):
    print(folder)
"""
    folders = [Path(line) for line in call([str(python), "-c", code], cwd=tmp_path).stdout.splitlines()]
    for folder, name in zip(folders, RESOURCES, strict=True):
        assert folder.is_relative_to(tmp_path / "env")
        assert {str(Path(name, file)) for file in under(folder, ".")} == under(repo_root, name)


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, repo_root: Path, tmp_path: Path) -> None:
    sdist = build("sdist", repo_root, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert {"Makefile", "constraints.txt", "tests", "README.md", "LICENSE"} <= {path.name for path in source.iterdir()}
    assert not (source / "results" / "runs").exists()
    again = build("wheel", source, tmp_path / "again")
    contents = [
        {name: archive.read(name) for name in archive.namelist()}
        for archive in (zipfile.ZipFile(wheel), zipfile.ZipFile(again))
    ]
    assert contents[0] == contents[1]
