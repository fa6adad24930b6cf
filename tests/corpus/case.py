"""A model of the corpus on its way through the tests: prepared once, compressed many times."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.workflow import compress as api
from onnxdecomp.workflow.result import Result
from tests.conftest import ROOT, corpus_root

FROZEN = "+frozen"
"""Behind a model's name: with initializers that are also graph inputs taken as constants."""

ADDING = {
    "winml_mnist": "IR version 3, auto_pad, a MatMul whose weight is reshaped",
    "silero_vad": "layers in the branches of Ifs, Conv1d with strides, an LSTM whose weights are computed",
    "meshnet_model20chan3cls": "Conv3d, dilated and 1 x 1, with sizes of any length",
    "gtcrn": "grouped, depthwise and transposed convolutions, a GRU in both directions, BatchNormalization",
    "resnet20_qdq_int8": "QuantizeLinear, Gemm with transB",
    "magika_standard_v3_3": "int32 inputs, another domain",
    "dtln_model_1": "LSTM",
    "winml_candy": "ConvTranspose with auto_pad, operators that no opset has",
    "ultraface_version-RFB-320": "all weights overridable, dilated Conv2d",
    "ultraface_version-RFB-320" + FROZEN: "weights that are inputs, taken as constants",
    "resnet44_fp16": "float16",
    "basic_pitch_nmp": "a weight that several layers share",
    "resnet20_cifar10": "biases that are computed",
    "ch_ppocr_mobile_v2.0_cls_infer": "dimensions of -1",
    "squeezenet1.0_ext": "external data",
}
"""Models, and what structure each adds to those before it. The others run with `-m corpus_all`."""

ROUGHLY = {"cp": {"max_sweeps": 4, "starts": 1}}
"""Options of methods that iterate: no test asks how near a fit of less than full rank comes."""

PREPARE = {"pipeline": ["simplify", "normalise"]}
REST = {"pipeline": ["decompose", "annotate", "check"]}


def model_names() -> list[str]:
    """Names of the corpus' models; one that says so where there is no corpus (its tests are skipped)."""
    path = corpus_root() / "corpus.json"
    if not path.is_file():
        return ["no-corpus"]
    return [str(entry["name"]) for entry in json.loads(path.read_text())["models"]]


