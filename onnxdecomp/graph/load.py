"""Loading an ONNX file: every way in which it can be bad is one clear line, weights stay on the disk."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph import maps
from onnxdecomp.graph.external_data import attach
from onnxdecomp.graph.opsets import DEFAULT_DOMAINS, unreadable
from onnxdecomp.graph.sparse import densify
from onnxdecomp.graph.tensors import own_memory
from onnxdecomp.graph.traversal import operands, places, slots
from onnxdecomp.runtime.fatal import fatal
from onnxdecomp.runtime.process_state import quiet_logger
from onnxdecomp.runtime.regular_files import require_regular

PROTOBUF_LIMIT = (1 << 31) - 1
_META = "onnxdecomp.source"


@dataclass(frozen=True)
class Source:
    """What of a file an ir.Model does not hold.

    Attributes:
        path: The model's file.
        data: The real paths of its external data files.
        training_info: The serialized TrainingInfoProtos, which onnx_ir leaves out.
    """

    path: Path
    data: tuple[Path, ...] = ()
    training_info: tuple[bytes, ...] = ()


def source(model: ir.Model) -> Source | None:
    """Where a model was loaded from; None for one that was built or lost it in a conversion."""
    found = model.graph.meta.get(_META)
    return found if isinstance(found, Source) else None


def inherit(model: ir.Model, original: ir.Model) -> None:
    """Give a model that was made anew (by a simplifier) the source of the one that it stands for."""
    if (found := source(original)) is not None:
        model.graph.meta[_META] = found
    maps.keep(model, maps.kept(original))


def load(path: str | Path) -> ir.Model:
    """Load an ONNX model; external data is mapped, not read.

    Raises:
        ModelError: The file is missing, no ONNX model or truncated; its external data is missing or too
            short; its IR version or an opset is newer than the installed ONNX Runtime reads; it uses
            a value that nothing defines, lists an input twice, would end the process in ONNX Runtime, or
            uses what cannot be kept (inputs that are maps), or has a damaged sparse tensor.
    """
    path = Path(path)
    proto = _parse(path)
    _check_header(proto, path)
    types = maps.take_out(proto)
    with quiet_logger("onnx_ir"):  # what it warns of is checked here and raised
        try:
            model = ir.from_proto(proto)
        except Exception as error:  # onnx_ir raises many kinds, wrapped in one another
            root = error
            while root.__cause__ is not None:
                root = root.__cause__  # type: ignore[assignment]
            reason = (str(root) or repr(root)).splitlines()[0]
            raise ModelError(f"{path}: the model cannot be represented: {reason}") from error
    _check_names(model, path)
    data = attach(list(slots(model)), path)
    training = tuple(info.SerializeToString(deterministic=True) for info in proto.training_info)
    try:
        own_memory(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    model.graph.meta[_META] = Source(path, data, training)
    maps.keep(model, types)
    return model


def sha256(path: str | Path) -> str:
    """SHA-256 of the .onnx file itself, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | Path) -> str:
    """SHA-256 of all that makes a model: of its file, and of its external data where it has some.

    Raises:
        ModelError: As `load`.
    """
    found = source(load(path))
    files = [Path(path), *(found.data if found is not None else ())]
    hashes = [sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def total_bytes(path: str | Path) -> int:
    """Bytes of a model: its file and its external data files.

    Raises:
        ModelError: As `load`.
    """
    path = Path(path)
    found = source(load(path))
    data = found.data if found is not None else ()
    return path.stat().st_size + sum(file.stat().st_size for file in data)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path}: this is a folder; name the .onnx file inside it")
    try:
        require_regular(path)
        size = path.stat().st_size
        if not size:  # nor is anything of /proc read, which may never end
            raise ModelError(f"{path}: the file is empty")
        if size > PROTOBUF_LIMIT:
            raise ModelError(
                f"{path}: larger than the 2 GiB that an ONNX file can have; export it with external data"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file{_beside(path)}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: a Git LFS pointer, not the model; run git lfs pull")
    if content[4:8] == b"ORTM":
        raise ModelError(f"{path}: this is ORT format; give the .onnx file that it was made from")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:  # a DecodeError, of whichever of protobuf's implementations
        raise ModelError(f"{path}: not an ONNX model, or a truncated one") from None
    _unalias(proto)
    return proto


def _beside(path: Path) -> str:
    """The model in the same folder whose name is closest, as the end of a message."""
    import difflib

    folder = path.parent
    models = [file.name for file in folder.glob("*.onnx")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, models, n=1)
    return f"; did you mean {str(folder / close[0])!r}?" if close else ""


def _unalias(proto: onnx.ModelProto) -> None:
    """Call the standard operators' domain "" where it is called "ai.onnx", as onnx_ir does for nodes.

    Of several versions of it the last one counts, as ONNX Runtime has it.
    """
    for importer in (proto, *proto.functions):
        last = {_plain_domain(entry.domain): entry.version for entry in importer.opset_import}
        if len(last) < len(importer.opset_import) or any(
            entry.domain not in last for entry in importer.opset_import
        ):
            del importer.opset_import[:]
            importer.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in last.items())
    for function in proto.functions:
        function.domain = _plain_domain(function.domain)


