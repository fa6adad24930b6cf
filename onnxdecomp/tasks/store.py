"""A store: results in a folder under the hash of what they depend on, each there whole or not at all.

An entry is an uncompressed .npz: it is read without running anything that is in it, every member has its
checksum, and other tools can look inside. It is written under a passing name and renamed, so that a process
which is killed leaves nothing that looks like an entry, and processes of many machines may write at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxdecomp.core.json_values import Json
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError
from onnxdecomp.tasks.values import Packed

FORMAT = 1
"""Changes with what is in an entry; entries of another are not found."""

_MARK = "workdir.json"
_META = "meta"


@dataclass(frozen=True)
class Store:
    """Entries in a folder, which several processes may share.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    @staticmethod
    def at(folder: str | Path) -> Store:
        """The store in a work folder, which is made if it is not there.

        Raises:
            UsageError: It cannot be used: no folder, not writable, or of another program or format.
        """
        path = Path(folder)
        mark = path / _MARK
        try:
            path.mkdir(parents=True, exist_ok=True)
            if mark.exists():
                _check(path, json.loads(mark.read_text(encoding="utf-8")))
            elif any(path.iterdir()):
                raise UsageError(f"--workdir {folder}: the folder holds something else; name an empty one")
            else:
                _whole(mark, json.dumps({"onnxdecomp": "workdir", "format": FORMAT}).encode())
        except (OSError, ValueError) as error:
            raise UsageError(f"--workdir {folder}: {_why(error)}") from error
        return Store(path)

    def read(self, key: str) -> Packed | None:
        """An entry; None where there is none, or what is there is damaged."""
        path = self.path(key)
        try:
            with zipfile.ZipFile(path) as archive:
                meta = json.loads(_member(archive, _META).tobytes())
                if meta["key"] != key:
                    return None
                return meta["value"], [_member(archive, str(index)) for index in range(meta["arrays"])]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            with suppress(OSError):
                path.unlink()
            return None

    def write(self, key: str, packed: Packed) -> None:
        """Keep an entry, in place of one under the same key.

        Raises:
            UsageError: The folder cannot be written to.
        """
        value, arrays = packed
        meta: Mapping[str, Json] = {"key": key, "value": value, "arrays": len(arrays)}
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        path = self.path(key)
        passing = _passing(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(passing, "w", zipfile.ZIP_STORED) as archive:
                for name, array in ((_META, text), *((str(i), array) for i, array in enumerate(arrays))):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            passing.replace(path)
        except OSError as error:
            with suppress(OSError):
                passing.unlink()
            raise UsageError(f"--workdir {self.folder}: cannot be written: {_why(error)}") from error

    def has(self, key: str) -> bool:
        """Whether there is an entry, which may be damaged."""
        return self.path(key).exists()

    def path(self, key: str) -> Path:
        """Where an entry is."""
        return self.folder / "entries" / key[:2] / f"{key}.npz"

    def put_file(self, name: str, content: bytes) -> Path:
        """A file by the name of its content, written once and whole.

        Raises:
            UsageError: The folder cannot be written to.
        """
        path = self.folder / "files" / name
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _whole(path, content)
            except OSError as error:
                raise UsageError(f"--workdir {self.folder}: cannot be written: {_why(error)}") from error
        return path


def _check(folder: Path, mark: object) -> None:
    known = isinstance(mark, dict) and mark.get("onnxdecomp") == "workdir"
    if not known:
        raise UsageError(f"--workdir {folder}: the folder holds something else; name an empty one")
    if mark != {"onnxdecomp": "workdir", "format": FORMAT}:
        raise UsageError(
            f"--workdir {folder}: was made by another version of onnxdecomp; name another folder"
        )


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    """An array, whose checksum is compared once all of it was read."""
    with archive.open(f"{name}.npy") as member:
        found = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError("more than an array")
        return np.asarray(found)


def _whole(path: Path, content: bytes) -> None:
    passing = _passing(path)
    passing.write_bytes(content)
    passing.replace(path)


def _passing(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
