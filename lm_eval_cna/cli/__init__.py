"""The command line. Exit status: 0 done, 1 regression, 2 wrong input, 130 interrupted.

Each group of commands has a module; this one lists the commands and turns errors into one line and a status.
Commands import heavy modules themselves, so that `--help` and `show` start quickly.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from lm_eval_cna.cli import launch
from lm_eval_cna.cli.interventions import compare, discover, show, try_
from lm_eval_cna.cli.judgement import check, leaderboard
from lm_eval_cna.cli.organisms import demo, organism
from lm_eval_cna.cli.output import LogPrinter, errors, say
from lm_eval_cna.cli.paper import paper
from lm_eval_cna.cli.runs import judge, repeat, report, sweep
from lm_eval_cna.errors import CNAError, ConfigError, out_of_memory

PROGRAM = "lm-eval-cna"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it; typer returns it too
app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Steer a model's neurons inside lm-evaluation-harness and measure what it does, with controls.",
)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every command; `main` reads --debug before typer does."""


for _name, _command in (
    ("demo", demo),
    ("organism", organism),
    ("discover", discover),
    ("show", show),
    ("compare", compare),
    ("try", try_),
    ("sweep", sweep),
    ("judge", judge),
    ("report", report),
    ("repeat", repeat),
    ("check", check),
    ("leaderboard", leaderboard),
    ("paper", paper),
):
    app.command(_name)(_command)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run() -> None:
    """lm-eval's own command with this plugin loaded."""  # `main` calls lm-eval before typer sees the arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    arguments = [argument for argument in given if argument != "--debug"]
    if arguments[:1] == ["run"]:  # lm-eval's own command, with its own --help, bars and exceptions
        from lm_eval_cna.plugin import run_lm_eval

        return run_lm_eval(given[given.index("run") :])
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval and transformers draw a bar per cell
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(format="%(message)s", handlers=[LogPrinter()])
    debug = len(arguments) < len(given)
    try:
        _refuse_several_processes(arguments)
        status = int(app(arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0)
    except CNAError as error:
        if debug:
            raise
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):  # some versions of typer raise Abort for an interrupt
        status = INTERRUPTED
    except OSError as error:
        # A file or folder that cannot be used. Without a file name it is another error, and a bug.
        if debug or error.filename is None:
            raise
        return _fail(f"cannot use {error.filename}: {error.strerror}")
    except Exception as error:
        # typer's usage errors, which it would print as a box; anything else is a bug and keeps its traceback.
        if not debug and (message := out_of_memory(error)) is not None:
            return _fail(message)
        if debug or not hasattr(error, "format_message"):
            raise
        return _fail(_usage(error, error.format_message()))
    if status == INTERRUPTED:  # most versions of typer return the status instead of raising
        return _fail("interrupted; what was finished is kept, and the same command continues", status=INTERRUPTED)
    return status if arguments else 2


def _refuse_several_processes(arguments: list[str]) -> None:
    """Refuse several processes for all commands but sweep: each process would do the whole work."""
    if launch.processes() > 1 and arguments[:1] not in (["sweep"], ["--help"]):
        raise ConfigError(
            f"{launch.processes()} processes were started together",
            got=" ".join(arguments[:1]) or None,
            allowed="sweep and run share their work",
            do="start this command alone",
        )


def _usage(error: Exception, message: str) -> str:
    """Typer's message about a wrong command line, with the wrong value added if typer leaves it out."""
    message = message.replace("Value error, ", "").rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        got = repr(error.__cause__.errors()[0]["input"])
        message += "" if got in message else f"; got {got}"
    context = getattr(error, "ctx", None)
    return f"{message}; see {PROGRAM if context is None else context.command_path} --help"


def _fail(message: str, *, status: int = 2) -> int:
    who = f"process {launch.rank()}: " if launch.rank() else ""
    say(f"{who}error: {' '.join(message.split())}", console=errors)
    return status
