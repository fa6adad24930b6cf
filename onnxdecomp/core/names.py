"""Names of layers, nodes and values in a sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Sequence

MOST = 6
"""Names that are listed: a model may have hundreds, and the record has them all."""

_LONG = 160
"""Characters from which on a list is told by what its names have in common, however few they are."""

_NUMBER = re.compile(r"\d+")
_TOLD = re.compile(r"(?<![\w./:-])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=x?(?:[\s,;:)%]|$))|\d+")
"""Numbers of a sentence; the group has those that are no part of a name: 192, 1.05x, 3 %."""


def some(names: Sequence[str], least: int = 2 * MOST) -> str:
    """The names, of many the first ones and how many more there are: "a, b, c, d, e, f and 12 more".

    Args:
        names: All of them.
        least: So many are told by what they have in common where that is short: "24 of layer.*/{query, key}".
    """
    if len(names) >= least or (len(names) > 2 and len(", ".join(names)) > _LONG):
        families = [in_common(names[at] for at in places) for places in alike(names)]
        if len(families) <= min(MOST, len(names) // 2):
            return f"{len(names)} of {braced(families)}"
    # One more takes no more room than to say so.
    if len(names) <= MOST + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST])} and {len(names) - MOST} more"


def alike(names: Sequence[str], beside: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Indices of names that differ in numbers alone, in the order of the first ones.

    Args:
        names: Such as "layer.0/query" and "layer.1/query".
        beside: What must be equal, too.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, name in enumerate(names):
        key = (_NUMBER.sub("*", name), None if beside is None else beside[index])
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def in_common(names: Iterable[str]) -> str:
    """Names that are `alike` as one, with a * where their numbers differ: "layer.*/query"."""
    several = list(names)
    texts = _NUMBER.split(several[0])
    numbers = zip(*map(_NUMBER.findall, several), strict=True)
    same = [found[0] if len(set(found)) == 1 else "*" for found in numbers]
    return "".join(part for pair in zip(texts, [*same, ""], strict=True) for part in pair)


def braced(names: Sequence[str]) -> str:
    """Names with what they begin and end with told once: "layer.*/{query, key}/MatMul"."""
    if len(names) < 2:
        return ", ".join(names)
    before = os.path.commonprefix(names)  # noqa: RUF071 - of letters; cut at a separator below
    before = before[: 1 + max(map(before.rfind, "/."))]
    rests = [name[len(before) :] for name in names]
    after = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
    at = min((found for found in map(after.find, "/.") if found >= 0), default=len(after))
    after = after[at:]
    inner = ", ".join(rest[: len(rest) - len(after)] for rest in rests)
    return f"{before}{{{inner}}}{after}" if before or after else inner


def told_together(sentences: Sequence[str]) -> list[str]:
    """Sentences that differ in numbers alone as one each: "rank 3 to 9 takes 1.02x to 1.2x of its time"."""
    different = list(dict.fromkeys(sentences))
    return [_ranging([different[at] for at in places]) for places in alike(different)]


def _ranging(sentences: Sequence[str]) -> str:
    """Sentences that are `alike` as one."""
    texts = _TOLD.sub("\0", sentences[0]).split("\0")
    told = zip(*(list(_TOLD.finditer(sentence)) for sentence in sentences), strict=True)
    numbers = []
    for found in told:
        different = sorted({match[0] for match in found}, key=float)
        apart = f"{different[0]} to {different[-1]}" if found[0][1] else "*"
        numbers.append(different[0] if len(different) == 1 else apart)
    return "".join(part for pair in zip(texts, [*numbers, ""], strict=True) for part in pair)
