"""Values as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

_LONGEST = 240
"""Characters of a name that are shown: some exporters write whole call stacks into them."""


_MOST_INPUTS = 4
"""Inputs whose shapes are shown."""


def visible(text: str, longest: int = _LONGEST) -> str:
    """A name without what is no letter for the eye: control, direction and other invisible characters."""
    shown = "".join(_visible(letter) for letter in text)
    return shortened(shown, longest)


def full(text: str) -> str:
    """All of a text that people copy."""
    return visible(text, 1 << 16)


def _visible(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)  # its picture
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\u{code:04x}"
    return letter


def shortened(text: str, longest: int) -> str:
    """The beginning and the end, where a text is longer."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def count(number: float, unit: str = "") -> str:
    """A quantity with three digits: 1.23M, or 1.23 MB where it has a unit."""
    gap = " " if unit else ""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit * 0.9995:
            return f"{number / limit:.3g}{gap}{prefix}{unit}"
    return f"{number:.0f}{gap}{unit}"


def size(number: float) -> str:
    """Bytes."""
    return count(number, "B")


_OPEN = 2.0
"""Ends of an interval further apart than by this factor do not say how fast something is."""


def as_fast(value: float, low: float | None, high: float | None, where: str = "") -> str:
    """A speed beside another: "2.41x as fast"; where the interval is too wide, that the factor is open."""
    if low is None or high is None or high <= _OPEN * low:
        return f"{value:.2f}x as fast{where}"
    what = "faster" if low > 1 else "slower" if high < 1 else "faster or slower"
    return f"{what}{where}, by how much is undecided"


def times(number: float) -> str:
    """A factor: 2.41×."""
    return f"{number:.2f}×"


def percent(number: float) -> str:
    """A share: 0.9123 is 91.23 %."""
    return f"{100 * number:.2f} %"


def share(number: float) -> str:
    """A round share: 0.95 is 95 %."""
    return f"{100 * number:g} %"


def when(stamp: str) -> str:
    """A moment: 2026-01-31T12:00:00+00:00 without the letters."""
    return visible(stamp.replace("T", " ").replace("+00:00", " UTC"))


def points(number: float) -> str:
    """A change of a share: -0.006 is −0.60 points."""
    return f"{100 * number:+.2f}".replace("-", "−")


def value(number: float) -> str:
    """What a metric says: four digits."""
    return f"{number:.4g}".replace("-", "−")


def change(number: float) -> str:
    """What has changed of that, with its sign."""
    return f"{number:+.3g}".replace("-", "−")


def ms(number: float) -> str:
    """Milliseconds with four digits, or as many decimals as a microsecond has."""
    return f"{number:.3f}" if number < 10 else f"{number:.4g}"


def small(number: float) -> str:
    """An error: three digits."""
    return f"{number:.3g}"


def precise(number: float) -> str:
    """Six digits: of a cosine that is nearly 1."""
    return f"{number:.6g}"


def decimal(number: float) -> str:
    """One place behind the point."""
    return f"{number:.1f}"


def seconds(number: float) -> str:
    """A duration."""
    return f"{number:.3g} s" if number < 120 else f"{number / 60:.1f} min"


def listed(values: Sequence[object]) -> str:
    """Ranks, or a shape's dimensions."""
    return ", ".join("?" if value is None else str(value) for value in values)


def shape(values: Sequence[object]) -> str:
    """64×32×3×3."""
    return "×".join("?" if value is None else visible(str(value), 20) for value in values) or "scalar"


def ranges(values: Sequence[Mapping[str, float]], between: str = ", ") -> str:
    """Ranks or sizes of several layers, each from the least to the greatest: 4-16, 2."""
    pairs = [(f"{value['low']:.0f}", f"{value['high']:.0f}") for value in values]
    return between.join(low if low == high else f"{low}-{high}" for low, high in pairs)


def sizes(values: Sequence[Mapping[str, float]]) -> str:
    """The same as a shape: 64-128×32."""
    return ranges(values, "×")


def spread(value: Mapping[str, float]) -> str:
    """Errors from the least to the greatest."""
    low, high = small(value["low"]), small(value["high"])
    return low if low == high else f"{low}-{high}"


def fed(shapes: Mapping[str, Sequence[object]]) -> str:
    """What a model was fed: "x 1×3×64×64, h 1×64"; of many inputs the first ones."""
    named = [f"{visible(str(name), 40)} {shape(sizes)}" for name, sizes in shapes.items()]
    more = len(named) - _MOST_INPUTS
    return ", ".join(named) if more <= 0 else f"{', '.join(named[:_MOST_INPUTS])} and {more} more"


def setting(
    provider: str, batch: int, threads: int, precision: str = "", profile: str = "", graph: bool = False
) -> str:
    """Where something was timed."""
    further = [precision, profile if profile != "default" else "", "CUDA graph" if graph else ""]
    workers = "default threads" if not threads else f"{threads} thread{'s' if threads > 1 else ''}"
    return ", ".join((f"{provider.upper()}, batch {batch}", workers, *filter(None, further)))
