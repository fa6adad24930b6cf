"""RankSpec: what `--rank` says, and the ranks that it gives a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxdecomp.core.layer import Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, Pooling, refusal_of
from onnxdecomp.errors import UsageError
from onnxdecomp.ranks.rounding import round_to_multiple

Rule = Literal["ranks", "fraction", "energy", "error", "evbmf"]

FORMS = '"16", "16,32", "0.5" (of full), "energy=0.95", "error=0.05" or "evbmf"'
"""The forms of `--rank`, for messages and help."""


@dataclass(frozen=True)
class RankSpec:
    """A rule for ranks; `str` gives the text back that `parse` reads.

    Attributes:
        rule: "ranks" takes `ranks` as they are; "fraction" that part of the full ranks; "energy" the
            smallest ranks that keep that part of each spectrum's squared norm; "error" small ranks whose
            relative Frobenius error is at most that; "evbmf" the analytic Bayesian rank.
        ranks: Of the rule "ranks": one for all of a layer's ranks (a cap), or one each.
        amount: Of "fraction", "energy" and "error": in (0, 1].
    """

    rule: Rule
    ranks: Ranks = ()
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.rule == "ranks" and (not self.ranks or min(self.ranks) < 1):
            raise UsageError(f"--rank {self}: a rank is at least 1")
        if self.rule in ("fraction", "energy", "error") and not 0 < self.amount <= 1:
            raise UsageError(f"--rank {self}: give a number above 0 and at most 1")

    def __str__(self) -> str:
        if self.rule == "ranks":
            return ",".join(map(str, self.ranks))
        if self.rule == "evbmf":
            return "evbmf"
        return repr(self.amount) if self.rule == "fraction" else f"{self.rule}={self.amount!r}"


def parse(text: str) -> RankSpec:
    """Read what `--rank` was given; one of FORMS.

    Raises:
        UsageError: It is none of these, or a number is out of its range.
    """
    text = text.strip()
    rule, _, amount = text.partition("=")
    try:
        if text == "evbmf":
            return RankSpec("evbmf")
        if rule == "energy":
            return RankSpec("energy", amount=float(amount))
        if rule == "error":
            return RankSpec("error", amount=float(amount))
        if "." in text or "e" in text.lower():
            return RankSpec("fraction", amount=float(text))
        return RankSpec("ranks", tuple(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"--rank {text!r} is not a rank: give {FORMS}") from None


def check(method: Decomposition, spec: RankSpec) -> None:
    """Refuse a number of ranks that the method never has.

    Raises:
        UsageError: As many ranks as no layer has under this method.
    """
    count, names = len(spec.ranks), method.rank_names
    if spec.rule == "ranks" and count not in (1, len(names)) and "…" not in names:
        raise UsageError(
            f"--rank {spec}: method {method.name} takes one number or {len(names)} ({', '.join(names)})"
        )


def choose(method: Decomposition, layer: Layer, spec: RankSpec, multiple: int = 1) -> Ranks | str:
    """The ranks of this layer, or the reason why it has none.

    A single number under a method of several ranks caps each at its full rank. A list of another length
    than the layer has ranks (Tucker's pair on a Gemm, which is an SVD) is a reason; see `check` for what
    is a mistake. With a `multiple` above 1 ranks are rounded to the nearest multiple, or to the next one
    up where the rule promises an error or an energy.

    Raises:
        UsageError: The multiple is below 1.
        ModelError: The weight holds NaN or infinite values.
    """
    if multiple < 1:
        raise UsageError(f"--rank-multiple {multiple}: give 1 or more")
    if (reason := refusal_of(method, layer)) is not None:
        return reason
    full = method.full_ranks(layer)
    match spec.rule:
        case "ranks":
            chosen = _given(spec, full)
            if isinstance(chosen, str):
                return chosen
        case "fraction":
            chosen = method.fraction_ranks(layer, spec.amount)
        case "error":
            chosen = method.ranks_for_error(layer, spec.amount)
        case "energy" | "evbmf":
            chosen = _from_spectra(method, layer, spec)
    up = spec.rule in ("energy", "error")
    return tuple(round_to_multiple(r, multiple, f, up=up) for r, f in zip(chosen, full, strict=True))


def _given(spec: RankSpec, full: Ranks) -> Ranks | str:
    if len(spec.ranks) == 1 and len(full) > 1:
        (cap,) = spec.ranks
        if cap > max(full):
            return f"rank {cap} is above the full ranks {','.join(map(str, full))}"
        return tuple(min(cap, f) for f in full)
    if len(spec.ranks) != len(full):
        return f"{len(spec.ranks)} ranks were given and this layer has {len(full)}"
    above = next(((r, f) for r, f in zip(spec.ranks, full, strict=True) if r > f), None)
    return f"rank {above[0]} is above the full rank {above[1]}" if above else spec.ranks


def _from_spectra(method: Decomposition, layer: Layer, spec: RankSpec) -> Ranks:
    from onnxdecomp.ranks.evbmf import evbmf
    from onnxdecomp.tensor.linalg import tail_rank

    matrices = math.prod(layer.weight.shape[:-2]) if layer.is_stack else layer.groups
    if isinstance(method, Pooling):
        matrices *= method.parts(layer)
    size = layer.weight.size // matrices
    ranks = []
    for values in method.spectra(layer):
        if spec.rule == "energy":
            ranks.append(tail_rank(values, math.sqrt(1 - spec.amount)))
        else:
            # Pooled over the matrices; one of them has the mean of the squares.
            short = len(values)
            ranks.append(max(1, evbmf(values / math.sqrt(matrices), short, size // short)))
    full = method.full_ranks(layer)
    if len(ranks) > len(full):  # CP: one rank that serves every mode
        ranks = [max(ranks)]
    return tuple(min(r, f) for r, f in zip(ranks, full, strict=True))
