"""The command line: parses, calls, prints. Exit status 0 done, 1 regression, 2 wrong input, 130 interrupted.

Floor 6. Heavy modules are imported by the commands that need them, so that `--help` and `show` are quick.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lm_eval_cna.errors import CNAError, ConfigError

app = typer.Typer(
    name="lm-eval-cna",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Steer a model's neurons inside lm-evaluation-harness and measure what it does, with controls.",
)
# Without a terminal there is no screen to fold tables to.
console = Console(width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True)

ModelOption = Annotated[str, typer.Option("--model", help="Model name on the hub, or path.")]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model.")]
DtypeOption = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, mps; by default the best there is.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")]


JudgeModelOption = Annotated[str | None, typer.Option(help="Judge: an lm-eval model, local-chat-completions.")]
JudgeArgsOption = Annotated[str | None, typer.Option(help="Its arguments, model=NAME,base_url=URL,num_concurrent=16.")]


class Method(StrEnum):
    """Methods of `discover`."""

    cna = "cna"
    caa = "caa"
    caa_residual = "caa-residual"
    random = "random"
    random_vectors = "random-vectors"


class Match(StrEnum):
    """What random neurons are matched by."""

    layer = "layer"
    activation = "activation"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval and transformers draw a bar per cell
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if arguments[:1] == ["run"]:  # lm-eval's own command, with its own --help
        from lm_eval_cna.entry import run_lm_eval

        del os.environ["TQDM_DISABLE"], os.environ["TRANSFORMERS_VERBOSITY"]
        return run_lm_eval(arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except CNAError as error:
        if debug:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept, and the same command continues", status=130)
    except Exception as error:
        # typer's usage errors, which it would print as a box; anything else is a bug and keeps its traceback.
        if debug or not hasattr(error, "format_message"):
            raise
        return _fail(f"{error.format_message()}; see --help")


def _fail(message: str, *, status: int = 2) -> int:
    errors.print(f"error: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
    return status


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every command; `main` reads --debug before typer does."""


@app.command()
def demo(output: Annotated[Path, typer.Option(help="Where runs and report go.")] = Path("results/runs/demo")) -> None:
    """Organism, discovery, sweep, report: the main job with nothing to download."""
    from lm_eval_cna.demo import run_demo
    from lm_eval_cna.terminal import progress

    with progress(errors) as tell:
        report = run_demo(output, progress=tell, command=_command())
    _print_report(report)


@app.command()
def organism(output: Annotated[Path, typer.Option(help="Gets base, instruct and diffuse.")]) -> None:
    """Train the organism and write it as Hugging Face checkpoints."""
    from lm_eval_cna.organism.store import ensure_organism
    from lm_eval_cna.terminal import progress

    with progress(errors) as tell:
        paths = ensure_organism(output, progress=lambda stage, done, total: tell(f"training {stage}", done, total, ""))
    console.print(f"{paths.root}: base, instruct, diffuse; {len(paths.planted)} planted neurons", highlight=False)


@app.command()
def discover(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="File to write: .json for circuits, .safetensors for vectors.")],
    contrast: Annotated[str | None, typer.Option(help="Contrast set: a packaged name or a file.")] = None,
    method: Annotated[Method, typer.Option(help="What to find.")] = Method.cna,
    fraction: Annotated[float | None, typer.Option(help="Circuit size, share of all neurons [0.001].")] = None,
    top_k: Annotated[int | None, typer.Option(help="Circuit size in neurons.")] = None,
    exclude_layers: Annotated[str, typer.Option(help="Layers without circuit neurons, 0,1.")] = "",
    universal_filter: Annotated[bool, typer.Option(help="Leave out neurons active on everything.")] = True,
    layer: Annotated[int | None, typer.Option(help="Layer of caa-residual.")] = None,
    like: Annotated[Path | None, typer.Option(help="What a control is matched to.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a control.")] = 0,
    match: Annotated[Match, typer.Option(help="What random neurons are matched by.")] = Match.layer,
    chat_template: Annotated[bool, typer.Option(help="Render prompts with the chat template.")] = True,
    batch_size: BatchOption = 16,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    revision: RevisionOption = None,
) -> None:
    """Find a circuit or vectors, or draw a control, and write the file."""
    control = method in (Method.random, Method.random_vectors)
    suffix = ".safetensors" if method in (Method.caa, Method.caa_residual, Method.random_vectors) else ".json"
    if output.suffix != suffix:
        raise ConfigError(f"--output of {method.value}", got=str(output), allowed=f"a file name ending in {suffix}")
    excluded = tuple(int(number) for number in _numbers("--exclude-layers", exclude_layers)) if exclude_layers else ()
    from lm_eval_cna.attribution import Settings
    from lm_eval_cna.attribution import discover as find
    from lm_eval_cna.contrast import load_contrast
    from lm_eval_cna.intervention import read_intervention

    # Everything that can be wrong in the files is found before the model is loaded.
    prompts = None if control and match is Match.layer and contrast is None else load_contrast(contrast or "refusal")
    matched = None if like is None else read_intervention(like)
    lm = _load(model, dtype=dtype, device=device, revision=revision, batch_size=batch_size)
    found = find(
        lm.model,
        lm.tokenizer,
        prompts,
        method=method.value,
        fraction=fraction,
        top_k=top_k,
        excluded_layers=excluded,
        universal_filter=universal_filter,
        layer=layer,
        like=matched,
        seed=seed,
        match=match.value,
        settings=Settings(chat_template=chat_template, add_bos_token=lm.add_bos_token, batch_size=batch_size),
        model_id=model,
        revision=lm.revision,
    )
    found.write(output)
    console.print(f"wrote {output}", highlight=False, markup=False)
    _print_intervention(found)


