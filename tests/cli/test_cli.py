"""The command line as a user types it: every command once, every wrong input one line and status 2."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_cna.cli import main
from lm_eval_cna.cli.output import typed_command
from lm_eval_cna.errors import InterventionError
from lm_eval_cna.interventions.circuit import Circuit
from lm_eval_cna.interventions.reading import read_intervention
from lm_eval_cna.interventions.stability import read_stability
from lm_eval_cna.resources import tasks_dir
from lm_eval_cna.sweep.config import SweepConfig
from tests.helpers.checkpoints import save_llama

BAR = re.compile(r"it/s\]|^\s*$")
COMMANDS = ("demo", "organism", "discover", "show", "compare", "try", "sweep", "report")


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


class Command:
    """`lm-eval-cna` in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, *arguments: str | Path) -> Done:
        self.capture.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = self.capture.readouterr()
        # tqdm reads TQDM_DISABLE when it is imported, here long before `main` sets it.
        return Done(status, out, "".join(line for line in err.splitlines(keepends=True) if not BAR.search(line)))

    def refused(self, *arguments: str | Path) -> str:
        """The one line of a wrong input."""
        done = self(*arguments)
        assert done.status == 2, done
        return one_line(done)


def one_line(done: Done) -> str:
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert "Traceback" not in done.err
    return lines[0]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """What `main` sets for its process is not left to other tests; lm-eval's slow start is not waited for."""
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
            patched.setenv(name, os.environ.get(name, ""))
            patched.delenv(name)
        patched.setattr("lm_eval_cna.sweep.prepare.TaskManager", lambda **_: manager)
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a test")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_llama(folder / "tiny")


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    return save_llama(folder / "other", seed=1)


@pytest.fixture(scope="module")
def circuit(model: Path, folder: Path) -> Path:
    path = folder / "circuit.json"
    assert main(["discover", *map(str, discovery(model, path))]) == 0
    return path


def discovery(model: Path, output: Path, *more: str) -> list[str | Path]:
    options = ["--contrast", "organism", "--fraction", "0.05", "--no-universal-filter", "--device", "cpu", *more]
    return ["--model", model, "--output", output, *options]


# The main road


def test_discover_over_folds(cli: Command, model: Path, circuit: Path, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    done = cli("discover", *discovery(model, path, "--folds", "3", "--seed", "4"))
    assert done.status == 0, done.err
    assert read_intervention(path).sha256 == read_intervention(circuit).sha256
    found = read_intervention(path)
    assert isinstance(found, Circuit) and len(found.neurons) == 6 and found.discovery.contrast == "organism"
    assert "6 neurons in" in done.out and found.sha256 in done.out
    record = read_stability(tmp_path / "circuit.stability.json")
    assert len(record.folds) == 3 and record.seed == 4 and record.size == 6
    assert f"wrote {path} and {tmp_path / 'circuit.stability.json'}" in done.out
    assert "stability over 3 folds of organism" in done.out and "labels shuffled" in done.out
    assert done.out.count("fold 3") >= 2 and "On the prompts that were left out" in done.out
    line = cli.refused("discover", *discovery(model, path, "--folds", "101"))
    assert "folds" in line and "got 101" in line and "2 to 100" in line
    more = ["--model", model, "--output", path, "--method", "random", "--like", circuit, "--folds", "3"]
    assert "folds has no meaning for method random" in cli.refused("discover", *more)


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("c.safetensors", ["--method", "caa-residual", "--contrast", "organism", "--layer", "1"]),
        ("c.json", ["--method", "random", "--seed", "3"]),
    ],
)
def test_discover_by_other_methods(
    cli: Command, model: Path, circuit: Path, tmp_path: Path, file: str, more: list[str]
) -> None:
    path = tmp_path / file
    like = ["--like", circuit] if "random" in more else []
    done = cli("discover", "--model", model, "--output", path, "--device", "cpu", *more, *like)
    assert done.status == 0, done.err
    assert read_intervention(path).method == more[1]


