from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.data.preprocess import NAMES, PRESETS, Preprocess, parse_preprocess
from onnxdecomp.errors import UsageError


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_name_is_its_preset(preset: Preprocess) -> None:
    assert parse_preprocess(preset.name) == preset


def test_settings_change_a_preset() -> None:
    imagenet = parse_preprocess("imagenet")
    text = "imagenet:size=288x320:crop=1:bgr:resampling=bicubic"
    assert parse_preprocess(text) == replace(
        imagenet, name=text, size=(288, 320), crop=1.0, order="bgr", resampling="bicubic"
    )
    assert parse_preprocess("imagenet:crop=none").crop is None
    assert parse_preprocess("imagenet-bgr-caffe:rgb").order == "rgb"


def test_without_a_name_values_of_0_to_1_are_changed() -> None:
    made = parse_preprocess("mean=0.5,0.5,0.5:std=0.5,0.5,0.5:size=224:crop=0.875:bgr")
    assert made.divide == 255
    assert (made.mean, made.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (made.size, made.crop, made.order) == ((224, 224), 0.875, "bgr")
    assert parse_preprocess("bgr").order == "bgr"
    assert parse_preprocess("divide=1").keeps_bytes
    assert not parse_preprocess("zero-one").keeps_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenett", "did you mean 'imagenet'"),
        ("", "unknown preprocessing ''"),
        ("raw:", "is no setting"),
        ("raw:maen=1", "did you mean 'mean'"),
        ("raw:mean", "is no setting"),
        ("raw:name=x", "is no setting"),
        ("raw:mean=1,2", "makes no sense"),
        ("raw:mean=nan", "makes no sense"),
        ("raw:std=0", "makes no sense"),
        ("raw:size=0", "makes no sense"),
        ("raw:size=1x2x3", "makes no sense"),
        ("raw:crop=1.5", "makes no sense"),
        ("raw:divide=0", "makes no sense"),
        ("raw:resampling=magic", "makes no sense"),
        ("mean=", "makes no sense"),
    ],
)
def test_nonsense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_preprocess(text)


@given(st.text(st.sampled_from("imagenetrw:=,.x015-bgr"), max_size=20))
def test_any_text_is_understood_or_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        made = parse_preprocess(text)
    except UsageError as error:
        message = str(error)
    assert (made.name == text) if not message else ("\n" not in message)
