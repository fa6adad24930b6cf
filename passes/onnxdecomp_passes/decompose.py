"""The decompose stage: plan, fit the factors, put the chains in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from onnxdecomp.errors import UsageError
from onnxdecomp.graph.shapes import infer_shapes
from onnxdecomp.plan.carry_out import carry_out
from onnxdecomp.plan.plan import Plan
from onnxdecomp.plan.rules import Defaults, make_rule, parse_rule
from onnxdecomp.plan.uniform import Request, Saving, plan_uniform
from onnxdecomp.ranks.multiple import quantum
from onnxdecomp.sites.base import Site
from onnxdecomp.sites.find import find
from onnxdecomp.sites.quantized import OLDEST_OPSET
from onnxdecomp.sites.rewrite import Rewritten
from onnxdecomp.stage import Stage, StageResult


@dataclass(frozen=True)
class Decompose(Stage):
    """Replace layers by chains of smaller ones."""

    name: ClassVar[str] = "decompose"
    summary: ClassVar[str] = "replace layers by chains of smaller ones"

    method: str = field(
        default="tucker",
        metadata={"help": "see 'onnxdecomp methods'; several with commas: a layer gets the first that fits"},
    )
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "a table of options for each method"}
    )
    layers: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "rules for single layers, PATTERN=METHOD[:rank=SPEC][:option=value] or PATTERN=keep"
        },
    )
    rank: str = field(
        default="0.5",
        metadata={"help": "16 | 16,32 | 0.5 (of full) | energy=0.95 | error=0.05 | evbmf"},
    )
    rank_multiple: str = field(
        default="1",
        metadata={"help": "round ranks to multiples of N; auto: what the provider's kernels block by"},
    )
    include: tuple[str, ...] = field(
        default=(), metadata={"help": "only layers whose name matches a pattern"}
    )
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "no layer whose name matches a pattern"})
    must_save: Saving = field(
        default="macs",
        metadata={
            "help": "what a chain must need less of than its layer: macs, params, both, either or none"
        },
    )
    skip_below: float = field(
        default=0.1,
        metadata={"help": "a layer stays if its MACs and parameters are below this share of the average's"},
    )
    freeze_initializers: bool = field(
        default=False, metadata={"help": "treat initializers that are also graph inputs as constants"}
    )
    requantize: bool = field(
        default=False,
        metadata={"help": "store the factors of quantized layers as int8 (activations stay floating point)"},
    )
    provider: str = field(default="cpu", metadata={"help": "the provider that rank_multiple=auto aligns to"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    on_layer: Callable[[int, int, str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        # A mistake in the request is known before anything starts.
        self._request()

    def plan(self, model: ir.Model) -> tuple[Plan, list[Site]]:
        """What would be done, without doing it (activation shapes are filled in)."""
        infer_shapes(model)
        sites, skips = find(model, freeze=self.freeze_initializers)
        return plan_uniform(sites, skips, self._request()), sites

    def call(self, model: ir.Model) -> StageResult:
        """Plan and carry out; the plan goes into the record."""
        plan, sites = self.plan(model)
        total = len(plan.decomposed)
        count = iter(range(total))
        report = self.on_layer
        opset = int(model.opset_imports.get("", 1))
        rewritten = carry_out(
            model,
            sites,
            plan,
            seed=self.seed,
            requantize=self.requantize and opset >= OLDEST_OPSET,
            on_layer=(lambda layer: report(next(count), total, layer)) if report else None,
        )
        return StageResult(
            model,
            bool(rewritten),
            notes=_notes(rewritten, self.requantize, opset),
            rewritten=rewritten,
            record={"plan": plan.to_json()},
        )

    def _request(self) -> Request:
        defaults = Defaults(self.rank, self.options)
        rules = (*(parse_rule(text, defaults) for text in self.layers), make_rule(self.method, defaults))
        used = {method.name for rule in rules for method in rule.methods}
        if unused := [name for name in self.options if name not in used]:
            raise UsageError(f"options are given for method {unused[0]!r}, which no layer is given")
        return Request(
            rules=rules,
            multiple=self._multiple(),
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            must_save=self.must_save,
            skip_below=self.skip_below,
        )

    def _multiple(self) -> int:
        if self.rank_multiple == "auto":
            return quantum(self.provider)
        try:
            multiple = int(self.rank_multiple)
        except ValueError:
            multiple = 0
        if multiple < 1:
            raise UsageError(f"rank multiple {self.rank_multiple!r} is neither a positive number nor 'auto'")
        return multiple


def _notes(rewritten: Sequence[Rewritten], requantize: bool, opset: int) -> tuple[str, ...]:
    quantized = sum(done.site.quantized for done in rewritten)
    stored = sum(done.quantized for done in rewritten)
    advice = "re-quantize with --requantize"
    if requantize and opset < OLDEST_OPSET:
        advice = f"--requantize needs opset {OLDEST_OPSET}, this model has {opset}"
    elif requantize:
        advice = "--requantize stores factors of float32 layers only"
    notes = []
    if stored:
        notes.append(f"{_factors_of(stored)} int8, the activations between them floating point")
    if quantized > stored:
        notes.append(f"{_factors_of(quantized - stored)} floating point ({advice})")
    return tuple(notes)


def _factors_of(count: int) -> str:
    if count == 1:
        return "1 layer was quantized; its factors are"
    return f"{count} layers were quantized; their factors are"