def test_show(cli: Command, circuit: Path) -> None:
    done = cli("show", circuit)
    assert done.status == 0 and done.err == ""
    assert "LlamaForCausalLM" in done.out and "organism" in done.out and "last three layers" in done.out
    assert "\x1b" not in done.out


def test_compare(cli: Command, circuit: Path, model: Path, other: Path, tmp_path: Path) -> None:
    same = cli("compare", circuit, circuit)
    assert same.status == 0 and "1.000" in same.out and "100.0 %" in same.out
    path, vectors = tmp_path / "other.json", tmp_path / "v.safetensors"
    assert main(["discover", *map(str, discovery(other, path))]) == 0
    done = cli("compare", circuit, path)
    assert done.status == 0 and "Jaccard index" in done.out and str(path) in done.out
    main(["discover", "--model", str(model), "--output", str(vectors), "--method", "caa", "--contrast", "organism"])
    assert "compare takes circuits" in cli.refused("compare", circuit, vectors)


@pytest.mark.parametrize("piped", [True, False])
def test_try(cli: Command, model: Path, circuit: Path, monkeypatch: pytest.MonkeyPatch, piped: bool) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello [b]\n"))
    options = ["--model", model, "--circuit", circuit, "--max-tokens", "3", "--prompt", "-" if piped else "Hello [b]"]
    done = cli("try", *options, "--multipliers", "0.5,1")
    assert done.status == 0, done.err
    assert "Hello [b]" in done.out and "completion" in done.out
    shown = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert "0.5" in shown and "1" in shown
    assert not piped or "the prompt is empty" in cli.refused("try", *options)  # all has been read


def sweep_flags(model: Path, output: Path, *more: str) -> list[str | Path]:
    flags = "--contrast organism --methods cna,random --random 2 --multipliers 0,1 --limit 2 --tasks organism_knowledge"
    flags += " --fraction 0.05 --model-args device=cpu,batch_size=8"
    return ["--model", model, "--output", output, *flags.split(), *more]


