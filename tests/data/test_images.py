from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxdecomp.core.layer import Dim
from onnxdecomp.data.images import image_files
from onnxdecomp.data.pixels import check_preprocess, prepare, target_of
from onnxdecomp.data.preprocess import NAMES, parse_preprocess
from onnxdecomp.data.read import prepared, read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec

RNG = np.random.default_rng(0)


def spec(*shape: Dim, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", shape, dtype),)


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(path: Path, array: NDArray[np.uint8] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(8, 8) if array is None else array).save(path, **options)
    return path


def read(path: Path, preprocess: str, inputs: tuple[TensorSpec, ...]) -> list[NDArray[Any]]:
    data = prepared(path, preprocess)
    assert data is not None
    return [feed["x"] for feed in read_feeds(data, inputs)]


RGB = pixels(8, 8)
VALUES: dict[str, NDArray[Any]] = {
    "zero-one": RGB / 255,
    "minus-one-one": RGB / 127.5 - 1,
    "raw": RGB,
    "imagenet:crop=none": (RGB / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "imagenet-bgr-caffe:crop=none": RGB[..., ::-1] - [103.939, 116.779, 123.68],
    "mean=0.1:std=2": (RGB / 255 - 0.1) / 2,
    "divide=1:bgr": RGB[..., ::-1],
}


@pytest.mark.parametrize("preprocess", VALUES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        (("N", 3, 8, 8), (2, 0, 1)),
        ((1, 8, 8, 3), (0, 1, 2)),
        (("N", "C", "H", "W"), (2, 0, 1)),
        (("N", "H", "W", 3), (0, 1, 2)),
        ((3, 8, 8), (2, 0, 1)),
        ((None, None, 3), (0, 1, 2)),
    ],
)
def test_values_and_layouts(
    tmp_path: Path, preprocess: str, shape: tuple[Dim, ...], axes: tuple[int, ...]
) -> None:
    path = photo(tmp_path / "a.png", RGB)
    if "imagenet" in preprocess:
        preprocess += ":size=8"
    (found,) = read(path, preprocess, spec(*shape))
    expected = VALUES[preprocess.removesuffix(":size=8")].transpose(axes)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected[None] if len(shape) == 4 else expected, rtol=1e-5, atol=1e-5)


