"""The corpus of larger models, where there is one: its files, its calibration, its metrics sample by sample.

It lies beside the corpus of small models, in corpus-large/, and its files are fetched by its own script.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.intervals import Difference, paired_difference, paired_rate
from onnxdecomp.core.layer import Array

_CALIBRATION = {
    "minilm_l6": 800,
    "ppocrv5_rec": 192,
    "whisper_tiny_en_encoder": 32,
    "mobilenet_v2": 100,
    "efficientnet_lite0": 100,
}
"""Samples, where they are not the corpus' own number: all pictures that there are; 800 sentences; 32
utterances, which are mostly silence and of which the corpus takes 8."""

_SEARCHED = {"ppocrv5_rec": 64}
"""Samples by which a plan is chosen, where all of them would take long; it is carried out with all."""

_EVALUATION = {"whisper_tiny_en_encoder": 72, "whisper_tiny_en_decoder": 72}
"""Samples to judge by, where they are not the corpus' own number: 24 utterances are 196 words."""

_OWN_LENGTHS: Mapping[str, tuple[int, int, int]] = {"whisper_tiny_en_encoder": (64, 24, 6)}
"""Models that are fitted to samples of their own lengths: how many there are, how many of them padded, and
how many of those by which a plan is chosen. An utterance padded to 30 s is three quarters silence, which
takes most of the time; but silence is what the model will see, and late positions are in no other."""

_GROUPS = 10
"""Into which samples are divided for a jackknife."""

_T = 2.262157
"""Student's 97.5 % quantile for so many groups less one."""

DECODERS = ("whisper_tiny_en_decoder",)
"""Models that are fitted to what they have written themselves, and timed with one token."""

_TEXTS, _STEPS, _EVERY, _SEED = 12, 20, 6, 77
"""Utterances that a decoder writes down, tokens of each, of how many one is kept; the utterances' seed."""

_WEIGHT: Mapping[str, Callable[[Any], int]] = {
    "wer": lambda record: len(re.sub(r"[^a-z0-9 ']", " ", record[1].lower()).split()),
    "cer": lambda record: len(record[1]),
}
"""Of rates of errors: what the errors of a sample are a share of, its words or characters."""