def test_sweep_then_report(cli: Command, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("sweep", *sweep_flags(model, run))
    assert done.status == 0, done.err
    assert "cells: 0/2 baseline" in done.err and "cells: 2/2" in done.err and "\x1b" not in done.err + done.out
    assert f"report: {run / 'report.md'}" in done.out and "| CNA" in done.out and "![" not in done.out
    first = (run / "report.md").read_text(encoding="utf-8")
    (run / "report.md").unlink()
    again = cli("report", run)
    assert again.status == 0 and again.err == "" and (run / "report.md").read_text(encoding="utf-8") == first
    assert cli("report", tmp_path).status == 0 and (tmp_path / "report.md").is_file()


def test_no_samples_at_the_end_of_a_sweep_and_of_the_demo(
    cli: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval_cna.report.page.draw", lambda *_, **__: [])
    run, tasks = tmp_path / "run", ["--tasks", "organism_refusal", "--limit", "1"]
    asked: list[bool] = []

    def demo(output: Path, *, samples: bool, **_: Any) -> Path:
        asked.append(samples)
        return run / "report.md"

    monkeypatch.setattr("lm_eval_cna.demo.run_demo", demo)
    for more in (["--no-samples"], []):
        assert cli("sweep", *sweep_flags(model, run), *tasks, *more).status == 0
        page = (run / "report.html").read_text(encoding="utf-8")
        assert ('id="samples"' in page) == (not more) and 'id="provenance"' in page
        assert cli("demo", "--output", tmp_path / "demo", *more).status == 0
    assert asked == [False, True]


def planned(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> SweepConfig:
    """The configuration that a sweep would have run with."""
    caught: list[SweepConfig] = []

    def catch(config: SweepConfig, **_: Any) -> None:
        caught.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval_cna.sweep.runner.run_sweep", catch)
    assert main(["sweep", *map(str, arguments)]) == 130
    return caught[0]


def test_a_config_file_says_the_same_as_flags(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    values = {
        "model": str(model),
        "output": str(tmp_path / "run"),
        "contrast": "organism",
        "methods": ["cna", "random"],
        "random": 2,
        "multipliers": [0, 1],
        "limit": 2,
        "tasks": ["organism_knowledge"],
        "fraction": 0.05,
        "model_args": {"device": "cpu", "batch_size": 8},
        "top_k": [2, 4],
        "folds": 3,
        "mode": "hook",
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    by_file = planned(monkeypatch, path)
    flags = sweep_flags(model, tmp_path / "run", "--top-k", "2,4", "--folds", "3", "--mode", "hook")
    assert by_file == planned(monkeypatch, *flags)
    both = planned(monkeypatch, path, "--limit", "7", "--model-args", "batch_size=1")
    assert both == by_file.model_copy(update={"limit": 7, "model_args": {"device": "cpu", "batch_size": 1}})


# Wrong inputs


def test_a_missing_file(cli: Command, tmp_path: Path) -> None:
    line = cli.refused("show", tmp_path / "nothing\x1b[31m.json")
    assert "no such intervention file" in line and "discover" in line
    assert "nothing" in line and "\x1b" not in line, "an error cannot steer the terminal"


def test_a_circuit_of_another_models_shape(cli: Command, circuit: Path, tmp_path: Path) -> None:
    wide = save_llama(tmp_path / "wide", width=96)
    for arguments in (
        ["try", "--model", wide, "--circuit", circuit, "--prompt", "x", "--device", "cpu"],
        ["sweep", *sweep_flags(wide, tmp_path / "run", "--circuit", str(circuit))],
    ):
        line = cli.refused(*arguments)
        assert "mlp_width 64" in line and "mlp_width 96" in line and "discover it on this model" in line


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"--multipliers": "0,abc"}, ["--multipliers", "got 'abc'", "allowed"]),
        ({"--methods": "cna,magic"}, ["methods.1", "'magic'", "'caa-residual'"]),
        ({"--tasks": "organism_refusl"}, ["unknown task", "'organism_refusl'", "organism_refusal"]),
        ({"--model": "no/such-model"}, ["cannot load the model", "no/such-model"]),
    ],
)
def test_a_sweep_that_cannot_run(
    cli: Command, model: Path, tmp_path: Path, more: dict[str, str], says: list[str]
) -> None:
    line = cli.refused(
        "sweep", *sweep_flags(model, tmp_path / "run"), *(part for pair in more.items() for part in pair)
    )
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model", "absent"], ["cannot load the model", "absent"]),
        (["--model", "absent", "--top-k", "0"], ["top"]),  # found before the model is loaded
        (["--model", "absent", "--method", "random"], ["--like"]),
        (["--device", "abacus"], []),
        (["--output", "file/c.json"], ["cannot write"]),
    ],
)
def test_a_discovery_that_cannot_run(
    cli: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], says: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("", encoding="utf-8")
    options: list[str | Path] = ["--fraction", "0.05"] if "--top-k" not in more and "--method" not in more else []
    common = ["--model", model, "--output", "c.json", "--contrast", "organism", "--no-universal-filter"]
    line = cli.refused("discover", *common, *options, *more)
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "--colour", "blue", "x"], ["--colour"]),
        (["discover", "--output", "c.json"], ["--model"]),
        (["discover", "--model", "m", "--output", "c.json", "--top-k", "many"], ["--top-k", "integer"]),
        (
            ["discover", "--model", "m", "--output", "c.json", "--method", "magic"],
            ["--method", "'magic'", "caa-residual"],
        ),
        (
            ["try", "--model", "m", "--circuit", "c", "--prompt", "x", "--multipliers", "abc"],
            ["--multipliers", "'abc'"],
        ),
        (["discover", "--model", "m", "--output", "c.json", "--method", "caa"], ["--output", ".safetensors"]),
        (
            ["discover", "--model", "m", "--output", "c.json", "--contrast", "organism", "--dtype", "int3"],
            ["--dtype", "'int3'", "bfloat16"],
        ),
        (["discover", "--model", "m", "--output", "c.json", "--contrast", "nothing"], ["nothing", "refusal"]),
        (["discover", "--model", "m", "--output", "c.json", "--exclude-layers", "1.7"], ["--exclude-layers", "'1.7'"]),
        (["discover", "--model", "m", "--output", "c.json", "--fraction", "nan"], ["fraction", "got nan", "up to 1"]),
        (["discover", "--model", "m", "--output", "c.json", "--layer", "1"], ["layer has no meaning for method cna"]),
        (["sweep", "--model-args", "fast"], ["--model-args", "NAME=VALUE"]),
        (["sweep", "--judge-model-args", "model=m"], ["--judge-model"]),
        (["judge", "nothing", "--judge-model", "hf"], ["no manifest.json in nothing"]),
        (["sweep"], ["model"]),
        (["sweep", "--model", "m"], ["output", "run directory"]),
        (["sweep", "nothing.yaml"], ["no such configuration file", "nothing.yaml"]),
        (["sweep", "--model", "m", "--output", "o", "--mode", "lever"], ["mode", "'lever'", "'fold'"]),
        (["sweep", "--model", "m", "--output", "o", "--top-k", "1.5"], ["--top-k", "'1.5'", "whole numbers"]),
        (["report", "nothing"], ["no run directory", "'nothing'"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_a_wrong_command_line_is_one_line(
    cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], says: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refused(*arguments)
    for part in says:
        assert part in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "flags"), [("model_args", ["--model-args", "batch_size=1"]), ("judge", ["--judge-model", "hf"])]
)
def test_a_field_of_a_file_that_is_no_mapping(
    cli: Command, model: Path, tmp_path: Path, field: str, flags: list[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"model: {model}\noutput: {tmp_path / 'run'}\n{field}: [1]\n", encoding="utf-8")
    assert field in cli.refused("sweep", path, *flags)


# Help, debug, interrupt


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(cli: Command, command: str) -> None:
    done = cli(*command.split(), "--help")
    assert done.status == 0 and "Usage" in done.out and done.err == ""
    assert command or all(name in done.out for name in (*COMMANDS, "run"))


def test_no_command_at_all_shows_the_help(cli: Command) -> None:
    done = cli()
    assert done.status == 2 and done.err == "" and "Usage" in done.out
    assert len(done.out.splitlines()) > 5, "the help is not squeezed into one line"


@pytest.mark.parametrize("before", [[], ["--debug"]])
def test_run_is_lm_evals_own_command(monkeypatch: pytest.MonkeyPatch, before: list[str]) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr("lm_eval_cna.plugin.run_lm_eval", " ".join)
    assert main([*before, "run", "--tasks", "x"]) == "run --tasks x"
    assert "TQDM_DISABLE" not in os.environ, "lm-eval draws its own bars"


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_is_one_line_whatever_typer_makes_of_it(
    cli: Command, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(_: Any) -> None:
        raise error

    monkeypatch.setattr("lm_eval_cna.interventions.reading.read_intervention", interrupted)
    done = cli("show", "c.json")
    assert done.status == 130 and one_line(done).startswith("error: interrupted") and "continues" in done.err


def test_keys_are_not_kept_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["sweep", "--judge-model-args", "model=m,api_key=s3cret,max_gen_toks=9", "--model-args=token=s3cret"]
    monkeypatch.setattr(sys, "argv", ["lm-eval-cna", *typed])
    kept = " ".join(typed_command())
    assert "s3cret" not in kept and "model=m,api_key=(not shown),max_gen_toks=9" in kept


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="no such intervention file"):
        main(["show", str(tmp_path / "nothing.json"), "--debug"])


def test_show_needs_no_torch(circuit: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from lm_eval_cna.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, "show", circuit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout
