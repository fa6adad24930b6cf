"""Metrics by name: those built in, and functions of users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from onnxdecomp.core.options import suggest
from onnxdecomp.data.callables import imported, is_callable_name
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.base import BuiltIn, TaskMetric
from onnxdecomp.evaluate.task_metrics.classes import Top1
from onnxdecomp.evaluate.task_metrics.embeddings import Spearman
from onnxdecomp.evaluate.task_metrics.logits import Kl, TokenAgreement
from onnxdecomp.evaluate.task_metrics.pixels import Psnr
from onnxdecomp.evaluate.task_metrics.text import Cer, Wer
from onnxdecomp.evaluate.task_metrics.user import UserMetric

MetricSource: TypeAlias = str | Callable[..., object] | TaskMetric
"""A name, `module:callable`, or a callable."""

BUILT_IN: Mapping[str, type[BuiltIn]] = {
    kind.key: kind for kind in (Top1, Psnr, Spearman, TokenAgreement, Kl, Wer, Cer)
}
"""By name, in the order in which help shows them."""


def task_metric(source: MetricSource) -> TaskMetric:
    """The metric of that name ("top1", "spearman:sentence_embedding" for a certain output), or of a user's.

    Raises:
        UsageError: There is none; a user's module is imported to see.
    """
    if isinstance(source, TaskMetric):
        return source
    if not isinstance(source, str):
        return UserMetric(source=getattr(source, "__qualname__", type(source).__name__), function=source)
    name, _, output = source.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name](output=output)
    if not is_callable_name(source):
        raise UsageError(
            f"--metric {source}: there is no metric of that name{suggest(source, BUILT_IN)}; your own is "
            "module:callable or file.py:callable"
        )
    with imported(source) as function:
        return UserMetric(source=source, function=function, imported=True)