def _plain_domain(domain: str) -> str:
    return DEFAULT_DOMAINS[0] if domain in DEFAULT_DOMAINS else domain


def _check_header(proto: onnx.ModelProto, path: Path) -> None:
    if not 1 <= proto.ir_version < 1000 or not proto.HasField("graph"):
        raise ModelError(f"{path}: not an ONNX model, or a truncated one (no IR version or no graph)")
    if not proto.graph.output:
        raise ModelError(f"{path}: the model has no outputs")
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    if not imports or min(imports.values()) < 1:
        raise ModelError(f"{path}: the model does not say which opset it uses, or is truncated")
    if not all(isinstance(domain, str) and domain.isprintable() for domain in imports):
        raise ModelError(f"{path}: the model imports an opset whose domain is no text; the file is damaged")
    passed_on = {value.name: value for value in proto.graph.input}
    for output in proto.graph.output:
        given = passed_on.get(output.name)
        if given is not None and given.type != output.type:
            raise ModelError(
                f"{path}: the output {output.name!r} is the input of that name, and declared with another "
                "type or shape; give it the input's"
            )
    try:
        densify(proto)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if (reason := fatal(proto)) is not None:
        raise ModelError(f"{path}: {reason}")
    if (reason := unreadable(proto.ir_version, imports)) is not None:
        raise ModelError(f"{path}: {reason}; upgrade onnxruntime or convert the model")


def _check_names(model: ir.Model, path: Path) -> None:
    """Every value must come from one place; nodes are put in order where they are not."""
    for place in places(model):
        graph, where = place.graph, place.path or "the main graph"
        # ONNX Runtime passes over it for a weight, which is no longer one when its layer is decomposed.
        for name, times in Counter(value.name for value in graph.inputs).items():
            if times > 1:
                raise ModelError(
                    f"{path}: {where} lists the input {name!r} {times} times; the names of inputs must differ"
                )
        seen: set[ir.Node] = set()
        ordered = True
        for node in graph:
            for value in operands(node):
                if _undefined(value):
                    raise ModelError(
                        f"{path}: {node.op_type} {node.name!r} in {where} uses {value.name!r}, "
                        "which nothing defines"
                    )
                producer = value.producer()
                ordered = ordered and (producer is None or producer.graph is not graph or producer in seen)
            seen.add(node)
        for value in graph.outputs:
            if _undefined(value):
                raise ModelError(f"{path}: the output {value.name!r} of {where} is not defined in it")
        if not ordered:
            try:
                graph.sort()
            except ValueError:
                raise ModelError(f"{path}: the nodes of {where} depend on each other in a circle") from None


def _undefined(value: ir.Value) -> bool:
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()
