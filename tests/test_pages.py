"""The pages say what the code and the result files say."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import curves, picture
from bench.pages import filled, pages
from bench.provenance import RESULTS, ROOT
from onnxdecomp.decompositions.registry import names

PAGES = pages()
SOURCES = [*(ROOT / "onnxdecomp").rglob("*.py"), *(ROOT / "passes" / "onnxdecomp_passes").rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_sections_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m bench.pages"


def test_numbers_of_the_first_page_are_measured() -> None:
    """Every value with an interval in README.md stands in a result file."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.findall(r"([-+]?[\d.]+x?)(?: points)? (\([^)]+ to [^)]+\))", text)
    results = "\n".join(file.read_text(encoding="utf-8") for file in RESULTS.glob("*.md")).replace(
        " points", ""
    )
    assert len(told) >= 3
    assert [value for value in told if " ".join(value) not in results] == []


def test_the_first_page_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 10_000
    assert len(re.findall(r"^\|[ :-]+\|", text, re.MULTILINE)) <= 1


def test_the_picture_shows_the_results() -> None:
    for own in (picture, curves):
        assert own.FILE.read_text(encoding="utf-8") == own.drawn(), "run: python -m bench.pages"


def test_every_way_is_in_the_picture() -> None:
    shown = picture.points(json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["rows"])
    places = re.findall(r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)"', picture.svg(shown))[::2]
    assert len(places) == len(shown) >= 3
    # Within the axes: the labels of losses are left of them, and the legend is right of them.
    lines = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', picture.svg(shown))
    right, bottom = (max(float(line[at]) for line in lines) for at in (1, 3))
    left, top = (min(float(line[at]) for line in lines) for at in (0, 2))
    assert all(left <= float(x) <= right and top <= float(y) <= bottom for x, y in places)


def test_every_method_is_listed() -> None:
    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_are_there(page: Path) -> None:
    """Links between pages are looked at where the site is built, pictures are not."""
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'!\[[^\]]*\]\(([^)\s#]+)|(?:src|srcset)="([^"#]+)', text)
    missing = [found for pair in pictures if not (page.parent / (found := pair[0] or pair[1])).is_file()]
    assert missing == []


def explained() -> list[str]:
    """The messages of the troubleshooting page."""
    page = (ROOT / "docs" / "reference" / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def test_messages_of_the_troubleshooting_page_are_in_the_code() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message over several lines
    assert [message for message in explained() if message not in code] == []


ERRORS = ("UsageError", "ModelError", "ProviderError", "GateError", "UnchangedError", "OnnxDecompError")


def raised() -> Iterator[str]:
    """What errors for users say, "{}" where values stand; those of which all is a value say nothing."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                said = node.args[0] if node.args else None
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                words = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
                message = "".join(map(str, words))
                if len(re.findall(r"[a-z]+", message)) > 1:
                    yield message


def test_every_error_has_a_line_in_the_troubleshooting_page() -> None:
    said, known = list(raised()), explained()
    assert len(said) > 300
    assert [message for message in said if not any(words in message for words in known)] == []


def test_pages_of_methods_are_current() -> None:
    found = subprocess.run([sys.executable, "docs/methods.py", "--check"], cwd=ROOT, check=False)
    assert found.returncode == 0, "docs/methods/ is out of date: python docs/methods.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_shown_are_there(page: Path) -> None:
    """A formatter of code in pages makes an expression of `--8<-- "file"`, which then shows nothing."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r'^--8<-- "([^"]+)"$', text, re.MULTILINE)
    assert len(shown) == len(re.findall(r"8 ?< ?--", text))
    assert [file for file in shown if not (ROOT / file).is_file()] == []
