from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec
from tests.builders.commands import QUICK, command
from tests.builders.feeds import IMAGE
from tests.builders.models import network

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
import beside

@dataclass
class Options:
    rows: int = 1

def feed(k, rows=1):
    return {"x": np.full((rows, 3, 4, 4), k, np.float32)}

def generator():
    import beside_too
    for k in range(4):
        yield feed(k)

def listed(count=3):
    return [feed(k) for k in range(count)]

def two():
    return feed(0), feed(1)

def pair():
    return generator(), [3, 2, 1, 0]

def pair_of_batches():
    return [feed(0, 2), feed(1, 1)], np.arange(3)

def short_pair():
    return listed(), [1, 2]

def long_pair():
    return listed(), [1, 2, 3, 4]

def arrays():
    return {"x": np.arange(4 * 48, dtype=np.float32).reshape(4, 3, 4, 4)}

def labelled_arrays():
    return arrays(), np.arange(4)

def of_inputs(inputs):
    (spec,) = inputs
    assert spec.dtype == "float32"
    yield {spec.name: np.ones((1, *spec.shape[1:]), np.float32)}

class Reader:
    def __init__(self):
        self.left = 2
    def get_next(self):
        self.left -= 1
        return feed(self.left) if self.left >= 0 else None

class Nested:
    @staticmethod
    def feeds():
        return listed(1)

def fails():
    raise KeyError("no such\\nfile")

def fails_later():
    yield feed(0)
    raise RuntimeError("out of luck")

def leaves():
    raise SystemExit(3)

def two_arguments(a, b):
    return []

def number():
    return 5

def text():
    return "photos"

def nothing():
    return None

def empty():
    return []

def none_inside():
    return [feed(0), None]

def wrong():
    return [{"y": np.zeros(3)}]

constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with user code; what it imports is forgotten afterwards."""
    (tmp_path / "calib_of_user.py").write_text(CODE)
    (tmp_path / "beside.py").touch()
    (tmp_path / "beside_too.py").touch()
    (tmp_path / "broken_of_user.py").write_text("def feeds(:\n")
    (tmp_path / "importing_of_user.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("beside") or name.endswith("of_user"):
            del sys.modules[name]


def values(text: str, samples: int | None = None) -> list[float]:
    feeds = read_feeds(text, IMAGE, samples=samples)
    found = [float(feed["x"].flat[0]) for feed in feeds]
    assert [float(feed["x"].flat[0]) for feed in feeds] == found
    return found


@pytest.mark.parametrize("module", ["calib_of_user", "calib_of_user.py", "{folder}/calib_of_user.py"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("generator", [0, 1, 2, 3]),
        ("listed", [0, 1, 2]),
        ("two", [0, 1]),
        ("arrays", [0, 48, 96, 144]),
        ("of_inputs", [1]),
        ("Reader", [1, 0]),
        ("Nested.feeds", [0]),
    ],
)
def test_what_a_callable_may_give(folder: Path, module: str, name: str, expected: list[float]) -> None:
    text = f"{module.format(folder=folder)}:{name}"
    assert values(text) == expected
    assert values(text, samples=1) == expected[:1]


@pytest.mark.parametrize(
    ("name", "samples", "labels"),
    [
        ("pair", None, [3, 2, 1, 0]),
        ("pair", 2, [3, 2]),
        ("pair_of_batches", None, [0, 1, 2]),
        ("pair_of_batches", 1, [0, 1]),
        ("labelled_arrays", None, [0, 1, 2, 3]),
        ("labelled_arrays", 3, [0, 1, 2]),
    ],
)
def test_labels(name: str, samples: int | None, labels: list[int]) -> None:
    feeds = read_feeds(f"calib_of_user:{name}", IMAGE, samples=samples)
    assert feeds.labels is not None
    assert feeds.labels.tolist() == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calib_of_user:fails", r"calib_of_user:fails failed with KeyError: 'no such\\nfile' \(--debug"),
        ("calib_of_user:fails_later", "calib_of_user:fails_later failed with RuntimeError: out of luck"),
        ("calib_of_user:leaves", "failed with SystemExit: 3"),
        ("calib_of_user:two_arguments", "failed with TypeError: .*missing 1 required"),
        ("calib_of_user:number", "gave a int; an iterable of feeds is wanted"),
        ("calib_of_user:text", "gave a str"),
        ("calib_of_user:nothing", "gave a NoneType"),
        ("calib_of_user:empty", "empty: calib_of_user:empty"),
        ("calib_of_user:none_inside", "none_inside, feed 1: is a NoneType"),
        ("calib_of_user:wrong", "wrong, feed 0: has y, the model's inputs are x"),
        ("calib_of_user:short_pair", r"\(2,\) labels do not fit the 3 rows"),
        ("calib_of_user:long_pair", r"\(4,\) labels do not fit the 3 rows"),
        ("calib_of_user:constant", "has a int of that name; a function is wanted"),
        ("calib_of_user:missing", "has nothing of that name"),
        ("broken_of_user:feeds", "broken_of_user:feeds failed with SyntaxError"),
        ("broken_of_user.py:feeds", r"broken_of_user\.py:feeds failed with SyntaxError"),
        ("importing_of_user:feeds", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("absent_of_user:feeds", "there is nothing at absent_of_user:feeds: neither a file, nor a module"),
        ("absent.of_user:feeds", "there is nothing at absent.of_user:feeds"),
        ("absent.py:feeds", r"no such file as absent\.py"),
        ("photos/2024:feeds", "there is no data at photos/2024:feeds"),
    ],
)
def test_errors_name_the_callable_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_feeds(text, IMAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no colons in names of files")
def test_a_file_wins_over_a_callable_of_its_name(folder: Path) -> None:
    np.savez(folder / "calib_of_user:listed", x=np.full((1, 3, 4, 4), 7, np.float32))
    (folder / "calib_of_user:listed.npz").rename(folder / "calib_of_user:listed")
    assert values("calib_of_user:listed") == [7]


def test_two_inputs_are_told_to_the_callable(folder: Path) -> None:
    (folder / "specs_of_user.py").write_text(
        "import numpy as np\n"
        "def feeds(inputs):\n"
        "    yield {spec.name: np.zeros([d or 2 for d in spec.shape], spec.dtype) for spec in inputs}\n"
    )
    specs = (TensorSpec("a", (None, 3), "float32"), TensorSpec("b", (4,), "int64"))
    (feed,) = read_feeds("specs_of_user:feeds", specs)
    assert feed["a"].shape == (2, 3)
    assert feed["b"].dtype == np.int64


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(folder / "net.onnx")
    (folder / "eval_of_user.py").write_text(
        "import numpy as np\n"
        "def feeds():\n    for k in range(3):\n        yield {'x': np.ones((1, 8, 8, 8), np.float32)}\n"
        "def broken():\n    1 / 0\n"
    )
    outcome = command(capsys, "verify", model, model, "--data", "eval_of_user:feeds")
    assert outcome.code == 0
    assert "3 samples (eval_of_user:feeds)" in outcome.out
    for arguments in (
        ("verify", model, model, "--data", "eval_of_user:broken"),
        ("compress", model, *QUICK, "--eval", "eval_of_user:broken"),
    ):
        command(capsys, *arguments).is_error(2, "eval_of_user:broken", "ZeroDivisionError")
