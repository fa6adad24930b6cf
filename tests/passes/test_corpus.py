"""simplify and normalise on real models: the same interface and, in ONNX Runtime, the same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.data.random_inputs import random_feeds
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.runtime.interface import differences, interface_of, lost_defaults
from onnxdecomp.runtime.session import inputs_of, open_session, run
from tests.builders.running import op_types

MODELS = {
    "cifar10/resnet20_cifar10": 1e-4,  # biases behind CastLike and Expand
    "published/ch_PP-OCRv2_det_infer": 1e-4,  # weights in Constant nodes, dimensions of -1
    "published/winml_mnist": 1e-4,  # IR version 3
    "published/silero_vad": 1e-4,  # everything inside If
    "variants/ext/squeezenet1.0_ext": 1e-4,  # external data
    "variants/resnet44_fp16": 1e-2,
}
STAGES = ("simplify", "normalise", "annotate", "check")


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_interface_stay(name: str, corpus: Path, tmp_path: Path) -> None:
    path = corpus / "models" / f"{name}.onnx"
    model = load(path)
    before = op_types(model)
    result = pipeline.run(model, configuration.build({"pipeline": STAGES}))
    assert result.record["simplify"]["tool"] == ("onnxscript" if name.endswith("vad") else "onnxsim")
    assert not op_types(model)["BatchNormalization"]
    assert op_types(model).total() <= before.total()
    written = save(model, tmp_path / "new.onnx")
    original, new = interface_of(path), interface_of(written)
    assert (differences(original, new), lost_defaults(original, new)) == ((), ())

    one, two = open_session(path), open_session(written)

    def trial(feed: Mapping[str, Array]) -> str | None:
        try:
            run(one, feed)
        except ModelError as error:
            return str(error)
        return None

    feeds = random_feeds(inputs_of(one), trial, per_binding=1)
    assert not isinstance(feeds, str), feeds
    for feed in feeds:
        for expected, actual in zip(run(one, feed), run(two, feed), strict=True):
            error = np.linalg.norm(np.asarray(actual - expected, np.float64))
            # On noise a detector's probabilities vanish: there is nothing to be relative to.
            size = max(np.linalg.norm(np.asarray(expected, np.float64)), 0.01 * expected.size**0.5)
            assert error <= MODELS[name] * size
