"""The `onnxdecomp` command: finds its subcommands on demand, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from onnxdecomp import __version__
from onnxdecomp.errors import OnnxDecompError

COMMANDS = {
    "compress": "Replace the layers of a model by chains of smaller ones.",
    "inspect": "Show the layers of a model, their cost, and what could be decomposed.",
    "verify": "Compare a model with the original: numbers, interface, accuracy.",
    "bench": "Time models against each other, interleaved.",
    "methods": "List the decompositions and the layers that they take.",
    "passes": "List the passes of the pipeline, other packages' included.",
    "doctor": "Say what is installed, which providers really start, and what to type if not.",
}
"""Name to one-line help: so that `--help` imports no command."""

INTERRUPTED = 130


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"onnxdecomp.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="onnxdecomp %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Make trained ONNX models smaller and faster by tensor decomposition.

    Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 a numeric or accuracy
    gate failed, 2 wrong usage, 3 the model is invalid or not supported, 4 the provider is not available,
    5 nothing was worth decomposing (only with --fail-if-unchanged).
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the documented code."""
    arguments = sys.argv[1:] if args is None else args
    try:
        code = cli.main(arguments, prog_name="onnxdecomp", standalone_mode=False)
        _exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except click.Abort:
        _fail("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: nothing is left to say, and Python must not try again at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(0)
    except OnnxDecompError as error:
        if "--debug" in arguments:
            raise
        _fail(str(error), error.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"onnxdecomp: error: {' '.join(message.split())}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> NoReturn:
    sys.exit(code)


if __name__ == "__main__":
    main()
