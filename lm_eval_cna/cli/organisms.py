"""Commands that need no download: train the organism, run the demo on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lm_eval_cna.cli.options import SamplesOption
from lm_eval_cna.cli.output import errors, print_report, say, typed_command
from lm_eval_cna.cli.terminal import progress


def demo(
    output: Annotated[Path, typer.Option(help="Directory for runs and report.")] = Path("results/runs/demo"),
    samples: SamplesOption = True,
) -> None:
    """Train the organism, find its circuit, sweep and report, without any download."""
    from lm_eval_cna.demo import run_demo

    with progress(errors) as tell:
        report = run_demo(output, progress=tell, command=typed_command(), samples=samples)
    print_report(report)


def organism(
    output: Annotated[Path, typer.Option(help="Directory for the checkpoints base, instruct and diffuse.")],
) -> None:
    """Train the organism and write it as Hugging Face checkpoints."""
    from lm_eval_cna.organism.store import ensure_organism

    with progress(errors) as tell:
        paths = ensure_organism(output, progress=tell)
    say(f"{paths.root}: base, instruct, diffuse; {len(paths.planted)} planted neurons")
