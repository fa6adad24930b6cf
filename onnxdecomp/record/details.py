"""What a report shows beyond what a run needs: spectra, the graph around layers, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from onnxdecomp.errors import ModelError
from onnxdecomp.evaluate.benchmark import BenchResult
from onnxdecomp.graph.load import load
from onnxdecomp.latency.kernel_profile import Profile, profile
from onnxdecomp.latency.meter import Watch
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.layers import LayerRecord
from onnxdecomp.record.node_view import Surroundings, surroundings
from onnxdecomp.runtime import jsonio

Key: TypeAlias = tuple[str, str]
"""A layer: the graph that it stands in, and its name."""


@dataclass(frozen=True, eq=False)
class Details:
    """Of the layers of a run, by graph and name.

    Attributes:
        spectra: Singular values of the decomposed ones, as JSON values.
        nodes: What stood and stands there.
        before, after: Where the time goes in the original and in the result; None where not looked at.
    """

    spectra: Mapping[Key, Any] = field(default_factory=dict)
    nodes: Mapping[Key, Surroundings] = field(default_factory=dict)
    before: Profile | None = None
    after: Profile | None = None

    def of(self, layer: LayerRecord) -> dict[str, Any]:
        """What the record of a layer has beside what happened to it; every key always."""
        key = (layer.graph, layer.name)
        latency = None
        if self.before is not None and self.after is not None:
            # A kernel that was fused into another's name is not found: no number is better than none.
            before, after = self.before.layers.get(layer.name), self.after.layers.get(layer.name)
            latency = None if before is None and after is None else {"before": before, "after": after}
        return {
            "latency_ms": latency,
            "spectra": list(self.spectra.get(key, ())),
            "nodes": jsonio.plain(self.nodes.get(key)),
        }

    def profile(self) -> dict[str, Any] | None:
        """The record's `profile`."""
        if self.before is None or self.after is None:
            return None
        return {
            "unit": "ms",
            **{
                when: {"total": found.total, "layers": sum(found.layers.values()), "other": found.other}
                for when, found in (("before", self.before), ("after", self.after))
            },
        }


def details_of(
    rewritten: Sequence[Rewritten], spectra: Sequence[Mapping[str, Any]], layers: Sequence[LayerRecord]
) -> Details:
    """Spectra and surroundings.

    Args:
        rewritten: The layers that were replaced, in the model as it is now.
        spectra: What the decompose stage has recorded: layers with `graph`, `layer` and `spectra`.
        layers: Those of the plan as it was carried out in the end.
    """
    done = {(layer.graph, layer.name) for layer in layers if layer.status == "decomposed"}
    found = {(entry["graph"], entry["layer"]): entry["spectra"] for entry in spectra}
    return Details(
        spectra={key: value for key, value in found.items() if key in done},
        nodes={(r.site.layer.graph, r.site.layer.name): surroundings(r) for r in rewritten},
    )


def with_profiles(details: Details, new: Path, layers: Sequence[LayerRecord], watch: Watch) -> Details:
    """The same with the time that every layer takes in both models; only on the CPU.

    Elsewhere a kernel returns before its work is done, and its time says nothing.
    """
    if watch.provider != "cpu":
        return details
    names = [layer.name for layer in layers]

    def of(path: Path) -> Profile:
        return profile(path, load(path), names, watch.inputs()[0], threads=watch.threads)

    return replace(details, before=of(watch.original), after=of(new))


def timed_elsewhere(
    first: BenchResult | None,
    new: Path,
    watch: Watch,
    batches: Sequence[int],
    threads: Sequence[int],
    *,
    decide: bool = False,
) -> tuple[BenchResult, tuple[str, ...]]:
    """The timing that decides, and those at further batch sizes and numbers of threads.

    Args:
        first: The timing that decided, at batch 1; made now where there is none.
        new: The result's file.
        watch: Times.
        batches, threads: Every further combination is timed.
        decide: The first goes on until it is known whether the result is faster.

    Returns:
        All timings, and notes on what could not be timed.
    """
    first = first or watch.time(new, decide=decide)
    settings, notes = list(first.settings), []
    known = {(watch.threads, 1), (watch.threads, first.settings[0].models[0].batch)}
    for count in threads or (watch.threads,):
        for batch in batches:
            if (count, batch) in known:
                continue
            try:
                found = watch.time(new, threads=count, batch=batch).settings
            except ModelError as error:
                notes.append(f"not timed at batch {batch}: {error}")
                break
            if batch != found[0].models[0].batch and batch != 1:
                notes.append(
                    f"not timed at batch {batch}: the model takes {found[0].models[0].batch} at a time"
                )
                break
            settings.extend(found)
    return replace(first, settings=tuple(settings)), tuple(dict.fromkeys(notes))
