"""decode: inputs of a decoder made by the decoder itself, which is run greedily with its cache.

What a decoder sees in use are its own keys and values of the steps before: nobody has them as data, and
random ones say nothing. The model writes them as it goes on from prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.check import check_feed
from onnxdecomp.data.decoder_inputs import DecoderInputs, Given, decoder_inputs, empty, other_input
from onnxdecomp.data.feeds import Feeds, FeedSource, Part
from onnxdecomp.data.random_inputs import is_batch
from onnxdecomp.data.read import read_feeds
from onnxdecomp.data.spool import Spool
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.session import Feed, TensorSpec, dtype_of, inputs_of, open_session, outputs_of, run

if TYPE_CHECKING:
    import onnxruntime as ort

Prompt: TypeAlias = Sequence[int]
Inputs: TypeAlias = Mapping[str, Given]

_GROUP = 8
"""Prompts whose steps are put in the order of their shapes, so that equal ones can be stacked."""


def decode(
    model: str | Path,
    prompts: Iterable[Prompt],
    *,
    steps: int = 16,
    every: int = 1,
    chunk: int = 1,
    stop: Iterable[int] = (),
    inputs: Inputs | Iterable[Inputs] | None = None,
    tokens: str = "",
    logits: str = "",
    caches: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
    provider: str = "cpu",
    threads: int = 1,
) -> Feeds:
    """Feeds for `calib` and `data`: what the decoder is fed with while it continues the prompts greedily.

    The first step reads a prompt with a cache of no length, later ones a token each with what the steps
    before have left. Names of caches, tokens and logits are found: `past_key_values.0.key` and
    `present.0.key`, `past_0` and `present_0` and their like; a model that takes one token at a time is fed
    so. Masks of ones, positions and the switch `use_cache_branch` of merged decoders are made.

    Args:
        model: The decoder's file.
        prompts: The token numbers of each, at least one.
        steps: Runs of the model for each prompt after which it is left, the first of them on the prompt.
        every: Of the runs after the first, every so-manieth is kept.
        chunk: Above 1, every text is read again when it is written, prompt and all, in pieces of so many
            tokens, and these are the feeds that are kept: as many tokens with fewer caches to store.
        stop: Tokens that end a text.
        inputs: Other inputs by name, as an encoder's states: the same for all prompts, or one mapping for
            each. A value is an array with a batch of one, or a function of the number of tokens in the
            cache and of new ones. A cache may be among them, for its first step.
        tokens: The name of that input, where it is not found.
        logits: The name of that output, likewise.
        caches: From the names of the caches' inputs to those of the outputs that fill them, where they are
            not found; {} for a model that reads the whole text in every step.
        folder: Where to write the feeds as .npz files, one for each shape of eight prompts; None keeps them
            in memory or, where they are large, in a temporary file.
        provider: Where the model is run.
        threads: Within an operator.

    Raises:
        UsageError: A name is missing, there is no prompt, or the folder is not empty.
        ModelError: The model cannot be loaded or fails.
    """
    if min(steps, every, chunk) < 1:
        raise UsageError(
            "decode takes at least one step, keeps every first or later one, and a token at least"
        )
    session = open_session(Path(model), provider=provider, threads=threads)
    specs = inputs_of(session)
    parts = decoder_inputs(specs, outputs_of(session), tokens=tokens, logits=logits, caches=caches)
    texts = (
        _text(session, parts, prompt, given, steps, every, chunk, frozenset(stop))
        for prompt, given in _beginnings(prompts, inputs)
    )
    groups = iter(lambda: _in_order(itertools.islice(texts, _GROUP)), [])
    stackable = all(spec.shape and is_batch(spec, 0) for spec in specs)
    source = f"{Path(model).name} decoding"
    if folder is not None:
        _write(groups, Path(folder), specs, stackable=stackable)
        return read_feeds(Path(folder), specs)
    spool = Spool(check_feed(feed, specs, source) for group in groups for feed in group)
    if not len(spool):
        raise UsageError("decode has no prompts")
    return Feeds(FeedSource([Part(len(spool), partial(iter, spool))], hold=0), source, None, stackable)


def _beginnings(
    prompts: Iterable[Prompt], inputs: Inputs | Iterable[Inputs] | None
) -> Iterator[tuple[list[int], Inputs]]:
    """Each prompt with the other inputs that belong to it."""
    beside = itertools.repeat(inputs or {}) if inputs is None or isinstance(inputs, Mapping) else iter(inputs)
    for number, prompt in enumerate(prompts):
        found = [int(token) for token in np.asarray(prompt).reshape(-1)]
        if not found:
            raise UsageError(f"prompt {number} has no token")
        given = next(beside, None)
        if given is None:
            raise UsageError(f"there are other inputs for {number} prompts only")
        yield found, given


def _text(
    session: ort.InferenceSession,
    parts: DecoderInputs,
    prompt: list[int],
    given: Inputs,
    steps: int,
    every: int,
    chunk: int,
    stop: frozenset[int],
) -> list[Feed]:
    """What the model is fed with for one prompt."""
    kept: list[Feed] = []
    text = list(prompt)
    reader = _Reader(session, parts, given)
    for step in range(steps):
        feeds, token = reader.read(text)
        if chunk == 1 and step % every == 0:
            kept += feeds
        if token in stop:
            break
        text.append(token)
    if chunk > 1:
        # The last token was never read.
        text = text[:-1] if len(text) > reader.read_so_far else text
        again = _Reader(session, parts, given)
        ends = [*range(chunk, len(text), chunk), len(text)]
        pieces = [again.read(text[:end])[0] for end in ends]
        kept = [feed for piece in pieces[::every] for feed in piece]
    return kept


class _Reader:
    """Reads a growing text with a cache."""

    def __init__(self, session: ort.InferenceSession, parts: DecoderInputs, given: Inputs) -> None:
        self._session, self._parts, self._given = session, parts, given
        self._held: Feed = {}
        self.read_so_far = 0

    def read(self, text: Sequence[int]) -> tuple[list[Feed], int]:
        """Read on to the end of the text: what the model was fed with, and the likeliest next token."""
        parts, feeds = self._parts, []
        past = self.read_so_far if parts.caches else 0
        new = text[past:]
        width = parts.at_once or len(new)
        if len(new) % width:
            raise UsageError(f"the model takes {width} tokens at a time, and there are {len(new)} to read")
        for start in range(0, len(new), width):
            feed = _feed(parts, new[start : start + width], self._given, self._held, past + start)
            outputs = run(self._session, feed)
            self._held = _after(parts, feed, outputs)
            feeds.append(feed)
        self.read_so_far = len(text)
        scores = outputs[parts.logits]
        return feeds, int(scores.reshape(-1, scores.shape[-1])[-1].argmax())


def _feed(parts: DecoderInputs, new: Sequence[int], given: Inputs, held: Feed, past: int) -> Feed:
    feed: Feed = {parts.tokens.name: np.asarray([new], dtype_of(parts.tokens))}
    for cache in parts.caches:
        name = cache.past.name
        if past:
            feed[name] = held[name]
        elif name in given:
            feed[name] = other_input(cache.past, given, past, len(new), cached=False)
        else:
            feed[name] = empty(cache.past)
    for spec in parts.others:
        feed[spec.name] = other_input(spec, given, past, len(new), cached=past > 0)
    return feed


def _after(parts: DecoderInputs, feed: Feed, outputs: Sequence[Array]) -> Feed:
    """The caches after a step. What a branch leaves empty, as an encoder's keys, is what it was before."""
    held = {}
    for cache in parts.caches:
        name, made = cache.past.name, outputs[cache.present]
        if 0 < made.size < feed[name].size:
            raise UsageError(
                f"the model was fed with {feed[name].shape} for the cache {name!r} and gave {made.shape} "
                "out, which is less: it is no whole cache"
            )
        held[name] = made if made.size else feed[name]
    return held


