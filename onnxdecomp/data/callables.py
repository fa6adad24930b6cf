"""Feeds from the user's own Python: `module:callable`, or `path/to/file.py:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.session import TensorSpec

_NAMED = re.compile(r"(?P<module>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")


def is_callable_name(text: str) -> bool:
    """Whether a text has the form `module:callable` or `file.py:callable`."""
    return _NAMED.fullmatch(text) is not None


@contextmanager
def called(text: str, inputs: Sequence[TensorSpec]) -> Iterator[Any]:
    """What the callable of that name gives; its folder can be imported from until the block ends.

    Modules are looked for in the current folder first. The callable gets the tuple of the model's inputs
    (name, shape, dtype) if it cannot do without an argument, else none.

    Raises:
        UsageError: There is no such callable, or it fails.
    """
    with imported(text) as function:
        arguments = (tuple(inputs),) if _wants_one(function) else ()
        with guarded(text):
            result = function(*arguments)
        yield result


@contextmanager
def imported(text: str) -> Iterator[Callable[..., Any]]:
    """The callable of that name; its folder can be imported from until the block ends.

    Raises:
        UsageError: There is no such callable.
    """
    module, name, file = _parts(text)
    if file is not None and not file.is_file():
        raise UsageError(f"there is nothing at {text}: no such file as {module}")
    with importing(text):
        yield _attribute(_import(text, module, file), name, text)


@contextmanager
def importing(text: str) -> Iterator[None]:
    """Let the folder of a callable of that name be imported from until the block ends.

    Raises:
        UsageError: The name has another form.
    """
    _, _, file = _parts(text)
    with _importable(file.parent if file else Path.cwd()):
        yield


def _parts(text: str) -> tuple[str, str, Path | None]:
    """Module, name, and the file where the module is given as one."""
    found = _NAMED.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is not of the form module:callable or file.py:callable")
    module = found["module"]
    return module, found["name"], Path(module).resolve() if module.endswith(".py") else None


@contextmanager
def guarded(text: str) -> Iterator[None]:
    """Whatever the user's code raises, as one line that names it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise _failure(text, error) from error


def _failure(text: str, error: BaseException) -> UsageError:
    return UsageError(f"{text} failed with {type(error).__name__}: {one_line(error)} (--debug shows where)")


def _import(text: str, module: str, file: Path | None) -> ModuleType:
    if file is None:
        try:
            return importlib.import_module(module)
        except (Exception, SystemExit) as error:
            absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            if not absent:
                raise _failure(text, error) from error
            raise UsageError(
                f"there is nothing at {text}: neither a file, nor a module {module!r} in the current folder "
                "or among the installed packages"
            ) from error
    # A name of its own: the file may be called like a package that is in use.
    spec = importlib.util.spec_from_file_location(f"onnxdecomp_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    with guarded(text):
        spec.loader.exec_module(made)
    return made


def _attribute(module: ModuleType, name: str, text: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        there = "nothing of that name" if found is None else f"a {type(found).__name__} of that name"
        raise UsageError(f"{text}: the module has {there}; a function is wanted")
    function: Callable[..., Any] = found
    return function


def _wants_one(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in signature.parameters.values()
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
