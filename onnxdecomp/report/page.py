"""Rendering: templates filled with the facts of a record."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from onnxdecomp.core.names import alike, in_common
from onnxdecomp.record import text
from onnxdecomp.report import charts
from onnxdecomp.report.facts import Fact, known, raw, tagged

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")

SECTIONS = TEMPLATES / "sections"
"""What a page consists of: the template "20-settings.html" shows the field `settings` of any record that has
it, in the order of the numbers; in Markdown "20-settings.md"."""

KINDS: Mapping[str, str] = {
    "compress": "compression",
    "plan": "plan",
    "bench": "comparison",
    "finetune": "training",
    "trainings": "trainings",
}
"""What a page is about."""

SHOWN_LAYERS = 24
"""Rewritten layers whose spectra and nodes are drawn: a page of a hundred would be too large to send."""

SHOWN_CHANNELS = 12
"""Channels that are drawn."""

FORMATS: Mapping[str, Callable[[Any], str]] = {
    "count": text.count,
    "size": text.size,
    "times": text.times,
    "percent": text.percent,
    "share": text.share,
    "points": text.points,
    "value": text.value,
    "change": text.change,
    "ms": text.ms,
    "small": text.small,
    "precise": text.precise,
    "decimal": text.decimal,
    "seconds": text.seconds,
    "when": text.when,
    "full": text.full,
    "listed": text.listed,
    "shape": text.shape,
    "ranges": text.ranges,
    "sizes": text.sizes,
    "spread": text.spread,
    "fed": text.fed,
    "whole": str,
}
"""How templates name the ways in which a number is shown."""


def render_html(record: Mapping[str, Any]) -> str:
    """The page."""
    environment = _environment(autoescape=True)
    for name, form in FORMATS.items():
        environment.filters[name] = _html_filter(form)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        **_context(record),
        sections=sections(record, "html"),
        charts=charts,
        script=_safe(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_safe((TEMPLATES / "page.css").read_text(encoding="utf-8")),
    )


def sections(record: Mapping[str, Any], form: str) -> list[str]:
    """The templates of what a record has, in their order; `form` is "html" or "md"."""
    found = ((path, path.stem.partition("-")[2]) for path in sorted(SECTIONS.glob(f"*.{form}")))
    return [f"{SECTIONS.name}/{path.name}" for path, field in found if record.get(field) is not None]


def render_markdown(record: Mapping[str, Any], *, all_layers: bool = False) -> str:
    """The report in Markdown; `all_layers`: also of families a row for every member."""
    environment = _environment(autoescape=False)
    for name, form in FORMATS.items():
        environment.filters[name] = _text_filter(form)
    environment.filters["code"] = lambda fact: code(str(raw(fact)))
    environment.filters["prose"] = lambda fact: prose(str(raw(fact)))
    filled = environment.get_template("report.md").render(
        **_context(record), sections=sections(record, "md"), all_layers=all_layers
    )
    return "\n".join(line.rstrip() for line in filled.splitlines()).strip() + "\n"


def code(name: str) -> str:
    """A name in Markdown as code, which stays code whatever it holds, in a table too."""
    shown = text.full(name).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    gap = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{gap}{shown}{gap}{fence}"


def prose(sentence: str) -> str:
    """A sentence in Markdown in which nothing is markup, an address or a mention of somebody."""
    return text.visible(sentence, 2000).translate(_PLAIN)


_PLAIN = {ord(sign): f"\\{sign}" for sign in "\\`*_{}[]#|~!"} | {
    ord(sign): f"&#{ord(sign)};" for sign in "@<>&"
}


def _environment(*, autoescape: bool) -> Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["known"] = known
    made.tests["several"] = lambda fact: raw(fact) > 1
    made.filters["raw"] = raw
    return made


def _context(record: Mapping[str, Any]) -> dict[str, Any]:
    facts = Fact(record)
    models = [raw(fact) for fact in _models(facts)]
    several = bool(models)
    labels = short_names([model["path"] or "in memory" for model in models])
    labels = labels if several else ["original", "compressed"]
    # Facts have numbers for every index of the record's lists: what is picked out of them stays traceable.
    layers = list(facts["layers"]) if "layers" in record else []
    changed = [layer for layer in layers if raw(layer["nodes"]) or raw(layer["spectra"])]
    changed.sort(key=lambda layer: -(raw(layer["macs"])["before"] or 0))
    drawn = _drawn(changed)
    return {
        "record": facts,
        "what": KINDS[record["kind"]],
        "labels": labels,
        "title": _title(record, labels),
        "heading": _heading(facts, labels),
        "named": _named(facts, labels) if several else labels,
        "markdown_title": _title(record, labels, code),
        "markdown_labels": [code(label) for label in labels] if several else labels,
        "changed": drawn[:SHOWN_LAYERS],
        "repeated": any(family for _, family in drawn),
        "left_out": max(0, len(drawn) - SHOWN_LAYERS),
        "channels": list(facts["channels"]) if "channels" in record else [],
        "most_drawn": SHOWN_CHANNELS,
        "accuracies": any(
            run["training"]["epochs"][0]["accuracy"] is not None for run in record.get("trainings", ())
        ),
        "several_settings": len(record.get("settings") or ()) > 1 or len(labels) > 2,
    }


def _drawn(changed: Sequence[Fact]) -> list[tuple[Fact, str]]:
    """The layers that are drawn: of repeated blocks that with the largest error, and what all are called."""
    found = [raw(layer) for layer in changed]
    names = [one["name"] for one in found]
    kinds = [(one["graph"], one["op"], str(one["weight"]), one["method"], len(one["ranks"])) for one in found]
    groups = alike(names, kinds)
    if len(changed) <= SHOWN_LAYERS or 2 * len(groups) > len(changed):
        return [(layer, "") for layer in changed]
    worst = [max(places, key=lambda at: found[at]["rel_error"] or 0.0) for places in groups]
    return [
        (changed[at], text.visible(in_common(names[place] for place in places)) if places[1:] else "")
        for at, places in zip(worst, groups, strict=True)
    ]


def _models(facts: Fact) -> list[Fact]:
    """The files that a page of several models compares."""
    kind = raw(facts["kind"])
    if kind == "bench":
        return list(facts["models"])
    if kind != "trainings":
        return []
    return [run["output" if known(run["output"]["path"]) else "model"] for run in facts["trainings"]]


def _named(facts: Fact, labels: Sequence[str]) -> list[str]:
    """Their names, traced."""
    paths = [model["path"] for model in _models(facts)]
    return [tagged(p, label) if known(p) else label for p, label in zip(paths, labels, strict=True)]


def _title(record: Mapping[str, Any], labels: Sequence[str], form: Callable[[str], str] = str) -> str:
    if record["kind"] == "bench":
        first, *others = map(form, labels)
        return f"{', '.join(others)} against {first}" if others else first
    if record["kind"] == "trainings":
        return ", ".join(map(form, labels))
    path = record["model"]["path"]
    return form(text.visible(PurePath(path).name, 80)) if path else "model in memory"


def _heading(facts: Fact, labels: Sequence[str]) -> str:
    """The title, traced."""
    from markupsafe import Markup

    if raw(facts["kind"]) == "bench":
        names = _named(facts, labels)
        return Markup(" against ").join([Markup(", ").join(names[1:]), names[0]]) if names[1:] else names[0]
    if raw(facts["kind"]) == "trainings":
        return Markup(", ").join(_named(facts, labels))
    path = facts["model"]["path"]
    return tagged(path, _title(raw(facts), labels)) if known(path) else "model in memory"


def short_names(paths: Sequence[str]) -> list[str]:
    """File names, with a number where they are the same."""
    names = [text.visible(PurePath(path).name, 60) for path in paths]
    counts = Counter(names)
    return [f"{name} ({place + 1})" if counts[name] > 1 else name for place, name in enumerate(names)]


def _html_filter(form: Callable[[Any], str]) -> Callable[[Fact], str]:
    from markupsafe import Markup

    missing = Markup('<span class="none">–</span>')
    return lambda fact: tagged(fact, form(raw(fact))) if known(fact) else missing


def _text_filter(form: Callable[[Any], str]) -> Callable[[Fact], str]:
    return lambda fact: form(raw(fact)) if known(fact) else "–"


def _safe(own: str) -> str:
    """A file of this package, which is no text to escape."""
    from markupsafe import Markup

    return Markup(own)
