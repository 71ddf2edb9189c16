"""Commands on run directories: sweep, judge, report, repeat."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm_eval_cna.cli import launch
from lm_eval_cna.cli.options import (
    CapabilityOption,
    JudgeArgsOption,
    JudgeModelOption,
    QualityOption,
    RunsArgument,
    SamplesOption,
    arguments_of,
    completed,
    judge_values,
    whole_numbers,
)
from lm_eval_cna.cli.output import errors, print_report, runs_in, say, typed_command
from lm_eval_cna.cli.output import output as console
from lm_eval_cna.cli.terminal import progress, show_table
from lm_eval_cna.errors import ConfigError

DIFFERENT = 1
_SHOWN = 20  # differences; the first ones are the largest

if TYPE_CHECKING:
    from threading import Event

    from lm_eval_cna.sweep.config import SweepConfig
    from lm_eval_cna.sweep.executors.base import Executor


def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file with the same options as the flags and more, or with many runs.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name on the hub, or path.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; the same command continues there.")] = None,
    circuit: Annotated[str | None, typer.Option(help="Circuit file; without one, the circuit is discovered.")] = None,
    vectors: Annotated[str | None, typer.Option(help="Vectors file for CAA.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Contrast set to discover from [refusal].")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="cna,caa,caa-residual,top-activation,random,random-bottom,random-middle,random-top,random-vectors."
        ),
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Size of a discovered circuit [0.001].")] = None,
    random: Annotated[int | None, typer.Option(help="Number of random controls [19].")] = None,
    multipliers: Annotated[str | None, typer.Option(help="Multipliers [0,0.25,0.5,0.75,1,1.5,2].")] = None,
    top_k: Annotated[str | None, typer.Option(help="Circuit sizes to compare, 100,200,400.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate a discovered circuit over this many folds of its prompts.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most documents of each task, for trying things out.")] = None,
    model_args: Annotated[
        str | None, typer.Option(help="Arguments of cna-hf or cna-vllm, such as dtype=bfloat16.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="auto, rows, fold or hook.")] = None,
    engine: Annotated[str | None, typer.Option(help="hf (transformers) or vllm.")] = None,
    judge_model: JudgeModelOption = None,
    judge_model_args: JudgeArgsOption = None,
    wandb_args: Annotated[
        str | None, typer.Option("--wandb_args", "--wandb-args", help="Log each cell to W&B, project=NAME.")
    ] = None,
    wandb_config_args: Annotated[
        str | None, typer.Option("--wandb_config_args", "--wandb-config-args", help="Config entries of W&B runs.")
    ] = None,
    trackio_args: Annotated[
        str | None, typer.Option("--trackio_args", "--trackio-args", help="Log each cell to Trackio, project=NAME.")
    ] = None,
    hf_hub_log_args: Annotated[
        str | None,
        typer.Option("--hf_hub_log_args", "--hf-hub-log-args", help="lm-eval's files of each cell, and their upload."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|local", help="Compute on a Ray cluster: HOST:PORT, auto, or local.")
    ] = None,
    cpus_per_task: Annotated[float | None, typer.Option(help="With --ray: cores of each worker [1].")] = None,
    gpus_per_task: Annotated[
        float | None, typer.Option(help="With --ray: GPUs of each worker [1 where the cluster has any].")
    ] = None,
    samples: SamplesOption = True,
) -> None:
    """Compare CNA, CAA, random neurons and the baseline over multipliers, from one model load, and report."""
    from lm_eval_cna.sweep.config import parse_config, parse_numbers, read_config
    from lm_eval_cna.sweep.many_config import holds_runs, parse_runs

    judge = judge_values(judge_model, judge_model_args)
    flags: dict[str, Any] = {
        "model": model,
        "output": output,
        "circuit": circuit,
        "vectors": vectors,
        "contrast": contrast,
        "methods": None if methods is None else methods.split(","),
        "fraction": fraction,
        "random": random,
        "multipliers": None if multipliers is None else parse_numbers("--multipliers", multipliers),
        "top_k": None if top_k is None else whole_numbers("--top-k", top_k),
        "folds": folds,
        "tasks": tasks,
        "limit": limit,
        "mode": mode,
        "engine": engine,
    }
    mappings = {
        name: arguments_of(f"--{name.replace('model_args', 'model-args')}", text)
        for name, text in (
            ("model_args", model_args),
            ("wandb_args", wandb_args),
            ("wandb_config_args", wandb_config_args),
            ("trackio_args", trackio_args),
            ("hf_hub_log_args", hf_hub_log_args),
        )
        if text is not None
    }
    if judge is not None:
        mappings["judge"] = judge

    def with_flags(values: dict[str, Any]) -> dict[str, Any]:
        values = values | {name: value for name, value in flags.items() if value is not None}
        return values | {name: completed(values, name, more) for name, more in mappings.items()}

    values: dict[str, Any] = read_config(config) if config is not None else {}
    if holds_runs(values):
        own = [f"--{name}" for name in ("model", "circuit", "vectors") if flags[name] is not None]
        if own:
            raise ConfigError(f"{own[0]} with a file of many runs", do="each run says its own")
        if launch.processes() > 1:
            raise ConfigError("a file of many runs in several processes", do="use --ray, or start each run by itself")
        root = {} if output is None else {"output": str(output)}
        flags["output"] = None
        _sweep_many(parse_runs(values | root, with_flags), ray, cpus_per_task, gpus_per_task)
        return
    checked = parse_config(with_flags(values))
    if launch.rank() > 0:
        from lm_eval_cna.sweep.executors.processes import Processes, follow

        with Processes() as processes:
            follow(processes, checked)
        return
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.sweep.runner import run_sweep

    with progress(errors) as tell, _executors(ray, cpus_per_task, gpus_per_task) as executors:
        executor = None if executors is None else executors(None)
        directory = run_sweep(checked, progress=tell, command=typed_command(), executor=executor)
    print_report(write_report([directory], directory.path, samples=samples))


def _sweep_many(configs: list[SweepConfig], ray: str | None, cpus: float | None, gpus: float | None) -> None:
    """Run the sweeps of a file, and print the command that ranks them in one table."""
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.sweep.many import run_sweeps

    with progress(errors) as tell, _executors(ray, cpus, gpus) as executors:
        directories = run_sweeps(configs, progress=tell, command=typed_command(), executors=executors)
    for directory in directories:
        say(f"report: {write_report([directory], directory.path)}")
    paths = [str(directory.path) for directory in directories]
    board = Path(os.path.commonpath([os.path.dirname(path) for path in paths])) / "leaderboard"
    say(f"all in one table: lm-eval-cna leaderboard {shlex.join(paths)} --output {shlex.quote(str(board))}")


@contextmanager
def _executors(address: str | None, cpus: float | None, gpus: float | None) -> Iterator[Callable[..., Executor] | None]:
    """Yield a function that makes the executor of a sweep; None runs the sweep in this process."""
    if address is None:
        if (cpus, gpus) != (None, None):
            raise ConfigError(
                "--cpus-per-task and --gpus-per-task without a cluster", do="give --ray ADDRESS|local too"
            )
        if launch.processes() > 1:
            from lm_eval_cna.sweep.executors.processes import Processes, ProcessExecutor

            with Processes() as processes:
                yield lambda stop: ProcessExecutor(processes)
        else:
            yield None
        return
    if launch.processes() > 1:
        raise ConfigError("--ray in several processes", do="start the command alone; Ray starts its workers itself")
    from lm_eval_cna.sweep.executors.ray import RayExecutor, cluster

    def executor(stop: Event | None) -> Executor:
        return RayExecutor(cpus_per_task=1 if cpus is None else cpus, gpus_per_task=gpus, stop=stop)

    executor(None)  # fails early on wrong numbers
    with cluster(address):
        yield executor


def judge(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    judge_model: JudgeModelOption = None,
    judge_model_args: JudgeArgsOption = None,
    rubric: Annotated[str | None, typer.Option(help="strongreject or rating-10.")] = None,
    judge_template: Annotated[Path | None, typer.Option(help="Your wording, with {prompt} and {response}.")] = None,
    judge_dry_run: Annotated[bool, typer.Option(help="Only count the questions; ask nothing.")] = False,
    samples: SamplesOption = True,
) -> None:
    """Grade a run's stored responses with a judge; nothing is generated, nothing is asked twice."""
    if judge_model is None:
        raise ConfigError("no judge is named", do="give --judge-model NAME and --judge-model-args ARGS")
    from lm_eval_cna.judging.config import parse_judge
    from lm_eval_cna.judging.judge_run import judge_run
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.results.directory import RunDirectory

    wording = {"rubric": rubric, "judge_template": judge_template}
    values = {**(judge_values(judge_model, judge_model_args) or {}), **wording}
    config = parse_judge({name: value for name, value in values.items() if value is not None})
    run = RunDirectory(directory)
    run.manifest()  # fails before a lock file is left in some other folder
    if judge_dry_run:
        say(f"{judge_run(run, config, dry_run=True)} questions to ask")
        return
    with run.lock(), progress(errors) as tell:
        judge_run(run, config, progress=tell)
    print_report(write_report([run], directory, samples=samples))


