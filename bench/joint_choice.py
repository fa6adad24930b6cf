"""How good the joint choice of widths and chains is, and how long it takes, against HiGHS and CP-SAT.

    python -m bench.joint_choice [--seconds 20] [--seeds 2] [--no-peers]

Made-up networks of 100 layers, each with 30 chains, whose channels have 8 widths: a path (as VGG), residual
stages (a stream that every block reads and adds to, and a channel in the block), feed-forward pairs (as in
transformers), and modules of four branches whose concatenation the next four read (as GoogLeNet; a layer
reads four channels). Costs are those of dense layers and of two-factor chains with these widths; losses
fall with rank and width, unevenly, over orders of magnitude. The budget is half of the costs, with two
budgets half of the parameters and of the MACs. The gap is (value - bound) / value as each solver itself
proves it; "over ours" is how much above our loss the solver's best choice is. HiGHS (scipy.optimize.milp)
gets one number per combination of a table (the local marginal polytope), CP-SAT (OR-Tools, where it is
installed) allowed combinations with whole-number costs and losses scaled to 2^40 in all; both on one thread
and with a limit of time.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.provenance import markdown, provenance, write
from onnxdecomp.search.joint_choice import Table, allocate_jointly
from onnxdecomp.search.knapsack import Allocation

Floats = NDArray[np.float64]
LEVELS = np.array([1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
CHAINS = 30


@dataclass(frozen=True, eq=False)
class Network:
    """An instance.

    Attributes:
        name: Of its kind.
        states: Of every variable.
        tables: What they cost and lose.
        limits: Half of what the network costs.
    """

    name: str
    states: tuple[int, ...]
    tables: tuple[Table, ...]
    limits: tuple[float, ...]


class _Drawing:
    """A network that is being made up."""

    def __init__(self, seed: int, budgets: int, levels: int, chains: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.budgets, self.levels, self.chains = budgets, LEVELS[:: len(LEVELS) // levels], chains
        self.states: list[int] = []
        self.tables: list[Table] = []
        self.dense = np.zeros(budgets)

    def channel(self) -> tuple[int, int]:
        """A variable and its full width."""
        width = int(2 ** self.rng.integers(5, 10))
        loss = 10 ** self.rng.uniform(-3, -0.5) * (1 - self.levels) ** self.rng.uniform(1, 3)
        loss *= self.rng.lognormal(0, 0.1, len(self.levels))
        variable = self._variable(len(self.levels))
        self.tables.append(Table((variable,), np.zeros((len(self.levels), self.budgets)), loss))
        return variable, width

    def layer(self, reads: Sequence[tuple[int, int]], makes: tuple[int, int] | None) -> None:
        """A layer with its chains, at all widths of its channels."""
        rng, out = self.rng, 1000 if makes is None else makes[1]
        full = sum(width for _, width in reads) if reads else 64
        ranks = np.unique(np.geomspace(2, min(full, out) / 2, self.chains).astype(int)).astype(float)
        share = ranks / min(full, out)
        loss = 10 ** rng.uniform(-4, -1) * (1 - share) ** 2 * rng.lognormal(0, 0.3, len(ranks))
        option = self._variable(len(ranks) + 1)
        pixels = np.array([1.0, *4.0 ** rng.integers(0, 6, self.budgets - 1)])
        columns: list[tuple[int | None, Floats]] = [(v, width * self.levels) for v, width in reads]
        columns = columns or [(None, np.array([float(full)]))]
        variable = [option, *([] if makes is None else [makes[0]])]
        rows = np.array([float(out)]) if makes is None else out * self.levels
        for place, (channel, own) in enumerate(columns):
            # Axes: the option, the channel made, the channel read; chains count their rows once.
            dense = rows[:, None] * own
            chain = ranks[:, None, None] * (own + (rows[:, None] if not place else 0.0))
            cost = np.concatenate([dense[None], np.broadcast_to(chain, (len(ranks), *dense.shape))])
            losses = np.zeros(cost.shape)
            if not place:
                losses += np.append(0.0, loss)[:, None, None]
            one = (slice(None), 0 if makes is None else slice(None), 0 if channel is None else slice(None))
            scope = (*variable, *([] if channel is None else [channel]))
            self.tables.append(Table(scope, cost[one][..., None] * pixels, losses[one]))
        self.dense += full * out * pixels

    def done(self, name: str) -> Network:
        return Network(name, tuple(self.states), tuple(self.tables), tuple((0.5 * self.dense).tolist()))

    def _variable(self, states: int) -> int:
        self.states.append(states)
        return len(self.states) - 1


def path(seed: int, layers: int = 100, budgets: int = 1, levels: int = 8, chains: int = CHAINS) -> Network:
    """Every layer reads what the one before makes."""
    drawing = _Drawing(seed, budgets, levels, chains)
    before: list[tuple[int, int]] = []
    for _ in range(layers - 1):
        made = drawing.channel()
        drawing.layer(before, made)
        before = [made]
    drawing.layer(before, None)
    return drawing.done("path")


def residual(
    seed: int, layers: int = 100, budgets: int = 1, levels: int = 8, chains: int = CHAINS
) -> Network:
    """Stages of blocks of two layers; the stream's width is the stage's."""
    drawing = _Drawing(seed, budgets, levels, chains)
    stream = drawing.channel()
    drawing.layer([], stream)
    left = layers - 2
    while left >= 2:
        if left % 20 == 0:
            wider = drawing.channel()
            drawing.layer([stream], wider)
            stream, left = wider, left - 1
        inner = drawing.channel()
        drawing.layer([stream], inner)
        drawing.layer([inner], stream)
        left -= 2
    drawing.layer([stream], None)
    return drawing.done("residual")


def pairs(seed: int, layers: int = 100, budgets: int = 1, levels: int = 8, chains: int = CHAINS) -> Network:
    """Two layers at a time have a channel; what is between the pairs stays."""
    drawing = _Drawing(seed, budgets, levels, chains)
    for _ in range(layers // 2):
        inner = drawing.channel()
        drawing.layer([], inner)
        drawing.layer([inner], None)
    return drawing.done("pairs")


def branches(
    seed: int, layers: int = 100, budgets: int = 1, levels: int = 8, chains: int = CHAINS
) -> Network:
    """Modules of four layers, each of which reads all four of the module before."""
    drawing = _Drawing(seed, budgets, levels, chains)
    before: list[tuple[int, int]] = []
    for _ in range(layers // 4):
        made = [drawing.channel() for _ in range(4)]
        for one in made:
            drawing.layer(before, one)
        before = made
    return drawing.done("branches")


def highs(network: Network, seconds: float) -> tuple[float, float]:
    """Value and bound of HiGHS' integer program; infinite and zero where it found none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    starts = np.cumsum([0, *network.states])
    count = int(starts[-1])
    loss, cost = [np.zeros(count)], [np.zeros((count, len(network.limits)))]
    rows, columns, values, right = [], [], [], []
    row = 0
    for variable, states in enumerate(network.states):
        rows += [row] * states
        columns += list(range(starts[variable], starts[variable] + states))
        values += [1.0] * states
        right.append(1.0)
        row += 1
    for table in network.tables:
        shape, size = table.loss.shape, table.loss.size
        if len(shape) == 1:
            own = slice(starts[table.variables[0]], starts[table.variables[0]] + size)
            loss[0][own] += table.loss
            cost[0][own] += table.cost
            continue
        loss.append(table.loss.ravel())
        cost.append(table.cost.reshape(size, -1))
        index = np.indices(shape).reshape(len(shape), -1)
        for variable, at in zip(table.variables, index, strict=True):
            states = network.states[variable]
            rows += (row + at).tolist() + list(range(row, row + states))
            columns += list(range(count, count + size)) + list(
                range(starts[variable], starts[variable] + states)
            )
            values += [1.0] * size + [-1.0] * states
            right += [0.0] * states
            row += states
        count += size
    losses, costs = np.concatenate(loss), np.concatenate(cost)
    equal = coo_array((values, (rows, columns)), shape=(row, count)).tocsr()
    whole = (np.arange(count) < starts[-1]).astype(int)
    scale = losses.max()
    solved = milp(
        losses / scale,
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(equal, right, right),
            LinearConstraint((costs / np.array(network.limits)).T, -np.inf, 1.0),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    value = math.inf if solved.x is None else float(solved.fun) * scale
    bound = getattr(solved, "mip_dual_bound", None)
    return value, 0.0 if bound is None else float(bound) * scale


def cp_sat(network: Network, seconds: float) -> tuple[float, float]:
    """Value and bound of CP-SAT, whose numbers are whole: costs rounded up, losses to the nearest."""
    cp_model: Any = importlib.import_module("ortools.sat.python.cp_model")

    model = cp_model.CpModel()
    variables = [model.new_int_var(0, states - 1, f"v{k}") for k, states in enumerate(network.states)]
    unit = sum(float(table.loss.max()) for table in network.tables) / 2**40
    costs: list[list[Any]] = [[] for _ in network.limits]
    losses: list[Any] = []
    for table in network.tables:
        size = table.loss.size
        picked = [model.new_bool_var("") for _ in range(size)]
        model.add_exactly_one(picked)
        index = np.indices(table.loss.shape).reshape(table.loss.ndim, -1)
        for variable, at in zip(table.variables, index, strict=True):
            model.add(
                variables[variable] == sum(int(state) * one for state, one in zip(at, picked, strict=True))
            )
        losses += [
            round(float(v) / unit) * one for v, one in zip(table.loss.ravel(), picked, strict=True) if v
        ]
        for budget, own in enumerate(costs):
            flat = np.ceil(table.cost[..., budget].ravel()).astype(int).tolist()
            own += [v * one for v, one in zip(flat, picked, strict=True) if v]
    for own, limit in zip(costs, network.limits, strict=True):
        model.add(sum(own) <= math.floor(limit))
    model.minimize(sum(losses))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    found = solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    value = solver.objective_value * unit if found else math.inf
    return value, solver.best_objective_bound * unit


def timed(solve: Callable[[], tuple[float, float]]) -> dict[str, float | None]:
    """What a solver found and how long it took, in processor seconds of this process."""
    start = time.process_time()
    value, bound = solve()
    seconds = time.process_time() - start
    return {"value": value if value < math.inf else None, "bound": bound, "seconds": seconds}


def ours(network: Network) -> tuple[float, float]:
    """Value and bound of the joint choice."""
    made = allocate_jointly(network.states, network.tables, network.limits)
    return (made.loss, made.bound) if isinstance(made, Allocation) else (math.inf, 0.0)


def main() -> None:
    """Measure and write bench/results/joint_choice.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each peer per network")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    peers: dict[str, Callable[[Network, float], tuple[float, float]]] = {}
    if not options.no_peers:
        peers["highs"] = highs
        if importlib.util.find_spec("ortools"):
            peers["cp_sat"] = cp_sat
    sizes = [(100, 1), (100, 2), (12, 1), (12, 2)]
    jobs = [(kind, *size) for kind in (path, residual, pairs, branches) for size in sizes]
    ours(path(0, 12, 2))  # imports
    rows: list[dict[str, Any]] = []
    for kind, layers, budgets in jobs:
        for seed in range(options.seeds):
            network = kind(seed, layers, budgets)
            row: dict[str, Any] = {
                "network": network.name,
                "layers": layers,
                "budgets": budgets,
                "seed": seed,
            }
            row["ours"] = timed(partial(ours, network))
            for name, peer in peers.items():
                row[name] = timed(partial(peer, network, options.seconds))
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    head = ["network, layers, budgets", "s", "gap"]
    for name in peers:
        head += [f"{name}: s", "gap", "over ours"]
    table = markdown(head, (_cells(list(group), list(peers)) for _, group in itertools.groupby(rows, _kind)))
    said = (
        f"Means of {options.seeds} networks; processor time, one thread, {options.seconds:g} s for each peer."
    )
    write("joint_choice", {**provenance(), "rows": rows}, f"{table}\n\n{said}")


def _kind(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["network"], row["layers"], row["budgets"]


def _cells(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> list[str]:
    cells = [", ".join(map(str, _kind(rows[0])))]
    for name in ("ours", *peers):
        own = [row[name] for row in rows]
        solved = [(one, row["ours"]["value"]) for one, row in zip(own, rows, strict=True) if one["value"]]
        cells.append(f"{np.mean([one['seconds'] for one in own]):.2f}")
        none = f" ({len(rows) - len(solved)} unsolved)" if len(solved) < len(rows) else ""
        if not solved:
            cells += ["–", "–"][: 1 + (name != "ours")]
            continue
        gaps = [max(0.0, one["value"] - one["bound"]) / one["value"] for one, _ in solved]
        cells.append(f"{np.mean(gaps):.2%}{none}")
        if name != "ours":
            cells.append(f"{np.mean([one['value'] / value - 1 for one, value in solved]):+.2%}")
    return cells


if __name__ == "__main__":
    main()