def each(names: Iterable[str] | None = None, usual: Collection[str] = tuple(ADDING)) -> pytest.MarkDecorator:
    """The fixture `case` of these models, else of all of the corpus; by default of the usual ones alone."""
    params = [
        pytest.param(name, marks=() if name in usual or name == "no-corpus" else pytest.mark.corpus_all)
        for name in (model_names() if names is None else names)
    ]
    return pytest.mark.parametrize("case", params, indirect=True)


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        name: As the corpus has it, and FROZEN behind it or not.
        root: The corpus' folder.
        folder: Where files are written.
    """

    name: str
    root: Path
    folder: Path
    _results: dict[tuple[str, str], Result] = field(default_factory=dict)
    _expected: dict[bool, list[Array]] = field(default_factory=dict)

    @property
    def freeze(self) -> bool:
        return self.name.endswith(FROZEN)

    @cached_property
    def entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = _tool(self.root).Corpus(self.root).entry(self.name.removesuffix(FROZEN))
        return entry

    @cached_property
    def original(self) -> Path:
        return self.root / "models" / str(self.entry["file"])

    @cached_property
    def prepared(self) -> Path:
        """The simplified and normalised model: what all methods have in common."""
        options = {"normalise": {"freeze_initializers": self.freeze}}
        model = pipeline.run(load(self.original), configuration.build(PREPARE, options)).model
        folder = self.folder / "prepared"
        folder.mkdir()
        return save(model, folder / "model.onnx")

    def compress(self, method: str, rank: str, **options: Any) -> Result:
        """The prepared model, compressed; without further options once for all tests."""
        if not options and (method, rank) in self._results:
            return self._results[method, rank]
        target = self.target("with options" if options else "here", method, rank)
        target.parent.mkdir(parents=True, exist_ok=True)
        result = api.compress(
            self.prepared,
            target,
            verify=False,
            bench=False,
            overwrite=True,
            **self._options(method, rank, **options),
        )
        if not options:
            self._results[method, rank] = result
        return result

    def inspect(self, method: str, rank: str, **options: Any) -> Result:
        """What would be done to the prepared model."""
        return api.inspect(self.prepared, **self._options(method, rank, **options))

    def compress_elsewhere(self, methods: Sequence[str], rank: str, whole: str) -> str:
        """The same for several methods in another process; for `whole` from the original file on.

        Returns:
            What the process printed to stderr: the errors.
        """
        jobs = []
        for method in methods:
            options = self._options(method, rank)
            if method == whole:
                del options["config"]
            source = self.original if method == whole else self.prepared
            jobs.append([str(source), str(self.target("elsewhere", method, rank)), options])
        file = self.folder / "jobs.json"
        file.write_text(json.dumps(jobs))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONHASHSEED": "1",
        }
        command = [sys.executable, "-m", "tests.corpus.again", str(file)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.stderr.strip()

    def target(self, where: str, method: str, rank: str) -> Path:
        # One file name for all: the name of external data is part of the model.
        return self.folder / where / f"{method}-{rank}" / "model.onnx"

    def _options(self, method: str, rank: str, **options: Any) -> dict[str, Any]:
        wanted = {"method": method, "rank": rank, "config": REST, **options}
        if method in ROUGHLY:
            wanted["options"] = {method: ROUGHLY[method]}
        return {**wanted, "freeze_initializers": True} if self.freeze else wanted

    @cached_property
    def feeds(self) -> tuple[dict[str, Array], ...]:
        """Two calibration samples."""
        tool = _tool(self.root)
        arrays = tool.calibration(tool.Corpus(self.root), self.entry["name"], 2)
        inputs = self.entry["inputs"]
        return tuple({spec["name"]: _fed(arrays[spec["name"]][k], spec) for spec in inputs} for k in range(2))

    def outputs(self, path: Path, *, optimised: bool = True) -> list[Array]:
        """What ONNX Runtime makes of the first calibration sample, on one thread."""
        found = session(path, optimised=optimised)
        return [np.asarray(value) for value in found.run(None, self.feeds[0])]

    def expected(self, *, optimised: bool = True) -> list[Array]:
        """What the original makes of it; run once."""
        if optimised not in self._expected:
            self._expected[optimised] = self.outputs(self.original, optimised=optimised)
        return self._expected[optimised]

    @cached_property
    def ports(self) -> list[tuple[str, str, list[Any]]]:
        """The original's inputs and outputs, as ONNX Runtime sees them."""
        return ports(self.original)


@cache
def _tool(root: Path) -> ModuleType:
    """The corpus' own corpus.py."""
    spec = importlib.util.spec_from_file_location("corpus_tool", root / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _fed(sample: Array, spec: dict[str, Any]) -> Array:
    """The corpus' rule: a sample lacks the batch axis if it has one axis less than the input."""
    sample = np.asarray(sample)
    return sample[None] if sample.ndim == len(spec["shape"]) - 1 else sample


def session(path: Path, *, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ports(path: Path) -> list[tuple[str, str, list[Any]]]:
    """Inputs and outputs as ONNX Runtime sees them: name, type, shape."""
    opened = session(path)
    return [(v.name, v.type, v.shape) for v in (*opened.get_inputs(), *opened.get_outputs())]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def interface(path: Path) -> list[bytes]:
    """Inputs that must be fed, and outputs, as they stand in the file: name, type, every dimension."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    ports = [*(value for value in graph.input if value.name not in weights), *graph.output]
    return [port.name.encode() + b" " + port.type.SerializeToString(deterministic=True) for port in ports]


def objection(path: Path) -> str:
    """What onnx's checker says; nothing if it is content."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return str(error)
    return ""


def relative(actual: Array, expected: Array) -> float:
    """Relative L2 error."""
    norm = float(np.linalg.norm(np.asarray(expected, np.float64)))
    missed = float(np.linalg.norm(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)))
    return missed / norm if norm else missed