@app.command()
def show(file: Annotated[str, typer.Argument(help="An intervention file.")]) -> None:
    """What an intervention is, where it came from, and its layer profile."""
    from lm_eval_cna.intervention import read_intervention

    _print_intervention(read_intervention(file))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A circuit file.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
) -> None:
    """Overlap, Jaccard index and layer profiles of two circuits (base against instruct, say)."""
    from lm_eval_cna.intervention import Circuit, read_intervention
    from lm_eval_cna.report.interventions import overlap_rows, profile_rows
    from lm_eval_cna.terminal import show_table

    circuits: list[Circuit] = []
    for source in (first, second):
        circuit = read_intervention(source)
        if not isinstance(circuit, Circuit):
            raise ConfigError("compare takes circuits", got=f"{source}: {circuit.method}")
        circuits.append(circuit.model_copy(update={"name": source}))  # tells two circuits of one contrast set apart
    show_table(console, "overlap", ("measure", "value"), overlap_rows(*circuits))
    show_table(console, "layer profile", ("circuit", "share in", "all", "top 200"), profile_rows(circuits))


@app.command("try")
def try_(
    model: ModelOption,
    circuit: Annotated[str, typer.Option(help="Circuit or vectors file.")],
    prompt: Annotated[str, typer.Option(help="The prompt, or - to read it from standard input.")],
    multipliers: Annotated[str, typer.Option(help="Multipliers, 0,1,2.")] = "0,1,2",
    scale: Annotated[float, typer.Option(help="Factor of vectors.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens.")] = 150,
    chat_template: Annotated[bool, typer.Option(help="Render the prompt with the chat template.")] = True,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    revision: RevisionOption = None,
) -> None:
    """Completions side by side, to look and not to score."""
    numbers = _numbers("--multipliers", multipliers)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty", do="give --prompt TEXT, or --prompt - and a text on standard input")
    from lm_eval_cna.intervention import read_intervention
    from lm_eval_cna.models.completions import complete
    from lm_eval_cna.steering import Setting
    from lm_eval_cna.terminal import show_table

    intervention = read_intervention(circuit)
    settings = [Setting(intervention, number, scale) for number in numbers]
    lm = _load(model, dtype=dtype, device=device, revision=revision, batch_size=1)
    answers = complete(lm, text, settings, max_new_tokens=max_tokens, chat_template=chat_template)
    rows = [(f"{number:g}", answer) for number, answer in zip(numbers, answers, strict=True)]
    show_table(console, text.strip(), ("m", "completion"), rows)


