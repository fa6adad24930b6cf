"""compress and inspect: the whole way of a model through the pipeline, as functions that return values."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp import environment, jsonio, pipeline
from onnxdecomp.errors import GateError, ModelError, UnchangedError, UsageError
from onnxdecomp.graph.load import Source as LoadedFrom
from onnxdecomp.graph.load import load, sha256, source
from onnxdecomp.graph.save import check_target, copy, data_path, save
from onnxdecomp.lowering import LoweringCheck, check_lowering
from onnxdecomp.plan.plan import Plan
from onnxdecomp.record import SCHEMA_VERSION, LayerRecord, layer_records, totals

if TYPE_CHECKING:
    import onnx

    from onnxdecomp.benchmark import BenchResult
    from onnxdecomp.runtime.inputs import Data
    from onnxdecomp.verification import Verification

    Source = str | Path | ir.Model | onnx.ModelProto

Report = Callable[[str, int, int], None]
"""Progress: (what is being done, steps done, steps in all or 0 where unknown)."""


@dataclass(frozen=True, eq=False)
class Result:
    """What `compress` did.

    Attributes:
        model: The compressed model; the original's content where nothing was decomposed.
        plan: The decision for every layer.
        layers: What happened to every layer, in the plan's order.
        lowering: The lowering check of every rewritten layer.
        notes: What a user should know, a sentence each.
        changed: Whether any layer was decomposed.
        path: The file written, or None.
        verification: The comparison with the original, or None where not asked for.
        latency: The interleaved timing against the original, or None where not asked for.
        record: The JSON record of the run.
    """

    model: ir.Model
    plan: Plan
    layers: tuple[LayerRecord, ...]
    lowering: tuple[LoweringCheck, ...]
    notes: tuple[str, ...]
    changed: bool
    path: Path | None
    verification: Verification | None
    latency: BenchResult | None
    record: dict[str, Any]


def compress(
    model: Source,
    output: str | Path | None = None,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    data: Data | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    verify: bool = True,
    bench: bool = True,
    bench_seconds: float = 2.0,
    max_error: float | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    simplify: str | None = None,
    overwrite: bool = False,
    fail_if_unchanged: bool = False,
    dry_run: bool = False,
    progress: Report | None = None,
    **decompose: Any,
) -> Result:
    """Decompose the layers of a model, check the result against the original, and time both.

    Args:
        model: A file, or a model in memory, which is left as it is.
        output: The file to write; None writes none.
        config: A pipeline's configuration: a TOML file or the same as a mapping.
        data: Inputs for the verification, with labels for accuracy (see onnxdecomp.runtime.inputs); without
            it they are random.
        input_shapes: Shapes of inputs whose dimensions the model leaves free, by name.
        samples: At most so many samples of the data are compared.
        verify: Compare the outputs with the original's.
        bench: Time the result against the original.
        bench_seconds: Seconds that timing may take, roughly.
        max_error: Largest relative L2 error of an output; above it GateError, and no file is written.
        provider, threads: Where it is verified and timed; threads None is one per core.
        seed: Of everything random.
        simplify: "onnxsim", "onnxscript" or "none".
        overwrite: Whether the output may replace a file, the input included.
        fail_if_unchanged: Raise UnchangedError where nothing was decomposed.
        dry_run: Plan only: no factor is computed and no file written.
        progress: Called as the work goes on.
        **decompose: Options of the decompose stage: method, rank, rank_multiple, include, exclude, must_save,
            options, freeze_initializers (see onnxdecomp_passes.decompose).

    Raises:
        UsageError, ModelError, ProviderError, GateError, UnchangedError: See onnxdecomp.errors. Whatever is
            raised, the output is either complete or as it was before.
    """
    report = progress or _silent
    target = None if output is None or dry_run else Path(output)
    if target is not None:
        check_target(target, overwrite=overwrite)
    overrides: dict[str, dict[str, Any]] = {
        "decompose": {**decompose, "seed": seed, "provider": provider},
    }
    if "freeze_initializers" in decompose:
        overrides["normalise"] = {"freeze_initializers": decompose["freeze_initializers"]}
    if simplify is not None:
        overrides["simplify"] = {"tool": simplify}
    stages = pipeline.build(config, overrides)
    with _on_disk(model) as path:
        working = load(path)
        if target is not None:
            check_target(target, model=working, overwrite=overwrite)
        versions = _versions(working)
        size = _bytes(path, source(working))
        if dry_run:
            return _dry_run(_head(path, versions, size), working, stages, report)
        stages = tuple(_with_progress(stage, report) for stage in stages)
        ran = pipeline.run(working, stages, lambda stage: report(stage, 0, 0))
        plan = Plan.from_json(ran.record.get("decompose", {}).get("plan", {"version": 1, "choices": []}))  # type: ignore[arg-type]
        report("lowering check", 0, 0)
        checks = check_lowering(ran.rewritten, opset=versions["opset"], ir_version=versions["ir_version"])
        _require_lowered(checks)
        layers = layer_records(plan, ran.rewritten, checks)
        changed = bool(ran.rewritten)
        if not changed and fail_if_unchanged:
            raise UnchangedError(f"nothing was decomposed: {_why_nothing(plan)}")
        result = ran.model if changed else load(path)
        with _staged(result, target, original=None if changed else path) as written:
            checked = timed = None
            if verify:
                report("verify", 0, 0)
                checked = _verify(
                    path, written, data, input_shapes, samples, provider, threads, seed, max_error
                )
            if bench and changed:
                report("bench", 0, 0)
                timed = _bench(path, written, provider, threads, input_shapes, bench_seconds, seed)
            record = {
                **_head(path, versions, size),
                "environment": environment.describe(provider, threads or environment.cores()),
                "output": {
                    "path": None if target is None else str(target),
                    "sha256": sha256(written),
                    "bytes": _bytes(written),
                },
                "plan": plan.to_json(),
                "layers": jsonio.plain(layers),
                "totals": {**totals(layers), "bytes": {"before": size, "after": _bytes(written)}},
                "verify": None if checked is None else checked.to_json(),
                "latency": None if timed is None else timed.to_json(),
                "notes": list(ran.notes),
                "passes": {name: facts for name, facts in ran.record.items() if name != "decompose"},
            }
        return Result(result, plan, layers, checks, ran.notes, changed, target, checked, timed, record)


def inspect(model: Source, *, simplify: str = "none", **decompose: Any) -> Result:
    """What `compress` would do to every layer, without doing it; the same options.

    Raises:
        UsageError, ModelError: See onnxdecomp.errors.
    """
    return compress(model, simplify=simplify, dry_run=True, **decompose)


def _silent(what: str, done: int, total: int) -> None:
    return


@contextlib.contextmanager
def _on_disk(model: Source) -> Iterator[Path]:
    """The model as a file: everything that follows compares with that file."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
        path = Path(folder) / "model.onnx"
        if not isinstance(model, ir.Model):
            model = ir.from_proto(model)
        save(model.clone(), path)
        yield path


