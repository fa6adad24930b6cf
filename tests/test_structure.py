"""The structure of the packages: what imports what, and that everything lies in a folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp

from onnxdecomp.decompositions.registry import METHODS
from onnxdecomp.layers.registry import ADAPTERS, adapters

ROOT = Path(__file__).resolve().parent.parent

KNOWING = {
    "search/plan_options.py": "the help of --requantize, for people",
    "channels/layer_rules.py": "layers that are more to a channel than a product",
    "channels/measured.py": "what picks numbers out of shapes",
    "channels/recurrent.py": "what picks numbers out of zeros",
    "channels/sizes.py": "a table of all operators whose shapes follow",
    "channels/rules/attention.py": "attention of activations, which is no layer",
    "channels/rules/products.py": "products of two activations, which are no layers",
    "channels/rules/layout.py": "a lookup in an activation, which is no layer",
    "core/steps/__init__.py": "names of steps, one of which is called as an operator is",
    "graph/constants.py": "how large the results of all kinds of operators on constants are",
    "graph/stand_ins.py": "what stands in for operators that the inference does not know",
    "latency/chain_model.py": "the neighbours of a chain that is timed",
    "latency/context.py": "which activations ONNX Runtime keeps in blocks of channels",
    "latency/quantum.py": "layers of one operator that are timed for their blocks",
    "latency/kernels.py": "what the kernel of each operator reads, writes and computes",
    "layers/blocks.py": "the operators that read weights in blocks",
    "layers/merge_pointwise.py": "nodes that mix channels only, factors or not",
    "layers/lower.py": "the nodes that steps become",
    "layers/lower_quantized.py": "the nodes of weights in fewer bits",
    "quantization/scheme.py": "operators of all kinds that have no integer kernel",
    "runtime/fatal.py": "nodes of all kinds on which ONNX Runtime ends the process",
    **{
        f"decompositions/{name}.py": "the kinds of layers it takes, for people"
        for name in (*METHODS, "joint")
    },
    **{
        f"training/autograd/operators/{name}.py": "a table of all operators"
        for name in ("convolution", "fused", "indexing", "products", "recurrent", "rows")
    },
}
"""Modules that name an operator of layers, and why; all others ask the adapters."""


def test_imports_keep_the_contracts() -> None:
    """Floors of folders, no circle among files, and an engine that knows no pass: see pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    line = [sys.executable, "-c", command, "--no-cache", "--no-logo"]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


def test_every_module_lies_in_a_folder() -> None:
    own = {path.name for path in (ROOT / "onnxdecomp").iterdir() if path.is_file()}
    assert own == {"__init__.py", "_version.py", "errors.py", "py.typed"}


def test_every_folder_says_what_it_is_for() -> None:
    folders = [path.parent for path in (ROOT / "onnxdecomp").rglob("__init__.py")]
    silent = [
        str(f) for f in folders if not (f / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    ]
    assert len(folders) > 15
    assert silent == []


def test_the_figure_is_that_of_the_code() -> None:
    found = subprocess.run([sys.executable, "docs/rooms.py", "--check"], cwd=ROOT, check=False)
    assert found.returncode == 0, "docs/rooms.svg is out of date: python docs/rooms.py"


def test_tensorly_is_used_and_imported_in_one_place() -> None:
    """Its products, unfoldings and trains stand behind the methods, through one module with types."""
    graph = grimp.build_graph(
        "onnxdecomp", "onnxdecomp_passes", include_external_packages=True, cache_dir=None
    )
    facade = "onnxdecomp.tensor.tenalg"
    assert graph.find_modules_that_directly_import("tensorly") == {facade}
    users = graph.find_modules_that_directly_import(facade)
    assert users >= {
        *(f"onnxdecomp.tensor.{name}" for name in ("linalg", "hooi", "cp_als", "cp_stability")),
        *(f"onnxdecomp.tensor.{name}" for name in ("tensor_train", "dimension_tree")),
        *(f"onnxdecomp.decompositions.{name}" for name in ("tucker", "cp", "tproduct")),
    }
    below = graph.find_downstream_modules(facade)
    assert {f"onnxdecomp.decompositions.{name}" for name in METHODS} <= below


def test_nothing_imports_tensorly_before_a_method_works() -> None:
    """All modules of the package and of its passes, as `compress --help` loads most of them."""
    program = """
import importlib, pkgutil, sys
import onnxdecomp, onnxdecomp_passes
for package in (onnxdecomp, onnxdecomp_passes):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__") and not any(
            part in module.name for part in (".autograd", ".integrations.")
        ):
            importlib.import_module(module.name)
assert "onnxdecomp.tensor.tenalg" in sys.modules
sys.exit("tensorly" if "tensorly" in sys.modules else None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def operators_in(source: str) -> set[str]:
    """The operators of layers that are named in the strings of a module, docstrings left out."""
    known = {op_type for _, op_type in adapters().by_operator}
    tree = ast.parse(source)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told)
    words = (re.findall(r"\w+", node.value) for node in strings if isinstance(node.value, str))
    return known & {word for found in words for word in found}


def test_only_its_adapter_knows_an_operator_of_layers() -> None:
    folder = ROOT / "onnxdecomp"
    own = {folder / "layers" / "registry.py"}
    own |= {ROOT / f"{target.partition(':')[0].replace('.', '/')}.py" for target in ADAPTERS.values()}
    modules = {*folder.rglob("*.py"), *(ROOT / "passes").rglob("*.py")} - own
    naming = {path for path in modules if operators_in(path.read_text(encoding="utf-8"))}
    allowed = {(ROOT if name.startswith("passes") else folder) / name for name in KNOWING}
    assert {str(path) for path in naming - allowed} == set()
    assert {str(path) for path in allowed - naming} == set(), "these need no leave any more"


def test_an_operator_that_is_named_elsewhere_is_found() -> None:
    source = '"""Of Gemm."""\nTABLE = {"LSTM": 1}\nif node.op_type == "MatMul": x = f"{y} Einsum"\n'
    assert operators_in(source) == {"LSTM", "MatMul", "Einsum"}
