"""Where outputs go: links are followed, devices and what others need are not replaced.

A path leads to a regular file, there already or to be made: a link stays a link, and the file it leads to
gets the new content. What stands under /dev, /proc or /sys is no place for a file; a link there, such as
/dev/stdout, may lead to a regular file all the same, so every link on the way is looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from onnxdecomp.errors import UsageError

_SPECIAL = tuple(map(Path, ("/dev", "/proc", "/sys")))
_MEMORY = Path("/dev/shm")
_LINKS = 40
"""More links in a row than the system itself follows."""

_HASH = re.compile(r"[0-9a-f]{40,}")


def is_special(path: str | Path) -> bool:
    """Whether a path is, or leads to or through, a device, a pipe, or what else is no file to replace.

    Raises:
        UsageError: Its links lead in a circle.
    """
    *_, last = hops = tuple(_hops(Path(path)))
    return any(map(_stands_apart, hops)) or (last.exists() and not last.is_file() and not last.is_dir())


def landing(path: str | Path) -> Path:
    """The file that is made or replaced where an output goes to `path`: that which its links lead to.

    Raises:
        UsageError: It is no place for a file: "-", a folder, a device, a pipe, links in a circle, or a link
            to a file of a cache, which is named by the hash of its content.
    """
    if str(path) == "-":
        raise UsageError("-: this is not written to stdout; name a file")
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name the file to write")
    if is_special(path):
        raise UsageError(f"{path}: is no regular file, or leads to none; choose another name")
    *_, last = _hops(path)
    if path.is_symlink() and _HASH.fullmatch(last.name):
        raise UsageError(f"{path}: is a link into a cache, whose files must not change; choose another name")
    return last


def check_folder(path: str | Path) -> None:
    """Check that a file can be made where an output goes to `path`.

    Raises:
        UsageError: As `landing`; or the folder is missing, or not writable.
    """
    folder = landing(path).parent
    shown = folder if Path(path).is_symlink() else Path(path).parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {str(shown)!r}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {str(shown)!r} is not writable")


def check_apart(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Check that no two outputs are one file, and that none is an input.

    Args:
        outputs: Where each output goes, by the option that says so; None for none, "-" for stdout.
        inputs: Files that are read, by the option or argument that names them.

    Raises:
        UsageError: Two of them are the same.
    """
    read = {option: path for option, path in inputs.items() if path is not None and str(path) != "-"}
    seen = {_identity(path): option for option, path in read.items()}
    for option, path in outputs.items():
        if path is None:
            continue
        place = _identity(path)
        if (other := seen.setdefault(place, option)) != option:
            what = "is read from" if other in read else "goes to"
            raise UsageError(f"{path}: {option} would replace what {other} {what}; choose another name")


def _identity(path: str | Path) -> object:
    """Equal for paths of one and the same file, there or not."""
    if str(path) == "-":
        return "-"
    try:
        status = os.stat(path)  # noqa: PTH116  (any path, "module:callable" as well)
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _hops(path: Path) -> Iterator[Path]:
    """The path and where its links lead, one after the other, their folders free of links."""
    for _ in range(_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        yield path
        # What a link within /proc leads to is another process's business, and its text no path.
        if _stands_apart(path) or not path.is_symlink():
            return
        path = path.parent / path.readlink()
    raise UsageError(f"{path}: its links lead in a circle; choose another name")


def _stands_apart(path: Path) -> bool:
    return any(place in path.parents for place in _SPECIAL) and _MEMORY not in path.parents
