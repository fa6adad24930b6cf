"""Refinement of a compressed model, block after block, against its original: without labels.

The closed forms fit one layer at a time. What they leave is made up for by the weights of a whole block
together (AA-SVD, Sinha and Fleuret 2026; block reconstruction, Li et al. 2021): the block gets what the
compressed model gives by then, and has to make what the original has at its end. Last, all of them go for the
model's outputs, and for these ends as well: outputs alone are few numbers, which many weights learn by heart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.calibration.pinned_values import pinned
from onnxdecomp.core.refinement import BlockOutcome, Refinement
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.output_file import on_disk
from onnxdecomp.graph.traversal import operands
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.runtime.memory_budget import KEPT
from onnxdecomp.runtime.session import Feed
from onnxdecomp.training.agreement import EXACT, check_agreement
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.autograd.tensors import as_tensors
from onnxdecomp.training.device import torch_device
from onnxdecomp.training.refinement.batches import Batch, batches, pin, positions, real
from onnxdecomp.training.refinement.blocks import Block, blocks
from onnxdecomp.training.refinement.descent import Descent, Example, descend
from onnxdecomp.training.refinement.trimming import Trimming
from onnxdecomp.training.refinement.values import Passage, compute
from onnxdecomp.training.roles import Role, roles
from onnxdecomp.training.store import store
from onnxdecomp.training.threads import torch_threads

Tensor: TypeAlias = torch.Tensor

_STEP = 256 << 20
"""Bytes of values that a step may make."""

_APART = 10
"""Of so many samples one decides."""

_LAST = 0.3
"""Share of the rate for what is compared by the outputs: they are few numbers."""

_CHECKED = 4
"""Feeds on which torch and ONNX Runtime are compared."""


@dataclass(frozen=True)
class How:
    """How a model is refined.

    Attributes:
        layers: Rewritten layers in a block, about.
        epochs: Passes over the samples for each block; 0 refines the whole model only.
        whole: Passes for the model as a whole; 0 leaves it at the blocks.
        rate: Largest learning rate, as a share of a tensor's root mean square.
        steps: Steps that a block gets at least: few samples are passed over more often.
        batch: Samples in a step, at most.
        seed: Of the order of the samples.
    """

    layers: int = 4
    epochs: int = 5
    whole: int = 3
    rate: float = 1e-2
    steps: int = 100
    batch: int = 32
    seed: int = 0


def refine(
    model: ir.Model,
    original: ir.Model,
    feeds: Feeds,
    held_out: Feeds | None,
    how: How,
    *,
    fixed: Collection[str] = (),
    mask: Mask | None = None,
    threads: int | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Refinement | None:
    """Refine a model's initializers in place; on CUDA where torch finds it.

    Args:
        model: The compressed model.
        original: What it was made of: values of one name are compared.
        feeds: Calibration inputs.
        held_out: Others, which nothing was fitted to; None takes a tenth of the calibration inputs.
        how: Blocks, rates, epochs.
        fixed: Names of initializers that stay as they are.
        mask: Which positions are padding.
        threads: Of torch; None is as torch has it.
        report: Told of every step.

    Returns:
        What came of it; None where there is nothing to refine.

    Raises:
        ModelError: torch cannot run one of the models as ONNX Runtime does.
        UsageError: There are fewer than two samples.
    """
    fixed = {*fixed, *_tables(model)}
    chosen = [role for role in roles(model) if role.name not in fixed]
    if not any(role.kind == "factor" for role in chosen):
        return None
    if len(feeds) < 2:
        raise UsageError(f"refinement needs at least two samples, not {len(feeds)}")
    judging = held_out
    if judging is None:
        feeds, judging = feeds.apart(min(_APART, len(feeds)))

    def on(device: str) -> Refinement:
        with torch_threads(threads):
            network = Network(model, [role.name for role in chosen], device=device)
            others = Network(original, device=device)
            run = _Run(network, others, {role.name: role for role in chosen}, how, mask, report)
            return _refined(model, run, feeds, judging)

    device = torch_device()
    try:
        return on(device)
    except RuntimeError:  # too little memory on a card, or what its kernels do not take
        if device == "cpu":
            raise
        return on("cpu")


def _refined(model: ir.Model, run: _Run, feeds: Feeds, held_out: Feeds) -> Refinement:
    """The same once it is clear where; the model changes at the end."""
    began = time.perf_counter()
    checked = tuple(islice(feeds, _CHECKED))
    with on_disk(model) as path:
        check_agreement(model, path, run.network, checked, run.mask)
    run.trim(Trimming.of(model, run.mask), checked)
    stretches = run.stretches()
    run.draw(feeds, held_out, stretches, pinned(model))
    before = run.error()
    found = run.all(stretches)
    after = run.error()
    kept = after < before
    if kept:
        done = {name for block in stretches for name in block.weights}
        store(model, {name: run.network.parameters[name] for name in done})
    samples, judged = (sum(batch.count for batch in part) for part in (run.train, run.held_out))
    seconds = time.perf_counter() - began
    return Refinement(tuple(found), samples, judged, before, after, kept, seconds)


def _tables(model: ir.Model) -> Iterator[str]:
    """Tables of embeddings that are whole: most rows are of words that no sample has."""
    for match in find(model, freeze=True)[0]:
        if match.layer.lookup and LAYER not in match.nodes[0].metadata_props:
            yield from (str(v.name) for node in match.nodes for v in operands(node) if v.is_initializer())


def _spread(feeds: Feeds, most: int) -> tuple[Feed, ...]:
    """So many feeds at most, at even distances."""
    count = min(most, len(feeds))
    places = {index * len(feeds) // count for index in range(count)}
    return tuple(feed for index, feed in enumerate(feeds) if index in places)


class _Run:
    """Both models, and the samples on their way through them."""

    def __init__(
        self,
        network: Network,
        original: Network,
        chosen: dict[str, Role],
        how: How,
        mask: Mask | None,
        report: Callable[[str, int, int], None] | None,
    ) -> None:
        self.network, self.original, self.chosen = network, original, chosen
        self.how, self.mask = how, mask
        self.report = report or (lambda what, done, total: None)
        self.train: list[Batch] = []
        self.held_out: list[Batch] = []
        self.pins: tuple[str, ...] = ()
        self.trimming: Trimming | None = None
        self.done, self.steps = 0, 0

    def stretches(self) -> list[Block]:
        """The blocks, and the model as a whole behind them."""
        how, graph = self.how, self.network.graph
        found = list(blocks(graph, self.original.graph, list(self.chosen), how.layers))
        whole = blocks(graph, self.original.graph, list(self.chosen), len(list(graph)) + 1)
        if not how.whole or len(found) == 1:
            return found
        ends = tuple(dict.fromkeys(name for block in found for name in (*block.leaves, *block.hints)))
        return [
            *found[: None if how.epochs else 0],
            *(replace(one, hints=tuple(name for name in ends if name not in one.leaves)) for one in whole),
        ]

    def trim(self, trimming: Trimming | None, feeds: Sequence[Feed]) -> None:
        """Cut padding off if the original's outputs on these feeds are the same without it."""
        if trimming is None or self.mask is None:
            return
        for feed in feeds:
            whole = as_tensors(feed)
            cut = as_tensors(trimming.cut(feed, trimming.length(feed)))
            with torch.no_grad():
                found = [self.original(one) for one in (whole, cut)]
            for name in self.original.outputs:
                one, two = (
                    self._shown(value[name], given) for value, given in zip(found, (whole, cut), strict=True)
                )
                if one.shape != two.shape or not torch.allclose(one, two, rtol=EXACT, atol=EXACT):
                    return
        self.trimming = trimming

    def _shown(self, value: Tensor, feed: Mapping[str, Tensor]) -> Tensor:
        """What is real of a value, [n]."""
        which = real(self.mask, feed, value.shape)
        return value.reshape(-1) if which is None else value[which]

    def draw(self, feeds: Feeds, held_out: Feeds, stretches: Sequence[Block], pins: Collection[str]) -> None:
        """Put samples in batches: as many, and as large, as the memory that values may take lets."""
        self.pins = tuple(name for name in pins if self.network.knows(name) and self.original.knows(name))
        how, trimming = self.how, self.trimming
        usual = next(iter(feeds)) if trimming is None else trimming.typical(tuple(feeds))
        first = batches((usual,), 1, how.seed, stackable=False)
        pin(first, self.original, self.pins)
        held, made = self._sizes(first[0], stretches)
        size = max(1, min(how.batch, _STEP // max(made, 1)))
        most = max(_APART, KEPT // max(held, 1))
        for part, some, count in (
            (self.train, feeds, most - most // _APART),
            (self.held_out, held_out, most // _APART),
        ):
            drawn = batches(
                _spread(some, count),
                size,
                how.seed,
                stackable=some.stackable,
                trimming=trimming,
                mask=self.mask,
            )
            part.extend(drawn)
            pin(part, self.original, self.pins)

    def _sizes(self, batch: Batch, stretches: Sequence[Block]) -> tuple[int, int]:
        """Bytes of a feed's values: those that are held at most, and those that a step makes at most."""
        held = made = 0
        for block in stretches:
            if not block.enters:
                batch.rewind()
            passage = self._passage(block)
            example = self._example(batch, block, passage, ())
            with torch.no_grad():
                values = self.network.section(passage.nodes, example.given)
            batch.new = {name: values[name] for name in block.leaves}
            kept = (*example.given.values(), *batch.old.values(), *batch.new.values())
            held = max(held, sum(value.nbytes for value in kept))
            made = max(made, sum(value.nbytes for value in values.values()))
        return held, made

    def all(self, stretches: Sequence[Block]) -> list[BlockOutcome]:
        """Refine one block after the other."""
        whole = [not block.enters and set(block.leaves) >= set(self.network.outputs) for block in stretches]
        epochs = [self._epochs(self.how.whole if alone else self.how.epochs) for alone in whole]
        self.steps = sum(epochs) * len(self.train)
        found = []
        for block, passes in zip(stretches, epochs, strict=True):
            if not block.enters:
                for batch in (*self.train, *self.held_out):
                    batch.rewind()
            outcome = self._refined(block, passes)
            if outcome is not None:
                found.append(outcome)
        return found

    def _epochs(self, wanted: int) -> int:
        return max(wanted, math.ceil(self.how.steps / max(1, len(self.train))))

    def _refined(self, block: Block, epochs: int) -> BlockOutcome | None:
        """Refine a block, and move the samples to its end."""
        passage = self._passage(block)
        own = [self.chosen[name] for name in block.weights]
        for name, tensor in self.network.parameters.items():
            tensor.requires_grad_(name in block.weights)
        names = self._comparable(block, passage)
        parts = (self.train, self.held_out)
        train, held_out = ([self._example(one, block, passage, names) for one in part] for part in parts)
        made = None
        if own and train[0].wanted:
            last = set(block.leaves) >= set(self.network.outputs)
            share = math.sqrt(min(1.0, self.how.layers / max(1, len(block.layers))))  # their steps add up
            rate = self.how.rate * share * (_LAST if last else 1.0)
            how = Descent(epochs, rate, seed=self.how.seed)
            made = descend(passage, own, train, held_out, how, self._step)
        with torch.no_grad():
            for batch, example in zip((*self.train, *self.held_out), (*train, *held_out), strict=True):
                batch.new = passage(example.given)
        if made is None:
            return None
        ends = tuple(name for name in names if name in block.leaves)
        return BlockOutcome(ends, block.layers, len(own), made.before, made.after, made.epoch)

    def _step(self) -> None:
        self.done += 1
        self.report("refine", self.done, self.steps)

    def _passage(self, block: Block) -> Passage:
        leaves = dict.fromkeys((*block.leaves, *block.hints))
        return Passage.of(self.network, block.enters, tuple(leaves), block.weights, self.pins)

    def _comparable(self, block: Block, passage: Passage) -> tuple[str, ...]:
        """The values of a block that both models have in the same shape."""
        batch = self.train[0]
        with torch.no_grad():
            made = passage(compute(self.network, passage.needs, {**batch.feed, **batch.new}))
            old = compute(self.original, passage.leaves, {**batch.feed, **batch.old})
        alike = (
            name
            for name, value in made.items()
            if value.is_floating_point() and value.shape == old[name].shape
        )
        return tuple(alike)

    def _example(self, batch: Batch, block: Block, passage: Passage, names: Sequence[str]) -> Example:
        """A batch as the block sees it; the original is moved to the block's end."""
        with torch.no_grad():
            given = compute(self.network, passage.needs, {**batch.feed, **batch.new})
            old = compute(self.original, passage.leaves, {**batch.feed, **batch.old})
        batch.old = {name: old[name] for name in block.leaves}
        found = {name: real(self.mask, batch.feed, old[name].shape) for name in names}
        shown = {name: which for name, which in found.items() if which is not None}
        wanted = {name: old[name] for name in names if name in block.leaves}
        hints = {name: old[name] for name in names if name not in block.leaves}
        return Example(given, wanted, hints, shown, batch.weight, positions(self.mask, batch.feed))

    def error(self) -> float:
        """Relative L2 error of the worst output on the samples held out."""
        off: dict[str, float] = {}
        norm: dict[str, float] = {}
        with torch.no_grad():
            for batch in self.held_out:
                made = compute(self.network, self.network.outputs, batch.feed)
                for name, wanted in compute(self.original, self.original.outputs, batch.feed).items():
                    if name not in made or not wanted.is_floating_point() or made[name].shape != wanted.shape:
                        continue
                    which = real(self.mask, batch.feed, wanted.shape)
                    difference, shown = made[name] - wanted, wanted
                    if which is not None:
                        difference, shown = difference[which], wanted[which]
                    off[name] = off.get(name, 0.0) + float(difference.double().square().sum())
                    norm[name] = norm.get(name, 0.0) + float(shown.double().square().sum())
        return max((math.sqrt(off[name] / max(norm[name], 1e-30)) for name in off), default=0.0)
