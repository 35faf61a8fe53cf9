"""The readers under fuzz: each takes a seeded generator, feeds one damaged input, and says what became of it.

Whatever is refused is refused by the reader's own error, on one printable line. Whatever is taken is
looked at again by someone else: the onnx package, or the session that a snapshot became.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import speechssm
from speechssm.bundle import onnx_check, open_bundle, read_manifest, tensors
from speechssm.bundle.manifest import GraphEntry, Value
from speechssm.errors import BundleError, SnapshotError, SpeechSSMError
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.model import Model

from . import mutate

Reader = Callable[[random.Random, Path, Path], str]
"""Generator, tiny bundle, folder for the input in hand -> outcome."""


def refused(error: SpeechSSMError, path: Path) -> str:
    """The refusal's form is checked; what it says is shortened to what can be counted."""
    text = str(error)
    assert text.isprintable(), text
    assert 10 < len(text) < 2100, text
    text = text.replace(str(path), "it").replace(path.name, "it").split("; ")[0].split(" (")[0]
    text = re.sub(r"'[^']*'|\[.*\]|\d+", "#", text)
    return "refused: " + ": ".join(text.split(": ")[-2:])[-80:]


# ---- manifest ----------------------------------------------------------------------------------------


@cache
def _manifest(bundle: Path) -> object:
    return json.loads((bundle / "manifest.json").read_text())


def manifest(rng: random.Random, bundle: Path, folder: Path) -> str:
    """``read_manifest`` on a damaged manifest."""
    path = folder / "manifest.json"
    path.write_bytes(mutate.damaged_json(rng, _manifest(bundle)))
    try:
        found, digest = read_manifest(folder)
    except BundleError as error:
        return refused(error, path)
    assert len(digest) == 64
    # What was taken is whole: written out and read again it is the same.
    found = found.model_copy(update={"parity": {}})  # free-form, and 1e999 is a number to JSON only
    assert type(found).model_validate_json(found.model_dump_json()) == found
    return "read"


# ---- safetensors header ------------------------------------------------------------------------------


@cache
def _weights(bundle: Path) -> tuple[bytes, tuple[bytes, ...]]:
    """A small file of every type, and the headers of true ones."""
    small = {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
        "c": ("I64", ()),
        "d": ("BOOL", (0, 5)),
        "e": ("BF16", (3, 1)),
    }
    data = bytes(range(24 + 8 + 8 + 6))
    headers = tuple(p.read_bytes()[:2000] for p in bundle.glob("*.safetensors"))
    return tensors.layout(small, {"format": "x", "session": "{}"}) + data, headers


def weights(rng: random.Random, bundle: Path, folder: Path) -> str:
    """``tensors.read_header`` and ``read_blocks`` on a damaged weight file."""
    whole, others = _weights(bundle)
    if rng.random() < 0.5:
        raw = mutate.damaged_bytes(rng, whole, others)
    else:
        (length,) = struct.unpack("<Q", whole[:8])
        header = mutate.damaged_json(rng, json.loads(whole[8 : 8 + length]))
        raw = struct.pack("<Q", len(header)) + header + whole[8 + length :]
    path = folder / "w.safetensors"
    path.write_bytes(raw)
    try:
        entries, metadata = tensors.read_header_and_metadata(path)
    except BundleError as error:
        return refused(error, path)
    assert all(isinstance(v, str) for v in metadata.values())
    # Every byte belongs to the header or to exactly one tensor.
    used = Counter(i for e in entries.values() for i in range(e.offset, e.offset + e.length))
    start = min((e.offset for e in entries.values()), default=len(raw))
    assert used == Counter(range(start, len(raw)))
    assert b"".join(block for _, _, block in tensors.read_blocks(path, entries)) == raw
    return "read"


# ---- graphs ------------------------------------------------------------------------------------------


@cache
def _graphs(bundle: Path) -> tuple[tuple[onnx.ModelProto, GraphEntry, onnx_check.Ranges], ...]:
    """A small graph with everything in it, and two true ones."""
    found = [small_graph()]
    opened = open_bundle(bundle)
    for name in ("codec_decode", "lm_chunk"):
        path, entry = opened.graph(name)
        ranges = {file: onnx_check.tensor_ranges(bundle / file) for file in entry.weights}
        found.append((onnx.load(path, load_external_data=False), entry, ranges))
    return tuple(found)