@dataclass(frozen=True)
class LargeCorpus:
    """The corpus in `folder`, with the pictures of the one in `small`."""

    folder: Path
    small: Path

    def models(self) -> Mapping[str, Any]:
        """Its models by name; none where there is no such corpus."""
        if not (self.folder / "corpus_large.py").exists():
            return {}
        return {model.name: model for model in self._module.MODELS}

    def model(self, name: str) -> Path:
        """The file of a model; it is fetched or made where it is not there yet."""
        return Path(self.models()[name].path)

    def calibration(self, name: str) -> dict[str, Array]:
        """Calibration inputs, samples on the first axis, shorter ones padded."""
        model = self.models()[name]
        count = _CALIBRATION.get(name, model.calibration_n)
        return dict(self._common.stack(model, model.samples(count, False)))

    def searched_with(self, name: str) -> Any:
        """Samples to choose a plan by, where they are fewer or others; None: all."""
        if name in _OWN_LENGTHS:
            count, _, padded = _OWN_LENGTHS[name]
            return self._mixed(name, count, padded)
        if name not in _SEARCHED:
            return None
        model = self.models()[name]
        return dict(self._common.stack(model, model.samples(_SEARCHED[name], False)))

    def fitted_to(self, name: str) -> Any:
        """What `compress` is given: the same, or feeds of one sample each, of their own lengths."""
        if name in DECODERS:
            return self._written(name)
        if name not in _OWN_LENGTHS:
            return self.calibration(name)
        count, padded, _ = _OWN_LENGTHS[name]
        return self._mixed(name, count, padded)

    def _mixed(self, name: str, count: int, padded: int) -> list[dict[str, Array]]:
        """Samples of their own lengths, and some that are padded."""
        own, whole = (self.models()[name].samples(count, varied) for varied in (True, False))
        chosen = [*own[: count - padded], *whole[count - padded :]]
        return [{key: array[None] for key, array in sample.items()} for sample in chosen]

    def _written(self, name: str) -> Any:
        """What the decoder was fed with while it wrote down some utterances of the calibration part."""
        from onnxdecomp.data import decode

        whisper = self._module.TINY
        encoder, names = whisper.session("encoder"), whisper.caches("cross")
        spoken = whisper.speech("calib", _TEXTS, _SEED, 1)
        heard = [dict(zip(names, whisper.encode(encoder, one.wave), strict=True)) for one in spoken]
        prompts = [list(whisper.prompt)] * _TEXTS
        return decode(
            str(self.model(name)), prompts, steps=_STEPS, every=_EVERY, inputs=heard, stop=[whisper.end]
        )

    def evaluate(self, name: str, files: list[Path], most: int | None = None) -> list[dict[str, Any]]:
        """What the corpus says of each file; under "change" also the metric's difference with its interval.

        The original runs once for all of them.
        """
        model = self.models()[name]
        original, steps = model.session(), model.steps
        known = _EVALUATION.get(name, model.evaluation_n)
        count = min(most or known, known)
        reference = list(steps(original, count))

        def cached(session: Any, n: int) -> Iterator[Any]:
            return iter(reference) if session is original else steps(session, n)

        found = []
        for file in files:
            records: list[list[Any]] = []

            def kept(own: list[Any], originals: list[Any], records: list[list[Any]] = records) -> Any:
                records.append(own)
                return model.metric(own, originals)

            judged = self._common.evaluate(replace(model, steps=cached, metric=kept), file, count)
            after, before = records
            metric = next(iter(judged["metric"]))
            found.append({**judged, "change": change(model, metric, before, after).to_json()})
            if metric == "retrieval_top1":
                found[-1]["agreement_interval"] = _agreement(model, before, after)
            self._common.session.cache_clear()
            original = model.session()
        return found

    @cached_property
    def _module(self) -> Any:
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))  # its files import each other
        module = importlib.import_module("corpus_large")
        self._common.SETTINGS.update(threads=1, corpus=self.small)
        return module

    @property
    def _common(self) -> Any:
        return importlib.import_module("large_common")


def change(model: Any, metric: str, before: list[Any], after: list[Any]) -> Difference:
    """The metric's difference with its interval, from the records of the same samples."""
    if metric == "retrieval_top1":
        return paired_difference(_found(before), _found(after))
    rates = [np.array([model.metric([r], [r])[metric] for r in records]) for records in (before, after)]
    if metric not in _WEIGHT:
        return paired_difference(*rates)
    weights = np.array([_WEIGHT[metric](record) for record in before], np.float64)
    return paired_rate(rates[0] * weights, rates[1] * weights, weights)


def _agreement(model: Any, before: list[Any], after: list[Any]) -> list[float]:
    """The interval of the rank correlation of two models' similarities, by a jackknife over groups of pairs.

    Each group is left out with all its similarities (Miller 1974, Biometrika 61).
    """
    groups = np.arange(len(before)) % _GROUPS

    def without(group: int) -> float:
        own = [[r for r, g in zip(some, groups, strict=True) if g != group] for some in (after, before)]
        return float(model.metric(*own)["agreement"])

    values = np.array([without(group) for group in range(_GROUPS)])
    error = np.sqrt((_GROUPS - 1) * np.mean((values - values.mean()) ** 2))
    middle, half = float(model.metric(after, before)["agreement"]), float(_T * error)
    return [max(-1.0, middle - half), min(1.0, middle + half)]


def _found(records: list[Any]) -> Array:
    """[n], 1 where the nearest of all second embeddings is one's own."""
    a, b, _ = (np.array(column) for column in zip(*records, strict=True))
    return np.asarray((a @ b.T).argmax(1) == np.arange(len(a)), np.float64)
