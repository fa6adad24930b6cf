"""Put the generated tables into README.md and docs/: results of bench/ and the table of methods.

    python -m bench.readme

Between `<!-- bench/results/NAME.md -->` and `<!-- end -->` stands that file, between `<!-- methods -->` and
`<!-- end -->` the table of what `onnxdecomp methods` lists. A test holds the pages against both.
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxdecomp.decompositions.registry import describe

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "training.md")

_SECTION = re.compile(r"(<!-- (?P<what>methods|bench/results/[\w.]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods_table() -> str:
    """The methods as a Markdown table."""
    rows = ["| method | what it does | layers | source |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{method['name']}` | {method['summary']} | {', '.join(method['takes'])} | {method['paper']} |"
        for method in describe()
    ]
    return "\n".join(rows) + "\n"


def filled(text: str) -> str:
    """A page's text with every generated section as it should be."""

    def section(found: re.Match[str]) -> str:
        what = found["what"]
        content = methods_table() if what == "methods" else (ROOT / what).read_text(encoding="utf-8")
        return f"{found[1]}{content.rstrip()}\n{found[3]}"

    return _SECTION.sub(section, text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
