"""What people read: results on stdout, progress and notes on stderr, plain where it is no terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from onnxdecomp.cli.lines import Lines, said_of
from onnxdecomp.runtime.estimate import Estimate
from onnxdecomp.runtime.process_state import Undo, shared

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDE = 10_000
"""Columns off a terminal: rich would otherwise cut tables to 80 and break lines that scripts read."""

_NARROWEST = 8
"""Columns that a text is wrapped to at least, where it is that long."""

_NUMBER = re.compile(r"^[-+−]?[\d.,]+(e[-+]?\d+)?\s?[%×xkKMGT]?(s|ms|µs|B|iB|dB)?$|^[-–]?$|^inf$|^nan$")


class Advance(Protocol):
    """Progress: one step forward; or where the work is, when `what` and `done` say so."""

    def __call__(self, what: str = "", done: float | None = None, total: float | None = None) -> None: ...


def show(*results: RenderableType) -> None:
    """Write results to stdout, a line or more each, without trailing blanks."""
    console = _console(sys.stdout)
    with console.capture() as captured:
        for result in results:
            console.print(result)
    # Not by rich itself, which ends the process with code 1 where the reader of a pipe went away.
    lines = captured.get().splitlines()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line about the work to stderr."""
    _console(sys.stderr).print(text)


def _console(file: TextIO) -> Console:
    """Markup and highlighting are off: node names and shapes are full of brackets."""
    from rich.console import Console

    return Console(
        file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else _WIDE
    )


@contextmanager
def progress(description: str, total: float | None = None, *, most: float | None = None) -> Iterator[Advance]:
    """A progress bar on stderr with the time that is left, and a line now and then where it is no terminal.

    In here stdout belongs to nobody: what libraries print to it goes to stderr, so that results stay clean.

    Args:
        description: What is being done; `advance("what detail", …)` changes it.
        total: Steps in all, where known.
        most: Seconds after which a time limit ends it, or None.
    """
    console = _console(sys.stderr)
    with _stdout_to_stderr():
        estimate = Estimate(most=most)
        if not console.is_terminal:
            yield Lines(console.print, estimate)
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn(
                "{task.fields[detail]}",
                markup=False,
                style="dim",
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
        )
        with Progress(*columns, console=console, transient=True, expand=True) as bar:
            task = bar.add_task(description, total=total, detail="", left="")
            step = description

            def advance(what: str = "", done: float | None = None, total: float | None = None) -> None:
                nonlocal step
                if not what:
                    bar.advance(task)
                    return
                name, _, detail = what.partition(" ")
                if name != step:
                    bar.reset(task, total=total or None, description=name)
                    step = name
                left = said_of(estimate.left(what, done or 0, total or 0))
                bar.update(task, completed=done, total=total or None, detail=detail, left=left)

            yield advance


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what is printed to stdout, by libraries in C too."""
    with shared("stdout", _turn_stdout):
        yield


def _turn_stdout() -> Undo:
    stack = contextlib.ExitStack()
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something without a descriptor
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return stack.close
    sys.stdout.flush()
    kept = os.dup(out)
    os.dup2(err, out)
    stack.callback(os.close, kept)
    stack.callback(os.dup2, kept, out)
    stack.callback(_flush_c)
    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
    return stack.close


def _flush_c() -> None:
    """Write out what C's stdio still holds, or it would come at the end of the process."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    whole: Collection[str] = (),
    dim: Collection[int] = (),
) -> Table:
    """A table of strings; a column that holds nothing but numbers is aligned to the right.

    Args:
        title: Above it.
        columns: Their names.
        rows: The cells.
        whole: Columns whose cells stay on one line where a terminal is too narrow for all of them.
        dim: Indices of rows that matter less.
    """
    from rich import box
    from rich.table import Table

    result = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    cells = [[str(cell) for cell in row] for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(_NUMBER.match(row[index]) for row in cells)
        result.add_column(
            name,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=name in whole,
            min_width=min(_NARROWEST, max((len(row[index]) for row in cells), default=0)),
        )
    for index, row in enumerate(cells):
        result.add_row(*row, style="dim" if index in dim else None)
    return result


def pairs(lines: Sequence[tuple[str, RenderableType]]) -> Table:
    """Names and texts, the texts one below the other."""
    from rich.table import Table

    result = Table.grid(padding=(0, 2, 0, 0))
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for name, text in lines:
        result.add_row(name, text)
    return result
