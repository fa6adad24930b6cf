"""The setting of a question: where models run, on how many rows, in which precision, with which options.

All that is timed for a choice is timed under one of these, and the choice holds for it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.cache_folder import cache_folder
from onnxdecomp.runtime.providers import Options, provider_of

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16"]
Profile: TypeAlias = Literal["default", "deploy"]

_CACHE = "{cache}"
"""Stands for the folder of caches in the options of a provider's row."""


@dataclass(frozen=True)
class Setting:
    """Under what models are timed.

    Attributes:
        provider: The short name, see onnxdecomp.runtime.providers.
        threads: Within an operator; 0 for ONNX Runtime's own choice.
        batch: Rows of the input, where somebody has asked for so many.
        precision: What floating point is computed in; "" leaves it to the provider.
        profile: "deploy": the options that the provider's row names for deployment.
        given: Options of the provider that the user has named; they win over those of the others.
    """

    provider: str = "cpu"
    threads: int = 1
    batch: int | None = None
    precision: Precision | Literal[""] = ""
    profile: Profile = "default"
    given: Options = ()

    @property
    def options(self) -> dict[str, str]:
        """The provider's options, by ONNX Runtime's names."""
        row = provider_of(self.provider)
        chosen = dict(row.deploy) if self.profile == "deploy" else {}
        chosen |= dict(row.precisions.get(self.precision, ())) | dict(self.given)
        folder = str(cache_folder())
        return {name: value.replace(_CACHE, folder) for name, value in chosen.items()}

    @property
    def converted(self) -> str:
        """What models are converted to before they run, "fp16" or ""; providers that do it get an option."""
        row = provider_of(self.provider)
        return "fp16" if self.precision == "fp16" and not row.halves else ""

    @property
    def graph(self) -> bool:
        """Whether a run is recorded once and then replayed as a whole (CUDA graphs)."""
        name = provider_of(self.provider).graph
        return bool(name) and self.options.get(name, "0").lower() in ("1", "true")

    @property
    def without_graph(self) -> Setting:
        """The same where every run launches its kernels itself."""
        name = provider_of(self.provider).graph
        return self._with(name, "0") if self.graph else self

    @property
    def quick(self) -> Setting:
        """The same for models that live for a moment: cuDNN's algorithms are looked up, not searched.

        ONNX Runtime searches them where it is told nothing, too.
        """
        given = dict(self.given)
        made = self
        for name, value in provider_of(self.provider).quick:
            made = made if name in given else made._with(name, value)
        return made

    def _with(self, name: str, value: str) -> Setting:
        return replace(self, given=tuple(sorted((dict(self.given) | {name: value}).items())))


def setting_of(
    provider: str,
    threads: int,
    batch: int | None = None,
    precision: str = "",
    profile: str = "default",
    options: Mapping[str, str] | None = None,
) -> Setting:
    """The setting, once it is clear that the provider has it.

    Raises:
        UsageError: There is no such provider, or it has no such precision, profile or options.
    """
    row = provider_of(provider)
    if precision and precision not in row.precisions:
        known = ", ".join(row.precisions) or "none to choose"
        raise UsageError(f"{row.name} does not compute in {precision} on request (it knows: {known})")
    if profile == "deploy" and not row.deploy:
        raise UsageError(f"{row.name} has no options for deployment: leave --profile out")
    if options and not row.takes_options:
        raise UsageError(f"{row.name} has no options: leave --provider-option out")
    given = tuple(sorted((name, str(value)) for name, value in (options or {}).items()))
    return Setting(row.name, threads, batch, precision, profile, given)  # type: ignore[arg-type]