def test_imagenet_is_torchvisions_resize_and_centre_crop(tmp_path: Path) -> None:
    for height, width in ((375, 500), (500, 375), (300, 300), (100, 30)):
        array = np.kron(pixels(height // 5, width // 5), np.ones((5, 5, 1), np.uint8))
        path = photo(tmp_path / "a.png", array)
        (found,) = read(path, "imagenet", spec("N", 3, 224, 224))
        image = Image.fromarray(array)
        short = min(image.size)
        image = image.resize(
            tuple(256 if side == short else int(256 * side / short) for side in image.size),  # type: ignore[arg-type]
            Image.Resampling.BILINEAR,
        )
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
        cropped = np.asarray(image.crop((left, top, left + 224, top + 224))) / 255
        expected = (cropped - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), atol=1e-5)


@given(
    image=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    model=st.tuples(st.integers(1, 30) | st.none(), st.integers(1, 30) | st.none()),
    preprocess=st.sampled_from([*NAMES, "raw:crop=0.5", "raw:size=9x5", "zero-one:crop=1:size=7"]),
    channels=st.sampled_from([1, 3]),
    first=st.booleans(),
)
def test_the_shape_is_always_the_models(
    image: tuple[int, int],
    model: tuple[int | None, int | None],
    preprocess: str,
    channels: int,
    first: bool,
) -> None:
    shape: tuple[Dim, ...] = ("N", channels, *model) if first else ("N", *model, channels)
    target = target_of(spec(*shape))
    made = parse_preprocess(preprocess)
    array = prepare(Image.fromarray(pixels(*image)), made, target)
    # A free channel position of 1 or 3 may be read as channels first: what counts is what the target says.
    if target.channels_first:
        array = array.transpose(1, 2, 0)
    height, width, found = array.shape
    assert found == target.channels
    assert target.height in (None, height)
    assert target.width in (None, width)
    assert np.isfinite(array).all()


def test_sizes_that_the_model_leaves_free(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", pixels(10, 20))

    def shape(preprocess: str, *dims: Dim) -> tuple[int, ...]:
        return read(path, preprocess, spec(*dims))[0].shape

    assert shape("raw", "N", 3, "H", "W") == (1, 3, 10, 20)
    assert shape("raw:crop=0.5", "N", 3, "H", "W") == (1, 3, 5, 10)
    assert shape("raw:size=7x9", "N", 3, "H", "W") == (1, 3, 7, 9)
    assert shape("raw", "N", 3, 48, "W") == (1, 3, 48, 96)
    assert shape("raw", "N", 3, "H", 5) == (1, 3, 2, 5)
    assert shape("raw:size=7x9", "N", 3, 48, "W") == (1, 3, 48, 9)
    assert shape("imagenet", "N", 3, "H", "W") == (1, 3, 224, 224)


def test_grey_models(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", RGB)
    (found,) = read(path, "minus-one-one", spec("N", 1, 8, 8))
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_allclose(found[0, 0], luma / 127.5 - 1, atol=1e-6)
    (found,) = read(path, "imagenet:mean=0.5:std=0.25:crop=none", spec("N", 8, 8, 1))
    np.testing.assert_allclose(found[0, ..., 0], (luma / 255 - 0.5) / 0.25, atol=1e-6)
    with pytest.raises(UsageError, match="add :mean=M:std=S"):
        read(path, "imagenet", spec("N", 1, 8, 8))


def test_models_of_bytes_and_of_half_precision(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", RGB)
    (found,) = read(path, "raw:bgr", spec("N", 8, 8, 3, dtype="uint8"))
    np.testing.assert_array_equal(found[0], RGB[..., ::-1])
    assert found.dtype == np.uint8
    assert read(path, "zero-one", spec("N", 3, 8, 8, dtype="float16"))[0].dtype == np.float16
    with pytest.raises(UsageError, match="--preprocess raw"):
        read(path, "zero-one", spec("N", 3, 8, 8, dtype="uint8"))


@pytest.mark.parametrize(
    "inputs",
    [
        spec("N", 4, 8, 8),
        spec("N", 8),
        spec("N", 3, 8, 8, 8),
        spec("N", 64, "H", "W"),
        (*spec("N", 3, 8, 8), TensorSpec("size", (2,), "int64")),
    ],
)
def test_models_that_take_no_images(tmp_path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(UsageError, match=r"give \.npz files"):
        read(photo(tmp_path / "a.png"), "raw", inputs)


def test_kinds_of_images(tmp_path: Path) -> None:
    """Palettes, transparency, grey, 16 bits, one bit, and a photograph lying on its side."""
    inputs = spec("N", 3, "H", "W")
    rgb = Image.fromarray(np.full((4, 6, 3), (10, 20, 30), np.uint8))
    deep = Image.fromarray(np.full((4, 6), 20 << 8, np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.convert("P").save(tmp_path / "a.png", transparency=b"\x00\xff")
    rgb.convert("RGBA").save(tmp_path / "b.png")
    rgb.convert("L").save(tmp_path / "c.bmp")
    deep.save(tmp_path / "d.png")
    rgb.convert("1").save(tmp_path / "e.png")
    rgb.save(tmp_path / "f.jpg", exif=turned, quality=100)
    rgb.save(tmp_path / "g.webp", lossless=True)
    found = read(tmp_path, "raw", inputs)
    assert [array.shape for array in found] == [(1, 3, 4, 6)] * 5 + [(1, 3, 6, 4), (1, 3, 4, 6)]
    means = [array.mean((0, 2, 3)).round().tolist() for array in found]
    assert means[1] == means[6] == [10, 20, 30]
    assert means[2] == [18, 18, 18]
    assert means[3] == [20, 20, 20]
    np.testing.assert_allclose(means[5], [10, 20, 30], atol=2)


def test_a_folder_is_searched_below_and_sorted(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.png", "a.bmp", "c/d/e.webp", "b/.hidden.png", ".git/x.png", "b/readme.txt"]
    for name in names[:-1]:
        photo(tmp_path / name) if not name.endswith("JPG") else photo(tmp_path / name, format="JPEG")
    (tmp_path / names[-1]).write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a.bmp", "b/10.png", "b/2.JPG", "c/d/e.webp"]
    data = prepared(tmp_path, "zero-one")
    assert data is not None
    feeds = read_feeds(data, spec("N", 3, 4, 4), samples=3)
    assert len(feeds) == 3
    assert feeds.labels is None
    assert feeds.source == f"{tmp_path}, 3 of 4 images, zero-one"
    assert [batch["x"].shape[0] for batch in feeds.batches(2)] == [2, 1]


def test_only_images_that_are_used_are_opened(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    data = prepared(tmp_path, "raw")
    assert data is not None
    assert len(list(read_feeds(data, spec("N", 3, 4, 4), samples=1))) == 1
    feeds = read_feeds(data, spec("N", 3, 4, 4))
    with pytest.raises(UsageError, match=r"b\.png is no readable image"):
        list(feeds)


def test_damaged_images(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp"):
        path = photo(tmp_path / name, pixels(64, 64))
        content = path.read_bytes()
        for length in (0, 10, len(content) // 2):
            path.write_bytes(content[:length])
            with pytest.raises(UsageError, match="is no readable image") as caught:
                read(path, "raw", spec("N", 3, 4, 4))
            assert "\n" not in str(caught.value)


def test_a_fixed_batch(tmp_path: Path) -> None:
    for k in range(5):
        photo(tmp_path / f"{k}.png", np.full((4, 4 + k, 3), k, np.uint8))
    found = read(tmp_path, "raw", spec(2, 3, 4, 4))
    assert [array[:, 0, 0, 0].tolist() for array in found] == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match="5 images, the model takes 6 at a time"):
        read(tmp_path, "raw", spec(6, 3, 4, 4))
    with pytest.raises(UsageError, match="differ in size"):
        read(tmp_path, "raw", spec(2, 3, 4, "W"))


def test_images_need_a_preprocessing_and_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.png")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(UsageError, match=r"--preprocess imagenet\|"):
            read_feeds(path, spec("N", 3, 8, 8))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL" else find(name))
    with pytest.raises(UsageError, match=r"onnxdecomp\[images\]"):
        read(tmp_path, "raw", spec("N", 3, 8, 8))


def test_a_folder_without_anything(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UsageError, match=r"no \.npz file, no image \(\.jpg"):
        read(tmp_path, "raw", spec("N", 3, 8, 8))


def test_check_preprocess_takes_what_fits() -> None:
    check_preprocess(parse_preprocess("raw"), target_of(spec("N", 1, 4, 4, dtype="uint8")))
    check_preprocess(parse_preprocess("imagenet"), target_of(spec("N", 3, 4, 4)))
