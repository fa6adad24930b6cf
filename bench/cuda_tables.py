"""The table of bench/cuda.py: what was timed on a card, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.cuda_kernels import kernels_said
from bench.intervals import Difference
from bench.provenance import markdown


def table(found: list[dict[str, Any]]) -> str:
    """A row for each batch of each case, and sentences on numbers and kernels."""
    said = [kernels_said(case) for case in found if "chains" in case]
    said += [_numbers_said(case) for case in found if case["case"] == "numbers" and len(case) > 1]
    head = ("case", "batch", "MACs", "original, ms", "speedup [95 %]", "realised", "without graphs")
    rows = []
    for case in (case for case in found if "search" in case):
        search, timed = case["search"], case["time"]
        took = search.get("failed") or _took(search)
        if failed := ("" if "macs" in search else took) or timed.get("failed"):
            rows.append((case["case"], "", "", "", failed, "", "", "", ""))
            continue
        for own in timed.get("batches", ()):
            plain = own.get("without_graph")
            rows.append(
                (
                    case["case"],
                    str(own["batch"]),
                    f"{search['macs']:.2f}x",
                    f"{own['deploy']['original_ms']:.3f}",
                    _speed(own["deploy"]),
                    f"{own['deploy']['realised']:.2f}",
                    "" if plain is None else _speed(plain),
                    took,
                    _metric(case["metrics"]),
                )
            )
    return "\n\n".join((markdown((*head, "search, s", "metric"), rows), *said))


def _numbers_said(found: Mapping[str, Any]) -> str:
    errors = {name: error for name, error in found.items() if isinstance(error, float) and name != "seconds"}
    each = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return f"Outputs of decomposed networks on the provider, relative to the processor's, differ by: {each}."


def _took(search: Mapping[str, Any]) -> str:
    """What the search took, or that there was a plan."""
    said = f"{search['took_s']:.0f} ({search['cores']} cores)"
    return said if search["searched"] else f"plan given; {said}"


def _metric(found: Mapping[str, Any]) -> str:
    """The change of the task's metric, with its interval."""
    return Difference(**found["change"]).text(1, 4, "") if found.get("change") else ""


def _speed(timed: Mapping[str, Any]) -> str:
    value, low, high = timed["speedup"]
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"
