"""What a search says of how it ended: out of time, out of reach, or too slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxdecomp.calibration.reachability import UNREACHED
from onnxdecomp.core.names import some
from onnxdecomp.core.patterns import names_of
from onnxdecomp.runtime.deadline import Deadline, spoken
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LATE, LayerProfiles
from onnxdecomp.search.plan_trials import Tried
from onnxdecomp.search.select import Chosen
from onnxdecomp.search.targets import Budget


def ended(weighed: LayerProfiles, tried: Tried, deadline: Deadline | None) -> tuple[str, ...]:
    """That the time limit has ended the search, and where it was."""
    assert deadline is not None
    limit = f"the time limit of {spoken(deadline.seconds)} ended the search"
    if not weighed.late:
        found = f"{limit} after {len(tried.tries)} plans that were tried"
        return (f"{found}; more may find a better one (--time-limit)",)
    left = sum(entry.reason == LATE for entry in weighed.layers)
    done = "nothing is decomposed, for " if not tried.chosen.plan.changes else ""
    return (f"{limit}: {done}{left} of {len(weighed.layers)} layers were not weighed by then (--time-limit)",)


def idle(weighed: LayerProfiles) -> Iterator[str]:
    """What is said of layers that no input reaches: nothing is known of what they would lose."""
    names = [names_of(entry.match.layer)[-1] for entry in weighed.layers if entry.reason == UNREACHED]
    if names:
        yield f"kept, for no calibration input reaches them: {some(names)}"


def missed(chosen: Chosen, wanted: float | None) -> tuple[str, ...]:
    """What is said of a plan that is slower than asked for."""
    if wanted is None or chosen.measured is None or chosen.measured <= wanted:
        return ()
    return (
        f"the target of {1 / wanted:.3g}x in latency was missed: of the plans that were measured, the "
        f"fastest is {1 / chosen.measured:.3g}x as fast as the original",
    )


def out_of_reach(costs: Sequence[Budget], found: OutOfReach, original: Mapping[str, float]) -> str:
    """What the methods and layers allow at most; `original` is what the original costs."""
    least = found.least[-len(costs) :] if costs else ()
    reach = ", ".join(
        f"{budget.quantity}={original[budget.quantity] / value:.3g}x"
        for budget, value in zip(costs, least, strict=True)
        if value > 0
    )
    asked = ",".join(map(str, costs))
    within = all(
        value <= budget.allowed(original[budget.quantity]) for budget, value in zip(costs, least, strict=True)
    )
    if within:
        return f"--target {asked} cannot be kept together with the other limits: {found.reason}"
    return f"--target {asked} is out of reach: these methods and layers allow at most {reach}"
