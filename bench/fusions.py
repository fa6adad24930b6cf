"""What fusions of transformers are worth on the CPU, and which of them a simplifier or a method costs.

    python -m bench.fusions MINILM.onnx [--rounds 60]

The model is MiniLM-L6, a BERT encoder of 12 heads and 384 features. Each fusion of onnxruntime.transformers's
optimizer is left out in turn; runs are interleaved in random order, on one thread, in processor time; ratios
are medians over rounds of pairs, with 95 % bootstrap intervals. A vision transformer with random weights
(tests/builders/vit.py) shows what onnxsim does with and without the passes that onnxdecomp leaves out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxdecomp_passes._simplify_worker import LEFT_OUT
from onnxdecomp_passes.decompose import Decompose
from onnxdecomp_passes.normalise import Normalise
from onnxdecomp_passes.simplify import Simplify
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from bench.provenance import markdown, provenance, write
from onnxdecomp.core.layer import Array
from onnxdecomp.pipeline.base import PassContext
from tests.builders.vit import vit
from tests.passes.test_fusions import by_the_tool, in_a_session

OFF: Mapping[str, tuple[str, ...]] = {
    "all fusions of the tool": (),
    "no Attention": ("enable_attention",),
    "no SkipLayerNormalization": ("enable_skip_layer_norm", "enable_bias_skip_layer_norm"),
    "no BiasGelu": ("enable_bias_gelu",),
}
HEADS, WIDTH = 12, 384
BASE, PLAIN = "all fusions of the tool", "the session's own"
METHODS = ("width", "attention", "width,attention", "svd", "shared", "tt")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    worth = [row for tokens in (32, 128) for row in _worth(args.model, tokens, args.rounds)]
    simplified = _simplified(args.rounds)
    counts = _counts()
    write(
        "fusions",
        {**provenance(), "worth": worth, "simplified": simplified, "counts": counts},
        _tables(worth, simplified, counts),
    )


def _worth(path: Path, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """The BERT with each fusion left out, against all of them."""
    models = {PLAIN: path.read_bytes()} | {name: _optimized(path, off) for name, off in OFF.items()}
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        "input_ids": rng.integers(1000, 20000, (1, tokens)),
        "attention_mask": np.ones((1, tokens), np.int64),
        "token_type_ids": np.zeros((1, tokens), np.int64),
    }
    return [{"tokens": tokens, **row} for row in _timed(models, feeds, BASE, rounds)]


def _optimized(path: Path, off: tuple[str, ...]) -> bytes:
    options = FusionOptions("bert")
    for name in off:
        setattr(options, name, False)
    found = optimizer.optimize_model(
        str(path),
        model_type="bert",
        num_heads=HEADS,
        hidden_size=WIDTH,
        opt_level=0,
        optimization_options=options,
    )
    done: bytes = found.model.SerializeToString()
    return done


def _simplified(rounds: int) -> list[dict[str, Any]]:
    """A vision transformer as it is, by all of onnxsim, and by what onnxdecomp lets it do."""
    import onnxsim

    model = vit(4, 192, 3)
    ours = ir.from_proto(model)
    Simplify().run(ours, PassContext())
    Normalise().run(ours, PassContext())
    qkv = [name for name in LEFT_OUT if name != "fuse_qkv"]
    models = {
        "as exported": model,
        "all of onnxsim": onnxsim.simplify(model, check_n=0)[0],
        "onnxsim, of these fuse_qkv alone": onnxsim.simplify(model, check_n=0, skipped_optimizers=qkv)[0],
        "onnxdecomp": ir.to_proto(ours),
    }
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3, 16, 16), dtype=np.float32)}
    blobs = {name: one.SerializeToString() for name, one in models.items()}
    rows = _timed(blobs, feeds, "as exported", rounds)
    with TemporaryDirectory() as folder:
        return [{**row, **_both(models[row["model"]], Path(folder), 3, 192)} for row in rows]


def _counts() -> list[dict[str, Any]]:
    """Fusions that are found behind each method, all layers at half of their ranks and widths."""
    original = vit(2)
    model = ir.from_proto(original)
    Simplify().run(model, PassContext())
    Normalise().run(model, PassContext())
    rows = []
    with TemporaryDirectory() as folder:
        rows.append({"method": "original", **_both(original, Path(folder), 4, 32)})
        for method in METHODS:
            copy = model.clone()
            Decompose(method=method, rank="0.5", must_save="none").run(copy, PassContext())
            rows.append({"method": method, **_both(ir.to_proto(copy), Path(folder), 4, 32)})
    return rows


def _both(model: onnx.ModelProto, folder: Path, heads: int, width: int) -> dict[str, Any]:
    return {
        "session": dict(in_a_session(model, folder)),
        "tool": dict(by_the_tool(model, folder, "vit", heads, width)),
    }


def _timed(
    models: Mapping[str, bytes], feeds: Mapping[str, Array], base: str, rounds: int
) -> list[dict[str, Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        for name, blob in models.items()
    }
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name in rng.permutation(list(sessions)):
            start = time.process_time()
            sessions[name].run(None, dict(feeds))
            times[name].append(time.process_time() - start)
    rows = []
    for name, own in times.items():
        ratios = np.array(own) / np.array(times[base])
        drawn = np.median(rng.choice(ratios, (1000, len(ratios))), axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        rows.append(
            {
                "model": name,
                "ms": 1e3 * float(np.median(own)),
                "ratio": float(np.median(ratios)),
                "interval": [float(low), float(high)],
            }
        )
    return rows


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number) or "none"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]"


def _tables(
    worth: list[dict[str, Any]], simplified: list[dict[str, Any]], counts: list[dict[str, Any]]
) -> str:
    first = [[str(row["tokens"]), row["model"], f"{row['ms']:.2f}", _ratio(row)] for row in worth]
    second = [
        [row["model"], f"{row['ms']:.3f}", _ratio(row), _told(row["session"]), _told(row["tool"])]
        for row in simplified
    ]
    third = [[row["method"], _told(row["session"]), _told(row["tool"])] for row in counts]
    parts = [
        "# Fusions of transformers",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
        "## What each is worth: a BERT encoder, one sentence",
        markdown(["tokens", "fusions", "ms of processor", f"over {BASE}"], first),
        "## What a simplifier costs: a vision transformer of 4 blocks",
        markdown(
            ["simplified by", "ms of processor", "over as exported", "in a session", "by the tool"], second
        ),
        "## What methods cost: a vision transformer of 2 blocks, every layer at half",
        markdown(["method", "in a session", "by the tool"], third),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
