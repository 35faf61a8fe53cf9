"""Put graphs and weights into a bundle folder, atomically.

Weights go to one safetensors file a part; graphs point into it as ONNX external data by file, offset
and length, so the step and the chunk graph share one copy. The folder is written under a temporary
name and renamed when everything, manifest last, is in place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from speechssm.bundle import tensors
from speechssm.bundle.manifest import MANIFEST, DType, FileEntry, GraphEntry, Manifest, Value
from speechssm.bundle.reader import sha256
from speechssm.bundle.state import StateTensor
from speechssm.errors import ExportError

from .ready.part import Writable

Weights = Mapping[str, np.ndarray]

_TENSOR_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "F32",
    TensorProto.FLOAT16: "F16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "I8",
    TensorProto.UINT8: "U8",
    TensorProto.FLOAT8E4M3FN: "F8_E4M3",
}
_VALUE_TYPES: dict[int, DType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.BOOL: "bool",
}


def part_file(part: str) -> str:
    """Name of the weight file of a part."""
    return f"{part}.safetensors"


def write_parts(folder: Path, builders: Mapping[str, Writable], weights: Mapping[str, Weights]) -> None:
    """Write the safetensors file of every part the graphs use.

    Raises ExportError when a graph wants a weight that ``weights[part]`` lacks or has in another shape,
    when a weight is not finite, or when two graphs store one weight differently.
    """
    wanted: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for graph, builder in builders.items():
        for use in builder.weights.values():
            spec = (_TENSOR_TYPES[use.dtype], use.shape)
            if wanted.setdefault(use.part, {}).setdefault(use.name, spec) != spec:
                raise ExportError(
                    f"graph {graph} stores weight {use.name} unlike another graph of the bundle"
                )
    for part, specs in wanted.items():
        tensors.write(folder / part_file(part), specs, _converted(part, specs, weights.get(part, {})))


def _converted(
    part: str, specs: Mapping[str, tuple[str, tuple[int, ...]]], weights: Weights
) -> Iterator[np.ndarray]:
    for name, (dtype, shape) in specs.items():
        array = weights.get(name)
        if array is None:
            raise ExportError(f"part {part} has no weight {name}: the checkpoint is incomplete")
        if tuple(array.shape) != shape:
            raise ExportError(f"weight {name} of part {part} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise ExportError(f"weight {name} of part {part} is not finite: the checkpoint is damaged")
        yield narrowed(name, array, dtype)


def narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """``array`` in storage type F32, F16 or BF16 (as uint16, rounded to nearest even); integers as they are."""
    if dtype in ("I8", "U8", "F8_E4M3"):
        return array
    array = np.asarray(array, np.float32)
    if dtype == "F32":
        return array
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"weight {name} exceeds the float16 range: export with --dtype bfloat16 or float32"
            )
        return half
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_graph(
    folder: Path, name: str, builder: Writable, state: tuple[StateTensor, ...] = ()
) -> GraphEntry:
    """Write ``<name>.onnx`` beside its weight files and return its manifest entry."""
    model = builder.model()
    place_weights(model, builder, folder)
    model.graph.doc_string = f"{name} of a speechssm bundle"
    file = f"{name}.onnx"
    (folder / file).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(folder / file))
    parts = sorted({use.part for use in builder.weights.values()})
    return GraphEntry(
        file=file,
        weights=tuple(part_file(part) for part in parts),
        inputs=tuple(_value(v) for v in model.graph.input),
        outputs=tuple(_value(v) for v in model.graph.output),
        state=state,
    )


def place_weights(model: onnx.ModelProto, builder: Writable, folder: Path) -> None:
    """Fill in file, offset and length of every external weight from the part files in ``folder``."""
    headers = {
        part: tensors.read_header(folder / part_file(part))
        for part in {u.part for u in builder.weights.values()}
    }
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        use = builder.weights[tensor.name]
        entry = headers[use.part][use.name]
        for key, value in (
            ("location", part_file(use.part)),
            ("offset", entry.offset),
            ("length", entry.length),
        ):
            field = tensor.external_data.add()
            field.key, field.value = key, str(value)


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.tensor_type
    axes = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
    return Value(name=info.name, dtype=_VALUE_TYPES[kind.elem_type], axes=axes)


def write_manifest(folder: Path, make: Callable[[dict[str, FileEntry]], Manifest]) -> Manifest:
    """Digest every file of ``folder`` and write the manifest ``make`` builds from the digests."""
    files = {
        path.name: FileEntry(sha256=sha256(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
    manifest = make(files)
    (folder / MANIFEST).write_text(
        manifest.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8"
    )
    return manifest


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its name when the block ends well.

    Raises ExportError when ``target`` exists and is not a bundle to be overwritten, or its parent
    cannot be written to. Nothing is left behind on an error.
    """
    target = target.absolute()
    replaceable = overwrite and not target.is_symlink() and (target / MANIFEST).is_file()
    if os.path.lexists(target) and not replaceable:  # a link to nowhere as well
        raise ExportError(
            f"{target} already exists: choose another folder, or add --overwrite to replace a bundle"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            old = work.with_suffix(".old")
            os.replace(target, old)
            os.replace(work, target)
            shutil.rmtree(old)
        else:
            os.replace(work, target)
    except OSError as error:
        raise ExportError(f"cannot write the bundle {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
