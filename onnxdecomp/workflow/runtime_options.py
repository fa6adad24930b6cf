"""Options of `compress` that say where, on what and how long models are timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxdecomp.core.options import option
from onnxdecomp.workflow.run_options import RunOptions

if TYPE_CHECKING:
    from onnxdecomp.runtime.setting import Setting


@dataclass(frozen=True)
class RuntimeOptions(RunOptions):
    """Where, on what and how long models are timed, behind how the run is done."""

    provider: str = option(
        "cpu",
        "Execution provider to verify and time on; 'onnxdecomp doctor' lists them",
        group="runtime",
        metavar="NAME",
    )
    threads: int | None = option(
        None,
        "Threads within an operator",
        group="runtime",
        metavar="N",
        at_least=1,
        otherwise="all cores",
    )
    batch: int | None = option(
        None,
        "Rows of the input that everything is timed on, and so what is chosen for, where the model leaves "
        "its batch free. On the command line also a TOML file that names many models to compress",
        group="runtime",
        metavar="N|FILE.toml",
        at_least=1,
        otherwise="one sample, or the rows that the data's own inputs have",
    )
    precision: Literal["fp32", "tf32", "fp16", "bf16"] | None = option(
        None,
        "What floating point is computed in where it is timed: both models are converted for it, or the "
        "provider is told to; what is written keeps its type",
        group="runtime",
        otherwise="as the provider does",
    )
    profile: Literal["default", "deploy"] = option(
        "default",
        "Options that the provider is timed with; deploy: those that a careful user deploys with "
        "(docs/guides/gpu.md)",
        group="runtime",
    )
    provider_options: Mapping[str, str] = option(
        {},
        "An option of the provider by ONNX Runtime's name, such as prefer_nhwc=1; it wins over those of the "
        "profile. Repeatable",
        group="runtime",
        flag="--provider-option",
        metavar="NAME=VALUE",
    )
    bench: bool = option(
        True, "Time the result against the original", group="after", flag="--bench/--no-bench"
    )
    bench_seconds: float = option(
        2.0, "Seconds that timing may take, roughly", group="after", flag=None, above=0
    )
    bench_batches: tuple[int, ...] = option(
        (1,),
        "Time the result at this batch size too; repeatable. What decides is --batch",
        group="after",
        flag="--bench-batch",
        metavar="N",
        at_least=1,
        otherwise="with a report 1 and 16",
    )
    bench_threads: tuple[int, ...] = option(
        (),
        "Time the result with so many threads too; repeatable. What decides is --threads",
        group="after",
        metavar="N",
        at_least=1,
        otherwise="with a report 1 and --threads",
    )

    @property
    def setting(self) -> Setting:
        """Under what everything is timed, with a thread for each core where none are named.

        Raises:
            UsageError: The provider has no such precision, profile or options.
        """
        from onnxdecomp.runtime.environment import cores
        from onnxdecomp.runtime.setting import setting_of

        threads, options = self.threads or cores(), self.provider_options
        return setting_of(self.provider, threads, self.batch, self.precision or "", self.profile, options)