def small_graph() -> tuple[onnx.ModelProto, GraphEntry, onnx_check.Ranges]:
    """Inline and external weights, typed data, a body, two functions, one calling the other."""
    external = onnx.TensorProto(name="w", dims=[2, 4], data_type=1, data_location=1)
    for key, value in (("location", "lm.safetensors"), ("offset", "64"), ("length", "32")):
        external.external_data.add(key=key, value=value)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Constant", [], ["k"], value_ints=[1, 300])],
        "body", [], [helper.make_tensor_value_info("i", 1, ["b", 4])], [helper.make_tensor("s", 7, [2], [1, -1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("speechssm", 1)]
    functions = [
        helper.make_function(
            "speechssm", name, ["p"], ["q"], [helper.make_node(op, ["p"], ["q"], domain=domain)], opsets
        )
        for name, op, domain in (("F", "G", "speechssm"), ("G", "Neg", ""))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("F", ["m"], ["f"], domain="speechssm"),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", 1, ["b", 2])],
        [helper.make_tensor_value_info("y", 1, ["b", 4])],
        [external, helper.make_tensor("c", 9, [], [1]), helper.make_tensor("r", 1, [2], b"12345678", raw=True)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    entry = GraphEntry(
        file="small.onnx",
        weights=("lm.safetensors",),
        inputs=(Value(name="x", dtype="float32", axes=("b", 2)),),
        outputs=(Value(name="y", dtype="float32", axes=("b", 4)),),
    )
    return model, entry, {"lm.safetensors": frozenset({(64, 32), (96, 8)})}


def graph(rng: random.Random, bundle: Path, folder: Path) -> str:
    """``onnx_check`` on a damaged graph; what it takes, the onnx package must read in the same way."""
    graphs = _graphs(bundle)
    model, entry, ranges = graphs[0 if rng.random() < 0.97 else rng.randrange(1, len(graphs))]
    if rng.random() < 0.6:
        raw = mutate.damaged_message(rng, model)
    else:
        raw = mutate.damaged_bytes(rng, model.SerializeToString())
    path = folder / "graph.onnx"
    path.write_bytes(raw)
    try:
        facts = onnx_check.check_bytes(raw, path.name, entry, ranges)
    except BundleError as error:
        return refused(error, path)
    check_as_onnx_sees_it(raw, facts)
    return "read"


def check_as_onnx_sees_it(raw: bytes, facts: onnx_check.GraphFacts) -> None:
    model = onnx.ModelProto.FromString(raw)
    operators: Counter[str] = Counter()
    external = set()
    for message in mutate._tree(model):
        if isinstance(message, onnx.NodeProto):
            plain = message.domain in ("", "ai.onnx")
            operators[message.op_type if plain else f"{message.domain}::{message.op_type}"] += 1
        if isinstance(message, onnx.TensorProto):
            assert not message.string_data
            if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
                places = {e.key: e.value for e in message.external_data}
                assert len(places) == len(message.external_data) == 3
                external.add((places["location"], int(places["offset"]), int(places["length"])))
        assert not isinstance(message, onnx.SparseTensorProto | onnx.TrainingInfoProto)
    assert operators == facts.operators
    assert external == facts.external


# ---- snapshots ---------------------------------------------------------------------------------------


@cache
def _model(bundle: Path) -> tuple[Model, bytes, dict[str, tensors.TensorEntry], dict[str, str]]:
    model = speechssm.load(bundle, threads=1)
    path = bundle.parent / "fuzz-true.safetensors"
    voice = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    with model.open(voice, rate_hz=16_000, seed=1, ramp=True, schedule=AcousticSchedule((1,))) as session:
        stream = session.stream(5)
        next(stream)
        next(stream)
        session.snapshot(path)
    raw = path.read_bytes()
    entries, metadata = tensors.read_header_and_metadata(path)
    path.unlink()
    return model, raw, entries, metadata


def snapshot(rng: random.Random, bundle: Path, folder: Path) -> str:
    """``Model.restore`` on a damaged snapshot; a session that comes of it speaks, or fails in one sentence."""
    model, raw, entries, metadata = _model(bundle)
    kind = rng.random()
    if kind < 0.3:
        content = mutate.damaged_bytes(rng, raw)
    elif kind < 0.65:
        content = _with_session(raw, mutate.damaged_json(rng, json.loads(metadata["session"])))
    else:
        content = _with_values(rng, raw, entries)
    path = folder / "s.safetensors"
    path.write_bytes(content)
    try:
        session = model.restore(path)
    except SnapshotError as error:
        return refused(error, path)
    with session:
        if rng.random() < 0.97:
            return "restored"
        try:
            for piece, _ in zip(session.resume(), range(2), strict=False):
                assert np.isfinite(piece).all()
        except SpeechSSMError as error:
            return "restored, then " + refused(error, path)
        return "restored, then spoke"


def _with_session(raw: bytes, session: bytes) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["session"] = session.decode("utf-8", "surrogateescape")
    bent = json.dumps(header).encode()
    return struct.pack("<Q", len(bent)) + bent + raw[8 + length :]


def _with_values(rng: random.Random, raw: bytes, entries: dict[str, tensors.TensorEntry]) -> bytes:
    """The header stays true; a few numbers in the tensors change."""
    out = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        entry = rng.choice([e for e in entries.values() if e.length])
        size = tensors.ITEM_BYTES[entry.dtype]
        at = entry.offset + size * rng.randrange(entry.length // size)
        value = rng.choice(
            (0, 1, 31, 32, 63, 64, 65, 749, 750, -1, 1 << 40, rng.randrange(-(1 << 63), 1 << 63))
        )
        out[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(out)


READERS: dict[str, Reader] = {"manifest": manifest, "weights": weights, "graph": graph, "snapshot": snapshot}
