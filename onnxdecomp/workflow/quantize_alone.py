"""Quantization alone, where fewer bits are asked for and nothing is said of a decomposition.

A search takes minutes, and who says no more than `--quantize` expects what quantizers do: a smaller and
faster file, soon. A target, ranks, a method, a largest error or a metric ask for the rest.
"""

from __future__ import annotations

from onnxdecomp.pipeline.base import Planner
from onnxdecomp.search.plan_options import NO_METHOD
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_checks import IN_A_PLAN

_ASKING = (*IN_A_PLAN, "plan", "max_error", "metric", "refine", "finetune", "repair", "requantize")
"""Options that say how far to decompose, or what with."""

NOTE = (
    "nothing but fewer bits was asked for, so no layer is decomposed: --method width --target macs=1.5x "
    "makes the model smaller and faster before it is quantized, --method auto searches as without --quantize"
)


def quantizes_alone(config: CompressConfig) -> bool:
    """Whether fewer bits are all that is asked for."""
    said = any(name in config.origins or config.said(name) for name in _ASKING)
    planners = {each.name for each in config.passes if isinstance(each, Planner)}
    return bool(config.fewer_bits and planners) and not said and not planners & config.pipeline.options.keys()


def alone(config: CompressConfig) -> CompressConfig:
    """The same without a decomposition, where fewer bits are all that is asked for."""
    return CompressConfig.of(config, {"method": NO_METHOD}) if quantizes_alone(config) else config
