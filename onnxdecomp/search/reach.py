"""What is out of reach whatever is lost: told before layers are weighed, and after."""

from __future__ import annotations

from collections.abc import Sequence

from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import Skip
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.metrics.base import Sizes
from onnxdecomp.search.search_notes import idle, out_of_reach
from onnxdecomp.search.select import choose
from onnxdecomp.search.targets import Budget


def require_reach(
    profiles: LayerProfiles, skips: Sequence[Skip], costs: Sequence[Budget], sizes: Sizes
) -> None:
    """Refuse budgets that all layers and channels at their least would not keep.

    Args:
        profiles: With all that could be done, whatever it loses.
        skips: Operators that could not be read.
        costs: The budgets, on costs alone.
        sizes: Of files; those of a file that was not made yet count as 0.

    Raises:
        UsageError: One of them is out of reach; the line says what is not.
    """
    found = choose(profiles, skips, costs, sizes=sizes) if costs else None
    if isinstance(found, OutOfReach) and any(
        least > budget.allowed(budget.cost.of_original(profiles, sizes))
        for budget, least in zip(costs, found.least, strict=True)
    ):
        raise refusal(profiles, costs, sizes, found)


def refusal(profiles: LayerProfiles, costs: Sequence[Budget], sizes: Sizes, found: OutOfReach) -> UsageError:
    """What is raised where budgets on costs are out of reach."""
    original = {budget.quantity: budget.cost.of_original(profiles, sizes) for budget in costs}
    reach = out_of_reach(costs, found, original)
    return UsageError("; ".join((reach, *idle(profiles))))
