"""Virtual environments with the package installed in a given way and everything else borrowed from this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, *what: str) -> Path:
    """Install ``what`` (pip's words) without network or dependencies; return the environment's interpreter.

    The heavy packages are reached by a plain path line: nothing in the other site-packages' own .pth files runs, so
    neither the plugin nor the checkout can come from anywhere but ``what``.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "zz_borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *what], cwd=folder)
    return python


def call(command: list[str], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout, so that nothing is imported from the current folder; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LM_EVAL_CNA_AUTOLOAD")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**kept, **environment}, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build(target: str, source: Path, folder: Path) -> Path:
    """Build the ``wheel`` or ``sdist`` of a source tree with the installed build backend."""
    call([sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)], cwd=source)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built
