"""The page and the Markdown: complete, self-contained, traceable to the record, and safe."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onnxdecomp import report
from onnxdecomp.record.schema.records import RECORDS
from onnxdecomp.record.text import visible
from onnxdecomp.report import markdown, validate
from onnxdecomp.report.page import SECTIONS, code, prose, sections, short_names
from tests.report.conftest import Record

VOID = frozenset(("meta", "link", "br", "input"))
UNTRACED = ("svg", "style", "script", "thead", "title")
"""Where digits may stand that are no value: axes, styles, column names."""

HOSTILE = "</script><img src=x onerror=alert(1)>\x07\u202e|`$x^2$"


def html(record: Record) -> str:
    """The page, drawn once for each record: its figures take most of a second."""
    return _drawn(json.dumps(record))


@cache
def _drawn(record: str) -> str:
    return report.html(json.loads(record))


@dataclass
class Traced(HTMLParser):
    """The elements with `data-from`: (pointer, value, text); and the text outside of them."""

    found: list[tuple[str, str | None, str]] = field(default_factory=list)
    rest: str = ""
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    _open: list[tuple[str, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in VOID:
            return
        place = None
        if given.get("data-from") is not None:
            place = len(self.found)
            self.found.append((given["data-from"] or "", given.get("value"), ""))
        self._open.append((tag, place))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag, place in reversed(self._open):
            if place is not None:
                pointer, value, text = self.found[place]
                self.found[place] = (pointer, value, text + data)
                return
            if tag in UNTRACED:
                return
        self.rest += f" {data}"


def parsed(page: str) -> Traced:
    traced = Traced()
    traced.feed(page)
    return traced


def at(record: Any, pointer: str) -> Any:
    """The value that a JSON pointer names."""
    value = record
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def shown_number(text: str) -> tuple[float, float]:
    """The number that a text shows, and half a unit of its last digit."""
    found = re.fullmatch(r"([+−-]?\d+)(\.\d+)?(e[+-]?\d+)?\s?(%|×|[kMG]?B?|s|min)?", text.strip())
    assert found, text
    unit = (found[4] or "").removesuffix("B")
    scale = {"%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9, "min": 60.0}.get(unit, 1.0) * float(
        f"1{found[3] or ''}"
    )
    number = float((found[1] + (found[2] or "")).replace("−", "-"))
    return number * scale, 0.5 * 10.0 ** -max(0, len(found[2] or "") - 1) * scale


def shows(text: str, exact: float) -> bool:
    number, half = shown_number(text)
    return abs(number - exact) <= half * (1 + 1e-6)


def test_every_number_on_the_page_stands_in_the_record(record: Record) -> None:
    page = parsed(html(record))
    numbers = [(pointer, value, text) for pointer, value, text in page.found if value is not None]
    assert len(numbers) > 12
    for pointer, number, text in numbers:
        exact = at(record, pointer)
        assert json.loads(number or "") == exact, pointer
        if pointer.endswith(("/accuracy", "/accuracy/change")) and "/epochs/" not in pointer:
            exact *= 100  # shown in points
        assert shows(text, exact), (pointer, text, exact)
    for pointer, value, text in page.found:
        exact = at(record, pointer)
        if value is None and isinstance(exact, int | float):  # in a figure
            assert shows(text, exact), (pointer, text, exact)
        elif value is None:
            assert set(re.findall(r"\d+", text)) <= set(re.findall(r"\d+", json.dumps(exact))), pointer
    # What is not traced holds no number.
    rest = re.sub(r"sha256|\bL2\b|Top-1", "", page.rest)
    assert re.findall(r".{0,20}\d.{0,20}", rest) == []


@pytest.mark.parametrize("path", sorted(SECTIONS.iterdir()), ids=lambda path: path.name)
def test_a_section_shows_a_field_of_a_record(path: Path, every_record: list[Record]) -> None:
    field = path.stem.partition("-")[2]
    assert any(field in kind.__annotations__ for kind in RECORDS.values())
    shown = [record for record in every_record if record.get(field) is not None]
    assert shown
    name = f"{SECTIONS.name}/{path.name}"
    assert all(name in sections(record, path.suffix[1:]) for record in shown)


def test_plans_that_were_tried_and_what_had_to_pay(search_record: Record) -> None:
    assert search_record["search"]["tries"]
    assert search_record["looks"]
    shown = {pointer for pointer, _, _ in parsed(html(search_record)).found}
    assert {"/search/tries/0/error", "/looks/0/decomposed", "/looks/0/outcome", "/targets/1/reached"} <= shown


def test_kinds_that_were_weighed_are_shown(quantized_record: Record) -> None:
    assert "Kinds of fewer bits" not in html(quantized_record)
    record = copy.deepcopy(quantized_record)
    ratio = {"value": 0.4321, "low": 0.41, "high": 0.45, "confidence": 0.95}
    record["passes"]["quantize"]["candidates"] = [
        {"kind": "int8-dynamic", "ratio": ratio, "error": 0.0217, "chosen": True, "reason": ""},
        {"kind": "int8-block", "ratio": None, "error": None, "chosen": False, "reason": "no such kernel"},
    ]
    page = html(record)
    assert all(text in page for text in ("Kinds of fewer bits", "int8-dynamic", "no such kernel", "0.0217"))


def test_figures_trace_their_numbers_and_keep_their_text(search_record: Record, ranks_record: Record) -> None:
    page = html(ranks_record)
    assert "<text" in page
    assert "<image" not in page
    assert "mathdefault" not in page
    drawn = re.findall(r'<g data-from="([^"]+)">\s*(?:<!--.*?-->)?\s*<text[^>]*>([^<]+)<', page, re.DOTALL)
    assert {"/layers/0/spectra/0/rank", "/settings/0/models/1/speedup/value"} <= {place for place, _ in drawn}
    for pointer, text in drawn:
        assert shows(text, at(ranks_record, pointer))
    labels = re.findall(r'aria-label="([^"]+)"', html(search_record))
    assert "Speed against loss of all candidates, with the chosen plan marked" in labels
    # Colours follow the theme, and identifiers are unique.
    assert not re.search(r"#0000[01]\d", page)
    names = re.findall(r'\sid="([^"]+)"', page)
    assert len(names) == len(set(names))


def test_the_page_needs_nothing_else(record: Record) -> None:
    page = html(record)
    assert len(page.encode()) < 3_000_000
    links = [
        attrs[name] or ""
        for _, attrs in parsed(page).tags
        for name in ("src", "href", "xlink:href", "action", "srcset")
        if name in attrs
    ]
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_verdict_comes_first(
    ranks_record: Record, unchanged_record: Record, bench_record: Record
) -> None:
    for found in (ranks_record, unchanged_record):
        page = html(found)
        assert found["verdict"]["text"] in page
        assert page.index("<h1") < page.index("<h2")
        assert markdown(found).splitlines()[2].startswith("### ")
    assert "Not worth it" in html(unchanged_record)
    assert unchanged_record["verdict"]["because"][0] in html(unchanged_record)
    assert "size &lt;= 0.9" in html(bench_record) or "size&lt;=0.9" in html(bench_record)
    assert bench_record["gate"]["failures"][0]["reason"].split(" = ")[0] in html(bench_record)


def test_repeated_blocks_have_rows_together(blocks_record: Record, ranks_record: Record) -> None:
    assert "layer_families" not in ranks_record
    families, channels = blocks_record["layer_families"], blocks_record["channel_families"]
    assert sum(family["layers"] for family in families) == len(blocks_record["layers"]) == 42
    assert sum(family["params"]["after"] or 0 for family in families) == sum(
        layer["params"]["after"] or 0 for layer in blocks_record["layers"]
    )
    assert sum(family["channels"] for family in channels) == blocks_record["totals"]["channels"]["all"]
    page, filled = html(blocks_record), markdown(blocks_record)
    assert page.index("layer-families") < page.index("Every layer") < page.index('id="layers"')
    assert "smaller layers" not in page  # bars are those of families, too
    rows = [line for line in filled.splitlines() if line.startswith("| `")]
    assert len(rows) == len(families) + len(channels) <= 12
    assert "| `/MatMul_*` | 20 | MatMul 32×32 | **svd** 8, cut to 16-32×16-32 |" in filled
    whole = markdown(blocks_record, all_layers=True)
    assert sum(line.startswith("| `") for line in whole.splitlines()) == 42 + 20


def hostile(record: Record) -> Record:
    """The record with names that try to be markup."""
    changed = copy.deepcopy(record)
    for layer in changed["layers"]:
        layer["name"] = HOSTILE + "n" * 5000
        layer["reason"] = layer["reason"] and HOSTILE
        for node in (layer["nodes"] or {"before": []})["before"]:
            node["name"] = node["op"] = HOSTILE
            node["weights"] = {HOSTILE + "~/": [3, 3]}
        for entry in layer["spectra"]:
            entry["name"] = HOSTILE
    for channel in changed.get("channels", ()):
        channel["name"] = HOSTILE + "n" * 5000
        channel["reason"] = channel["reason"] and HOSTILE
        channel["producers"] = channel["readers"] = [HOSTILE, HOSTILE]
    changed["model"]["path"] = f"/tmp/{HOSTILE}.onnx"
    changed["run"]["command"] = f"onnxdecomp compress '{HOSTILE}'"
    changed["verify"]["outputs"][0]["name"] = HOSTILE
    changed["notes"] = [HOSTILE]
    changed["environment"]["device"] = HOSTILE
    return changed


def test_of_repeated_layers_the_one_with_the_largest_error_is_drawn(ranks_record: Record) -> None:
    """Of 20 blocks of two layers two drawings, in place of 24 that are alike; of 10 blocks all."""

    def drawn(blocks: int) -> list[str]:
        record = copy.deepcopy(ranks_record)
        layers = [layer for layer in record["layers"] if layer["nodes"]]
        record["layers"] = [
            {**layer, "name": f"block{at}.{layer['name']}", "rel_error": 0.9 if at == 7 else 0.1}
            for at in range(blocks)
            for layer in layers
        ]
        return re.findall("<details[^>]*><summary><strong>(.*?)</summary>", html(record))

    assert len(ranks_record["layers"]) == 2
    whole = drawn(20)
    assert len(whole) == 2
    assert all("block7.c" in one and " of block*.c" in one for one in whole)
    assert len(drawn(10)) == 20
    assert not any(" of block" in one for one in drawn(10))


@pytest.mark.parametrize("name", ["ranks_record", "cut_record"])
def test_hostile_names_stay_text(name: str, request: pytest.FixtureRequest) -> None:
    plain: Record = request.getfixturevalue(name)
    changed = hostile(plain)
    page = parsed(html(changed))
    assert "img" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    shown = [text for pointer, _, text in page.found if pointer == "/notes/0"]
    assert shown == ["</script><img src=x onerror=alert(1)>␇\\u202e|`$x^2$"]
    assert all(ord(letter) >= 32 or letter == "\n" for letter in html(changed))
    assert len(html(changed)) < 2 * len(html(plain))  # names of 5,000 characters are shortened


@pytest.mark.parametrize("name", ["ranks_record", "cut_record"])
def test_hostile_names_in_markdown(name: str, request: pytest.FixtureRequest) -> None:
    from markdown_it import MarkdownIt

    plain: Record = request.getfixturevalue(name)
    filled = markdown(hostile(plain))
    tree = parsed(MarkdownIt("gfm-like", {"linkify": False}).render(filled))
    allowed = {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "strong", "ul", "li"}
    assert {tag for tag, _ in tree.tags} <= allowed | {"details", "summary"}
    tables = [MarkdownIt("gfm-like", {"linkify": False}).render(text) for text in (filled, markdown(plain))]
    assert tables[0].count("<tr>") == tables[1].count("<tr>")


def test_channels_are_drawn_before_and_after(cut_record: Record, ranks_record: Record) -> None:
    page, filled = html(cut_record), markdown(cut_record)
    assert [label for label in re.findall(r'aria-label="([^"]+)"', page) if "channel" in label] == [
        "Filter channels",
        "The channel c1 before and after its cut",
    ]
    drawn = dict(
        re.findall(r'<g data-from="([^"]+)">\s*(?:<!--.*?-->)?\s*<text[^>]*>([^<]+)<', page, re.DOTALL)
    )
    assert (drawn["/channels/0/width"], drawn["/channels/0/kept"]) == ("32", "16")
    text = re.sub(r"<[^>]+>", "", page)
    assert "svd 4, cut to 16×8×3×3" in text
    assert "cut to 32×16×3×3" in text
    assert "1 of 2 layers rewritten, 1 of 1 channels cut" in text
    assert "| `c1` | `c2` | **width** | 32 | 16 |" in filled
    assert "| `c2` | Conv | cut to 32×16×3×3 |" in filled
    # Not among the rewritten layers: its nodes are those that it had.
    assert cut_record["layers"][1]["nodes"] is None
    assert cut_record["layers"][0]["nodes"]["before"][0]["weights"] == {"w1": [32, 8, 3, 3]}
    assert "Channels</h2>" not in html(ranks_record)
    assert "channels" not in markdown(ranks_record)


def test_records_from_before_channels(cut_record: Record) -> None:
    """A release reads those of earlier ones: they have none of the keys."""
    old = copy.deepcopy(cut_record)
    for part in (old, old["plan"], old["totals"]):
        del part["channels"]
    for part in (*old["layers"], *old["plan"]["choices"]):
        part.pop("left", None)
    del old["totals"]["layers"]["cut"]
    validate(old)
    assert "Channels</h2>" not in html(old)
    assert "| `c2` | Conv | kept" in markdown(old)


@pytest.mark.parametrize("name", ["plain", "a`b", "``", "`", "a|b", "@somebody", "x\ny", ""])
def test_code_in_markdown(name: str) -> None:
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(f"| a |\n| --- |\n| {code(name)} |\n")
    cell = rendered.partition("<td>")[2].partition("</td>")[0]
    assert cell.startswith("<code>")
    assert cell.endswith("</code>")
    assert parsed(cell).rest.strip() == visible(name)


def test_prose_in_markdown_is_no_markup() -> None:
    from markdown_it import MarkdownIt

    sentence = "*a* _b_ [c](d) <e> `f` @g #1 & |"
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(prose(sentence))
    assert parsed(rendered).rest.strip() == sentence
    assert {tag for tag, _ in parsed(rendered).tags} == {"p"}


def test_names_of_compared_models_are_told_apart() -> None:
    assert short_names(["a/net.onnx", "b/net.onnx", "c.onnx"]) == ["net.onnx (1)", "net.onnx (2)", "c.onnx"]


def test_markdown_is_complete(record: Record) -> None:
    filled = markdown(record)
    assert filled.startswith("## onnxdecomp: `")
    lines = filled.splitlines()
    tables = [place for place, line in enumerate(lines) if line.startswith(("| ---", "| ---:"))]
    assert tables
    assert [lines[place - 2] for place in tables] == [""] * len(tables)  # else two would be one
    assert "Fact object" not in filled
    assert "None" not in filled
    assert "<data" not in filled


def test_a_metric_stands_on_the_page_with_its_interval(cut_record: Record) -> None:
    found = cut_record["verify"]["metric"]
    page, text = html(cut_record), markdown(cut_record)
    assert "The metric" in page
    assert 'data-from="/verify/metric/low"' in page
    assert 'data-from="/verdict/metric/new"' in page
    assert f"`token-agreement` {found['original']:.4g} → {found['new']:.4g}" in text
    assert "95 % interval" in text


@pytest.mark.parametrize(("high", "shown"), [(2.5, "2.40×"), (199.55, "undecided")])
def test_a_speed_that_nobody_could_time_is_undecided(ranks_record: Record, high: float, shown: str) -> None:
    record = copy.deepcopy(ranks_record)
    record["verdict"]["speedup"] = {
        **record["settings"][0]["models"][1]["speedup"],
        **{"value": 2.4, "low": 2.3, "high": high, "provider": "cpu", "batch": 1, "threads": 1},
    }
    tile = re.search(r">Speed<b>(.*?)</b>", html(record))
    assert tile is not None
    assert re.sub(r"<[^>]+>", "", tile[1]) == shown
