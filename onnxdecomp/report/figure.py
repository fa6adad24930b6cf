"""Figures: Matplotlib's SVG with text that stays text, and colours that follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from onnxdecomp.runtime.process_state import alone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

INK, FAINT, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
"""Colours that stand for the page's own: text, what matters less, lines in the background, the background."""

SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
"""Likewise of what is compared, in order: the original first."""

LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (2, 4)))
"""Line styles to go with them: colours alone do not tell everybody apart what they mean."""

MARKERS = ("o", "s", "^", "D", "v", "P")

_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    PAPER: "--paper",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES, 1)},
}
_FROM = "from:"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONT = "DejaVu Sans"  # Matplotlib's own: layouts do not depend on the machine


@contextmanager
def figure(
    width: float = 4.4, height: float = 2.7, margins: tuple[float, float, float, float] | None = None
) -> Iterator[tuple[Figure, Axes]]:
    """A figure of this size in inches with one pair of axes, in the page's style.

    Figures are small and shown a little larger than they are, so that their text can be read on a phone.

    Args:
        width, height: Inches.
        margins: Left, right, bottom and top of the axes; None lets the texts decide, at twice the time.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as New

    with alone("matplotlib"), mpl.rc_context(_style()):  # its settings are the process's
        made = New(figsize=(width, height), layout="constrained" if margins is None else None)
        if margins is not None:
            left, right, bottom, top = margins
            made.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        axes = made.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield made, axes


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers on it: Matplotlib's own are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def traced(text: Text, pointer: str) -> None:
    """Mark a text as a value of the record."""
    text.set_gid(_FROM + pointer)


def svg(made: Figure, label: str, salt: str) -> str:
    """The figure as an <svg> element.

    Args:
        made: Within `figure`.
        label: What it shows, for those who do not see it.
        salt: Unique among the figures of a page: identifiers are derived from it.
    """
    import matplotlib as mpl
    from markupsafe import Markup

    buffer = io.BytesIO()
    with alone("matplotlib"), mpl.rc_context({"svg.hashsalt": salt}):
        made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    text = ElementTree.tostring(root, encoding="unicode")
    _tidy(root, text)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"#0000[01]\d", lambda match: f"var({_VARIABLES[match[0]]})", text)
    return Markup(text.replace(f"'{_FONT}'", "system-ui"))


def _tidy(root: ElementTree.Element, text: str) -> None:
    """Identifiers that nothing refers to go: they would be there once for every figure of a page."""
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text))
    for element in root.iter():
        name = element.attrib.get("id")
        if name is None or name in used:
            continue
        del element.attrib["id"]
        if name.startswith(_FROM):
            element.set("data-from", name.removeprefix(_FROM))


def _style() -> Any:
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": [_FONT],
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "text.parse_math": False,  # a "$" in a layer's name is a dollar sign
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.use_mathtext": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "lines.linewidth": 1.6,
        "hatch.linewidth": 0.6,
    }