def _in_order(texts: Iterable[Iterable[Feed]]) -> list[Feed]:
    """The feeds of some prompts, those of one shape beside each other."""
    return sorted((feed for text in texts for feed in text), key=_shapes)


def _shapes(feed: Feed) -> list[tuple[int, ...]]:
    return [array.shape for array in feed.values()]


def _write(
    groups: Iterable[list[Feed]], folder: Path, specs: Sequence[TensorSpec], *, stackable: bool
) -> None:
    """A file for each shape in a group; where there is no common batch axis, samples get one of their own."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already, and is no empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    join: Callable[[list[Array]], Array] = np.concatenate if stackable else np.stack
    with temporary_files.folder(folder.parent) as made:
        for number, group in enumerate(groups):
            for place, alike in enumerate(_alike(group)):
                arrays = {spec.name: join([feed[spec.name] for feed in alike]) for spec in specs}
                np.savez(made / f"{number:04d}-{place:04d}.npz", **arrays)  # type: ignore[arg-type]
        whole = made / "whole"
        whole.mkdir()
        for file in sorted(made.glob("*.npz")):
            file.rename(whole / file.name)
        if not any(whole.iterdir()):
            raise UsageError("decode has no prompts")
        whole.replace(folder)  # whole or absent; an empty folder may be there


def _alike(group: list[Feed]) -> Iterator[list[Feed]]:
    for _, alike in itertools.groupby(group, key=_shapes):
        yield list(alike)
