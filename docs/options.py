"""docs/reference/options.md: every option of `compress`, from the dataclass that the command line is made of.

`python docs/options.py` writes the page anew; `--check` ends with 1 where it is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from onnxdecomp.core.options import default_of, describe, described, option_fields
from onnxdecomp.workflow.config import GROUPS, CompressConfig, hints

PAGE = Path(__file__).with_name("reference") / "options.md"

_HEAD = """# Options of `compress`

Made by `python docs/options.py` from `CompressConfig` (`onnxdecomp/workflow/config.py`). In Python they are
keywords of `onnxdecomp.compress` and `onnxdecomp.inspect`, or fields of a `CompressConfig`; in a pipeline's
TOML file they stand in the table of the pass that the third column names. A keyword or a flag wins over the
file. `inspect` has those flags that say what is decomposed and how.

`onnxdecomp.workflow.config_json` writes a `CompressConfig` down, by the groups below: `{"version": 1, "goal":
{"target": "macs=2x"}, …}`. `--config` and `config=` take that in a file whose name ends in `.json`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join((_HEAD, *(line for group, title in GROUPS.items() for line in _table(group, title))))


def _table(group: str, title: str) -> Iterator[str]:
    yield f"## {title} (`{group}`)\n"
    yield "| Python | command line | pipeline's file | default | |"
    yield "|---|---|---|---|---|"
    for field in option_fields(CompressConfig):
        known = described(field)
        if known.group == group:
            flag = known.flag if known.flag is None or known.flag else f"--{field.name.replace('_', '-')}"
            shown = "" if flag is None else " ".join((f"`{flag}`", *_value(known.metavar, field.name)))
            places = ", ".join(f"`[{name}] {option}`" for name, option in known.places)
            default = known.otherwise or _text(default_of(field))
            help_text = re.sub(r"([|\[])", r"\\\1", known.help)
            yield f"| `{field.name}` | {shown} | {places} | {default} | {help_text}. |"
    yield ""


def _value(metavar: str | None, name: str) -> Iterator[str]:
    hint = hints()[name]
    text = metavar or ("" if hint in (bool, bool | None) else describe(hint))
    if text:
        yield f"`{text}`".replace("|", "\\|")


def _text(default: object) -> str:
    if default is None or default in ("", (), {}):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{default}`" if isinstance(default, str) else f"{default}"


def main() -> int:
    """Write the page, or say that it is out of date."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
