"""The `onnxdecomp` command: finds its subcommands on demand, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from onnxdecomp._version import __version__
from onnxdecomp.cli import process
from onnxdecomp.errors import OnnxDecompError, UsageError

COMMANDS = {
    "compress": "Replace the layers of a model by chains of smaller ones.",
    "inspect": "Show the layers of a model, their cost, and what could be done.",
    "finetune": "Win back accuracy by training the weights of a compressed model.",
    "verify": "Compare a model with the original: numbers, interface, accuracy.",
    "bench": "Time models against each other, interleaved.",
    "report": "Make a page to send around from the record of a run.",
    "methods": "List the decompositions and the layers that they take.",
    "passes": "List the passes of the pipeline, other packages' included.",
    "recipes": "List the named configurations of compress.",
    "demo": "Compress a small network that comes along, to see what a run prints.",
    "doctor": "Say what is installed and which providers really start.",
}
"""Name to one-line help: so that `--help` imports no command."""

_DEBUG_HELP = "Show the traceback of an error, and other libraries' warnings."


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"onnxdecomp.cli.{name}").command
        assert isinstance(command, click.Command)
        # Before or after the command's name: people append it to the line that failed.
        if not any(parameter.name == "debug" for parameter in command.params):
            debug = click.Option(["--debug"], is_flag=True, expose_value=False, help=_DEBUG_HELP)
            command.params.append(debug)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.endswith(".onnx"):
            raise click.UsageError(f"{name!r} is no command; did you mean 'onnxdecomp compress {name}'?", ctx)
        if name not in COMMANDS and not name.startswith("-"):
            from onnxdecomp.core.options import suggest

            raise click.UsageError(f"unknown command {name!r}{suggest(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="onnxdecomp %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help=_DEBUG_HELP)
def cli() -> None:
    """Make trained ONNX models smaller and faster by tensor decomposition.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 a numeric or accuracy
    gate failed, 2 wrong usage, 3 the model is invalid or not supported, 4 the provider is not available,
    5 nothing was worth decomposing (only with --fail-if-unchanged).
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the documented code."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    try:
        with (
            process.streams(),
            process.signals(),
            process.few_collections(),
            process.quiet(enabled=not debug),
        ):
            _invoke(arguments or ["--help"])
        sys.exit(0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except BrokenPipeError:
        process.forget_stdout()
        sys.exit(0)
    except (Exception, process.Interrupted, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        message, code = _explain(error)
        print(f"onnxdecomp: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(code)


def _invoke(arguments: list[str]) -> None:
    """Run the command; not by click's own `main`, which ends a broken pipe with the code of a failed gate."""
    if "_ONNXDECOMP_COMPLETE" in os.environ:  # a shell asks for completions
        cli.main(arguments, prog_name="onnxdecomp")
    _refuse_empty(arguments)
    with cli.make_context("onnxdecomp", list(arguments), obj=tuple(arguments)) as context:
        cli.invoke(context)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse empty values: a variable that a script has not set would ask for the default without a word."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, sign, value = argument.partition("=")
        if sign and not value and name.startswith("--"):
            raise click.UsageError(f"{name} is given an empty value")
        if not argument:
            what = f"{before} is given an empty value" if before.startswith("-") else "an argument is empty"
            raise click.UsageError(what)


def _explain(error: BaseException) -> tuple[str, int]:
    """The line that says what is wrong and what to do, and the exit code."""
    match error:
        case OnnxDecompError():
            return f"error: {error}", error.exit_code
        case click.UsageError():
            message = error.format_message().rstrip(".")
            where = error.ctx.command_path if error.ctx else "onnxdecomp"
            return f"error: {message}; see '{where} --help'", UsageError.exit_code
        case click.ClickException():
            return f"error: {error.format_message()}", error.exit_code
        case process.Interrupted():
            return "interrupted", error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "interrupted", process.INTERRUPTED
        case MemoryError():
            return f"error: out of memory{_detail(error)}", OnnxDecompError.exit_code
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return f"error: {place}{error.strerror or error}", UsageError.exit_code
    again = "" if "--debug" in sys.argv else "; run it with --debug for the traceback"
    what = f"{type(error).__name__}{_detail(error)}"
    return f"error: {what}: this is a bug in onnxdecomp, please report it{again}", OnnxDecompError.exit_code


def _detail(error: BaseException) -> str:
    return f": {error}" if str(error) else ""


if __name__ == "__main__":
    main()