@contextlib.contextmanager
def _staged(model: ir.Model, target: Path | None, original: Path | None) -> Iterator[Path]:
    """The result as a file, put in its place only if nothing that the caller does with it fails.

    Args:
        model: The result.
        target: Where it goes in the end, or None.
        original: The file that the result is a plain copy of, byte by byte where it is one file.
    """
    folder = None if target is None else target.parent
    with tempfile.TemporaryDirectory(prefix=".onnxdecomp-", dir=folder) as temporary:
        staged = Path(temporary) / ("model.onnx" if target is None else target.name)
        if original is not None:
            copy(original, staged)
        else:
            save(model, staged)
        yield staged
        if target is None:
            return
        if data_path(staged).exists():
            # Two files are never replaced by two renames: a crash in between would mix them.
            save(model, target, overwrite=True, external=True)
        else:
            staged.replace(target)


def _with_progress(stage: Any, report: Report) -> Any:
    if stage.name != "decompose" or not hasattr(stage, "on_layer"):
        return stage
    return replace(stage, on_layer=lambda done, total, layer: report(f"decompose {layer}", done, total))


def _dry_run(head: dict[str, Any], working: ir.Model, stages: Sequence[Any], report: Report) -> Result:
    before = []
    for stage in stages:
        if stage.name == "decompose":
            break
        before.append(stage)
    else:
        raise UsageError("the pipeline has no decompose pass: there is no plan to show")
    ran = pipeline.run(working, before, lambda name: report(name, 0, 0))
    plan, _ = stage.plan(ran.model)
    layers = layer_records(plan, (), ())
    record = {
        **head,
        "plan": plan.to_json(),
        "layers": jsonio.plain(layers),
        "totals": totals(layers),
        "notes": list(ran.notes),
    }
    return Result(ran.model, plan, layers, (), ran.notes, False, None, None, None, record)


def _require_lowered(checks: Sequence[LoweringCheck]) -> None:
    for check in checks:
        if not check.passed:
            raise ModelError(
                f"{check.layer}: the rewritten nodes differ from their own weight by {check.rel_error:.3g} "
                f"(at most {check.tolerance:g}); nothing was written. This is a bug in onnxdecomp: please "
                "report it, and use --exclude for this layer until it is mended"
            )


def _why_nothing(plan: Plan) -> str:
    reasons = sorted({choice.reason for choice in plan.choices if choice.reason})
    return (
        "; ".join(reasons[:3])
        or "the model has no Conv, ConvTranspose, Gemm or MatMul with a constant weight"
    )


def _verify(
    original: Path,
    new: Path,
    data: Data | None,
    shapes: Mapping[str, Sequence[int]] | None,
    samples: int | None,
    provider: str,
    threads: int | None,
    seed: int,
    max_error: float | None,
) -> Verification:
    from onnxdecomp.verification import verify

    checked = verify(
        original,
        new,
        data=data,
        shapes=shapes,
        seed=seed,
        provider=provider,
        threads=threads or environment.cores(),
        samples=samples,
        max_error=max_error,
    )
    if checked.interface:
        raise ModelError(f"the interface changed ({checked.interface[0]}): this is a bug in onnxdecomp")
    if checked.status == "failed":
        raise GateError(f"verification failed, nothing was written: {checked.reason}")
    return checked


def _bench(
    original: Path,
    new: Path,
    provider: str,
    threads: int | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seconds: float,
    seed: int,
) -> BenchResult | None:
    from onnxdecomp.benchmark import bench

    return bench(
        [original, new],
        providers=(provider,),
        threads=(threads or environment.cores(),),
        shapes=shapes,
        duration=seconds,
        seed=seed,
        memory=False,
    )


def _versions(model: ir.Model) -> dict[str, int]:
    return {"opset": int(model.opset_imports.get("", 1)), "ir_version": int(model.ir_version)}


def _head(path: Path, versions: Mapping[str, int], size: int) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": environment.tool(),
        "model": {"path": str(path), "sha256": sha256(path), "bytes": size, **versions},
    }


def _bytes(path: Path, made_from: LoadedFrom | None = None) -> int:
    """Bytes of a model file and its external data: of those it was loaded from, or those that `save` made."""
    data = made_from.data if made_from is not None else (data_path(path),)
    return path.stat().st_size + sum(file.stat().st_size for file in data if file.exists())
