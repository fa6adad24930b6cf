"""Decoders that write their own calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.data import decode
from onnxdecomp.data.decoder_inputs import Given, decoder_inputs, empty, other_input
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed, TensorSpec, inputs_of, open_session, run
from tests.builders.decoder import decoder

PROMPTS = [[3, 14, 15], [9, 26], [5, 35, 8]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    onnx.save(decoder(), path)
    return path


def saved(folder: Path, **options: Any) -> Path:
    path = folder / "decoder.onnx"
    onnx.save(decoder(**options), path)
    return path


def whole_text(path: Path, tokens: list[int]) -> Array:
    """The logits of a text that is read at once."""
    feeds = decode(path, [tokens], steps=1)
    return run(open_session(path), feeds.items[0])[0]


def greedy(path: Path, prompt: list[int], steps: int) -> list[int]:
    """Prompt and continuation, the whole text read anew for each token."""
    text = list(prompt)
    for _ in range(steps):
        text.append(int(whole_text(path, text)[0, -1].argmax()))
    return text


def by_past(feeds: Any) -> dict[int, list[Feed]]:
    found: dict[int, list[Feed]] = {}
    for feed in feeds:
        found.setdefault(feed["past_key_values.0.key"].shape[2], []).append(feed)
    return found


def test_steps_with_the_cache_give_what_the_whole_text_gives(plain: Path) -> None:
    session = open_session(plain)
    for prompt in PROMPTS:
        text = greedy(plain, prompt, 5)
        expected = whole_text(plain, text)
        feeds = sorted(decode(plain, [prompt], steps=6), key=lambda feed: int(feed["position_ids"][0, 0]))
        assert [int(token) for feed in feeds for token in feed["input_ids"][0]] == text
        logits = np.concatenate([run(session, feed)[0] for feed in feeds], axis=1)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_first_step_has_an_empty_cache_and_equal_shapes_stand_together(plain: Path) -> None:
    feeds = decode(plain, PROMPTS, steps=4)
    assert len(feeds) == 12
    assert sorted(by_past(feeds)) == [0, 2, 3, 4, 5]
    assert [len(batch["input_ids"]) for batch in feeds.batches(50)] == [1, 3, 3, 2, 1, 2]


@pytest.mark.parametrize(
    "names",
    [
        ("past_0", "present_0"),
        ("past_key_values.0.decoder", "present.0.decoder"),
        ("past_0_k", "present_0_k"),
    ],
)
def test_caches_are_found_by_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    path = saved(tmp_path, past=names[0], present=names[1])
    feeds = decode(path, PROMPTS[:1], steps=3)
    assert sorted(feed[f"{names[0]}.key"].shape[2] for feed in feeds) == [0, 3, 4]


def test_other_names_are_given(tmp_path: Path, plain: Path) -> None:
    path = saved(tmp_path, past="before", present="after")
    with pytest.raises(UsageError, match="give it by `inputs`"):
        decode(path, PROMPTS)
    named = {f"before.{kind}": f"after.{kind}" for kind in ("key", "value")}
    feeds = list(decode(path, PROMPTS, steps=3, caches=named))
    for own, other in zip(feeds, decode(plain, PROMPTS, steps=3), strict=True):
        np.testing.assert_array_equal(own["before.value"], other["past_key_values.0.value"])
    with pytest.raises(UsageError, match="is not the model's"):
        decode(path, PROMPTS, caches={"before.key": "nothing"})


def test_a_merged_decoder_does_not_read_the_cache_at_first(tmp_path: Path, plain: Path) -> None:
    feeds = list(decode(saved(tmp_path, merged=True), PROMPTS, steps=4))
    switches = [
        (feed["past_key_values.0.key"].shape[2] > 0, bool(feed["use_cache_branch"][0])) for feed in feeds
    ]
    assert set(switches) == {(False, False), (True, True)}
    for own, other in zip(feeds, decode(plain, PROMPTS, steps=4), strict=True):
        np.testing.assert_array_equal(own["input_ids"], other["input_ids"])
        np.testing.assert_allclose(own["past_key_values.0.key"], other["past_key_values.0.key"], rtol=1e-5)


def test_a_decoder_of_one_token_at_a_time(tmp_path: Path, plain: Path) -> None:
    feeds = list(decode(saved(tmp_path, new=1), PROMPTS[:1], steps=3))
    assert [feed["past_key_values.0.key"].shape[2] for feed in feeds] == [0, 1, 2, 3, 4]
    assert [int(feed["input_ids"][0, 0]) for feed in feeds] == greedy(plain, PROMPTS[0], 2)


def test_pieces_of_the_text_hold_the_same_tokens(plain: Path) -> None:
    text = greedy(plain, PROMPTS[0], 6)
    session, expected = open_session(plain), whole_text(plain, text)
    feeds = sorted(
        decode(plain, PROMPTS[:1], steps=7, chunk=4), key=lambda feed: int(feed["position_ids"][0, 0])
    )
    assert [feed["input_ids"].shape[1] for feed in feeds] == [4, 4, 1]
    assert [int(token) for feed in feeds for token in feed["input_ids"][0]] == text
    logits = np.concatenate([run(session, feed)[0] for feed in feeds], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(decode(plain, PROMPTS[:1], steps=7, chunk=4, every=2)) == 2
    stopped = list(decode(plain, PROMPTS[:1], steps=7, chunk=40, stop=text[5:6]))
    first = text[3:].index(text[5]) + 3
    assert [int(token) for token in stopped[0]["input_ids"][0]] == text[:first]


def test_some_steps_are_kept_and_stops_end_a_text(plain: Path) -> None:
    text = greedy(plain, PROMPTS[0], 6)
    kept = sorted(by_past(decode(plain, PROMPTS[:1], steps=7, every=3)))
    assert kept == [0, 5, 8]
    stopped = decode(plain, PROMPTS[:1], steps=7, stop=text[5:6])
    assert len(stopped) == 1 + text[3:].index(text[5])


@pytest.mark.parametrize("merged", [False, True])
def test_a_folder_holds_the_same(tmp_path: Path, merged: bool) -> None:
    path, folder = saved(tmp_path, merged=merged), tmp_path / "new" / "calib"
    expected = decode(path, PROMPTS, steps=3)
    assert expected.stackable is not merged  # the switch has no batch
    for feeds in (
        decode(path, PROMPTS, steps=3, folder=folder),
        read_feeds(folder, inputs_of(open_session(path))),
    ):
        assert feeds.stackable == expected.stackable
        for own, other in zip(feeds, expected, strict=True):
            assert own.keys() == other.keys()
            for name, array in own.items():
                np.testing.assert_array_equal(array, other[name])
    assert len(list(folder.iterdir())) == 5
    with pytest.raises(UsageError, match="no empty folder"):
        decode(path, PROMPTS, folder=folder)


def test_a_folder_is_whole_or_absent(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(UsageError, match="prompt 1 has no token"):
        decode(plain, [[1], []], folder=tmp_path / "calib")
    with pytest.raises(UsageError, match="no prompts"):
        decode(plain, [], folder=tmp_path / "calib")
    assert not list(tmp_path.iterdir())


def test_what_is_given_goes_in(plain: Path) -> None:
    first = np.full((1, 2, 1, 8), 0.5, np.float32)
    given: list[dict[str, Given]] = [
        {
            "past_key_values.0.key": first * sign,
            "past_key_values.0.value": first,
            "position_ids": lambda past, new: np.arange(past, past + new)[None] + 1,
        }
        for sign in (1, -1)
    ]
    feeds = list(decode(plain, [[1], [2]], steps=2, inputs=given))
    assert [float(feed["past_key_values.0.key"][0, 0, 0, 0]) for feed in feeds] == [0.5, -0.5, 0.5, -0.5]
    assert [int(feed["position_ids"][0, 0]) for feed in feeds] == [1, 1, 2, 2]
    with pytest.raises(UsageError, match="for 2 prompts only"):
        decode(plain, PROMPTS, inputs=given)


def test_a_callable_may_decode(tmp_path: Path, plain: Path) -> None:
    body = f"return decode({str(plain)!r}, {PROMPTS}, steps=3)"
    code = f"from onnxdecomp.data import decode\n\ndef calib():\n    {body}\n"
    (tmp_path / "mine.py").write_text(code)
    feeds = read_feeds(f"{tmp_path / 'mine.py'}:calib", inputs_of(open_session(plain)))
    assert feeds.stackable
    assert len(feeds) == 9


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


IDS = spec("input_ids", "batch", "new", dtype="int64")


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "said"),
    [
        (
            [spec("a", "n", "t", dtype="int64"), spec("b", "n", "t", dtype="int64")],
            ["logits"],
            {},
            "which input",
        ),
        ([IDS], ["one", "two"], {}, "which output"),
        ([IDS], ["logits"], {"tokens": "words"}, "which input"),
        ([IDS], ["logits"], {"logits": "scores"}, "which output"),
    ],
)
def test_what_is_not_found_is_asked_for(
    inputs: list[TensorSpec], outputs: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        decoder_inputs(inputs, [spec(name, "n", "t", 9) for name in outputs], **options)


def test_encoders_keys_are_caches_of_merged_decoders_and_given_to_others() -> None:
    pasts = [
        spec(f"past_key_values.0.{side}.key", "batch", 2, f"{side}_length", 4)
        for side in ("decoder", "encoder")
    ]
    logits = spec("logits", "batch", "new", 9)
    presents = [spec(f"present.0.{side}.key", "batch", 2, "total", 4) for side in ("decoder", "encoder")]
    merged = decoder_inputs([IDS, *pasts], [logits, *presents])
    assert [(cache.past, cache.present) for cache in merged.caches] == [(pasts[0], 1), (pasts[1], 2)]
    with_past = decoder_inputs([IDS, *pasts], [logits, presents[0]])
    assert with_past.others == (pasts[1],)


def test_an_empty_cache_has_no_length_but_a_batch_and_fixed_sizes() -> None:
    assert empty(spec("past_0", 2, "batch_size", 4, "past_seq_len", 8)).shape == (2, 1, 4, 0, 8)
    assert empty(spec("past", "n", 4, 16, 8, dtype="float16")).shape == (1, 4, 16, 8)
    with pytest.raises(UsageError, match="which of its axes"):
        empty(spec("past", "batch", "heads", "past", 8))


def test_bad_numbers(plain: Path) -> None:
    with pytest.raises(UsageError, match="at least one step"):
        decode(plain, PROMPTS, steps=0)
    with pytest.raises(UsageError, match="at least one step"):
        decode(plain, PROMPTS, every=0)


def test_a_model_without_a_cache_reads_the_whole_text(plain: Path, tmp_path: Path) -> None:
    empty_cache = np.zeros((1, 2, 0, 8), np.float32)
    given: dict[str, Given] = {f"past_key_values.0.{kind}": empty_cache for kind in ("key", "value")}
    feeds = list(decode(plain, PROMPTS[:1], steps=4, caches={}, inputs=given, logits="logits"))
    assert [feed["input_ids"].shape[1] for feed in feeds] == [3, 4, 5, 6]
    assert [int(token) for token in feeds[-1]["input_ids"][0]] == greedy(plain, PROMPTS[0], 3)


def test_masks_and_positions_are_made() -> None:
    made = {
        name: other_input(spec(name, *shape, dtype="int64"), {}, 3, 2, cached=True).tolist()
        for name, shape in {
            "attention_mask": ("batch", "total"),
            "position_ids": ("batch", "new"),
            "cache_position": ("new",),
        }.items()
    }
    assert made == {
        "attention_mask": [[1, 1, 1, 1, 1]],
        "position_ids": [[3, 4]],
        "cache_position": [3, 4],
    }


def test_a_cache_that_is_no_whole_one_is_refused(tmp_path: Path) -> None:
    proto = decoder()
    for part, name in zip(proto.graph.output[1:], ("k_new", "v_new"), strict=True):
        part.name = name
    onnx.save(proto, tmp_path / "parts.onnx")
    named = {f"past_key_values.0.{kind}": f"{kind[0]}_new" for kind in ("key", "value")}
    with pytest.raises(UsageError, match="no whole cache"):
        decode(tmp_path / "parts.onnx", PROMPTS, caches=named)
