"""What people read: results on stdout, progress on stderr, plain where it is no terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 10_000
"""Columns off a terminal: rich would otherwise cut tables to 80 and break lines that scripts read."""

_NUMBER = re.compile(r"^[-+−]?[\d.,]+(e[-+]?\d+)?\s?[%×xkKMGT]?(s|ms|µs|B|iB|dB)?$|^[-–]?$|^inf$|^nan$")


def stdout_console() -> Console:
    """For results. Markup and highlighting are off: node names and shapes are full of brackets."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    """For progress, warnings and errors."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    from rich.console import Console

    return Console(
        file=file, markup=False, highlight=False, emoji=False, width=None if file.isatty() else _WIDE
    )


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; nothing at all where stderr is no terminal.

    Yields `advance(steps=1, description=None)`: steps forward, and a new text if given.
    """
    console = stderr_console()
    if not console.is_terminal:
        yield lambda steps=1, description=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(steps: float = 1, description: str | None = None) -> None:
            bar.update(task, advance=steps, description=description)

        yield advance


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of strings; a column that holds nothing but numbers is aligned to the right."""
    from rich import box
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    cells = [[str(cell) for cell in row] for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(_NUMBER.match(row[index]) for row in cells)
        result.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        result.add_row(*row)
    return result