@app.command()
def sweep(
    config: Annotated[Path | None, typer.Argument(help="YAML file that says the same as the flags, and more.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name on the hub, or path.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; a rerun continues there.")] = None,
    circuit: Annotated[str | None, typer.Option(help="Circuit file; without, it is discovered.")] = None,
    vectors: Annotated[str | None, typer.Option(help="Vectors file for CAA.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Contrast set to discover from [refusal].")] = None,
    methods: Annotated[str | None, typer.Option(help="cna,caa,caa-residual,random,random-vectors.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Size of a discovered circuit [0.001].")] = None,
    random: Annotated[int | None, typer.Option(help="Random control seeds [19].")] = None,
    multipliers: Annotated[str | None, typer.Option(help="Multipliers [0,0.25,0.5,0.75,1,1.5,2].")] = None,
    top_k: Annotated[str | None, typer.Option(help="Circuit sizes to compare, 100,200,400.")] = None,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, a,b.")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents a task, to try things out.")] = None,
    model_args: Annotated[str | None, typer.Option(help="Arguments of cna-hf, dtype=bfloat16,batch_size=32.")] = None,
    mode: Annotated[str | None, typer.Option(help="auto, fold or hook.")] = None,
    judge_model: JudgeModelOption = None,
    judge_model_args: JudgeArgsOption = None,
) -> None:
    """Compare CNA, CAA, random neurons and the baseline over multipliers, from one model load, and report."""
    from lm_eval_cna.sweep.config import parse_config, read_config

    values: dict[str, Any] = read_config(config) if config is not None else {}
    flags: dict[str, Any] = {
        "model": model,
        "output": output,
        "circuit": circuit,
        "vectors": vectors,
        "contrast": contrast,
        "methods": None if methods is None else methods.split(","),
        "fraction": fraction,
        "random": random,
        "multipliers": None if multipliers is None else _numbers("--multipliers", multipliers),
        "top_k": None if top_k is None else _numbers("--top-k", top_k),
        "tasks": tasks,
        "limit": limit,
        "mode": mode,
    }
    values |= {name: value for name, value in flags.items() if value is not None}
    if model_args is not None:
        from lm_eval.utils import simple_parse_args_string

        values["model_args"] = {**values.get("model_args", {}), **simple_parse_args_string(model_args)}
    if judge_model is not None:
        values["judge"] = {**values.get("judge", {}), **_judge_values(judge_model, judge_model_args)}
    checked = parse_config(values)
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.sweep.runner import run_sweep
    from lm_eval_cna.terminal import progress

    with progress(errors) as tell:
        directory = run_sweep(
            checked, progress=lambda done, total, detail: tell("sweep", done, total, detail), command=_command()
        )
    _print_report(write_report([directory], directory.path))


@app.command()
def judge(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    judge_model: JudgeModelOption = None,
    judge_model_args: JudgeArgsOption = None,
    rubric: Annotated[str | None, typer.Option(help="strongreject or rating-10.")] = None,
    judge_template: Annotated[Path | None, typer.Option(help="Your wording, with {prompt} and {response}.")] = None,
    judge_dry_run: Annotated[bool, typer.Option(help="Only count the questions.")] = False,
) -> None:
    """Grade a run's stored responses with a judge; nothing is generated, nothing is asked twice."""
    if judge_model is None:
        raise ConfigError("no judge is named", do="give --judge-model NAME and --judge-model-args ARGS")
    from lm_eval_cna.judging.config import parse_judge
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.sweep.judged import judge_run
    from lm_eval_cna.sweep.rundir import RunDirectory
    from lm_eval_cna.terminal import progress

    values = _judge_values(judge_model, judge_model_args) | {"rubric": rubric, "judge_template": judge_template}
    config = parse_judge({name: value for name, value in values.items() if value is not None})
    run_directory = RunDirectory(directory)
    if judge_dry_run:
        console.print(f"{judge_run(run_directory, config, dry_run=True)} questions to ask", highlight=False)
        return
    with run_directory.lock(), progress(errors) as tell:
        judge_run(run_directory, config, progress=lambda done, total, detail: tell("judge", done, total, detail))
    _print_report(write_report([run_directory], directory))


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run directory, or a folder of such.")]) -> None:
    """Write report.md and figures/ of finished runs."""
    from lm_eval_cna.report.page import write_report
    from lm_eval_cna.sweep.rundir import find_runs

    _print_report(write_report(find_runs(directory), directory))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run() -> None:
    """lm-eval's own command with this plugin loaded; `main` hands it over before typer looks at the arguments."""


def _judge_values(model: str, arguments: str | None) -> dict[str, Any]:
    return {"model": model, "model_args": arguments or {}}


def _load(model: str, *, dtype: str, device: str | None, revision: str | None, batch_size: int) -> Any:
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError("--dtype", got=dtype, allowed="auto, float32, float16, bfloat16")
    from lm_eval_cna.models.hf import CNAHFLM

    return CNAHFLM(pretrained=model, dtype=dtype, device=device, revision=revision, batch_size=batch_size)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    from lm_eval_cna.sweep.config import parse_numbers

    return parse_numbers(name, text)


def _print_intervention(intervention: Any) -> None:
    from lm_eval_cna.intervention import Circuit
    from lm_eval_cna.report.interventions import facts, profile_rows
    from lm_eval_cna.terminal import show_table

    show_table(console, intervention.name, ("what", "value"), facts(intervention))
    if isinstance(intervention, Circuit):
        show_table(console, "layer profile", ("circuit", "share in", "all", "top 200"), profile_rows([intervention]))


def _print_report(path: Path) -> None:
    """Print the report without its figures, rendered on a terminal, and say where it is."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("!["))
    if console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(text, hyperlinks=False))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


def _command() -> list[str]:
    return ["lm-eval-cna", *sys.argv[1:]]