def report(
    directories: RunsArgument,
    output: Annotated[Path | None, typer.Option(help="Directory of the report [DIR, if there is only one].")] = None,
    samples: SamplesOption = True,
    quality: QualityOption = 0.95,
    capability: CapabilityOption = 1.0,
) -> None:
    """Write report.html, report.md, tables/*.tex and figures/ of finished runs."""
    from lm_eval_cna.analysis.verdicts import DamageBudget
    from lm_eval_cna.report.page import write_report

    if output is None and len(directories) > 1:
        raise ConfigError("a report of several directories has no place", do="say where with --output DIR")
    budget = DamageBudget(quality=quality, capability=capability / 100)
    print_report(write_report(runs_in(directories), output or directories[0], budget=budget, samples=samples))


def repeat(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A run's manifest.json, or its directory.")],
    output: Annotated[Path | None, typer.Option(help="Directory of the second run [DIR-repeat].")] = None,
) -> None:
    """Run a finished sweep again from its manifest and compare; exit status 1 if a number differs."""
    from lm_eval_cna.results.directory import RunDirectory
    from lm_eval_cna.sweep.repeat import compare_runs, config_of

    first = RunDirectory(manifest.parent if manifest.name == "manifest.json" else manifest)
    whole = first.path.resolve()
    config = config_of(first, output or whole.with_name(f"{whole.name}-repeat"))
    from lm_eval_cna.sweep.runner import run_sweep

    with progress(errors) as tell:
        again = run_sweep(config, progress=tell, command=typed_command())
    found = compare_runs(first, again)
    if found.circumstances:
        show_table(console, "circumstances that differ", ("what", "first", "again"), found.circumstances)
    for name in found.interventions:
        say(f"another {name}: what was found in the second run is not what the first one found")
    if found.differences:
        title = f"{len(found.differences)} of {found.compared} numbers differ"
        rows = [
            (d.cell, d.task, d.metric, *("-" if v is None else f"{v:.6g}" for v in (d.first, d.again)))
            for d in found.differences[:_SHOWN]
        ]
        show_table(console, title, ("cell", "task", "metric", "first", "again"), rows)
    if found.left_out:
        say(f"note: {found.left_out} numbers depend on a judge, which is not asked again")
    if not found.same:
        say(f"not repeated: {len(found.differences)} of {found.compared} numbers differ; second run: {again.path}")
        raise typer.Exit(DIFFERENT)
    identical = (first.path / "summary.json").read_bytes() == (again.path / "summary.json").read_bytes()
    say(
        f"repeated: {found.compared} numbers are the same"
        f"{', and summary.json to the letter' if identical else ''}; second run: {again.path}"
    )
