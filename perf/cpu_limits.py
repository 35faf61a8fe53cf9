"""How near a language model's step comes to what the machine can do, by storage, in one run.

    python -m speechssm.perf.cpu_limits --shape 200m --threads 2 --peers

One row is bound by reading weights: bytes of weights a step reads, over the bandwidth of reading plain memory.
Sixty-four rows are bound by arithmetic: their rate, over the best rate of the same kind of product. Reading and
products take turns with the steps, so that a machine that is faster for a second is so for both. All storages take
turns, and Hugging Face's ``RecurrentGemma.generate`` with the same weights where it is asked for. Bundles are
written without a parity report: the arithmetic does not depend on the weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from speechssm.bundle import tensors
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.cpp_ext.build import operators
from speechssm.engines.ort import OrtOptions, import_onnxruntime
from speechssm.export.checkpoints.huggingface import layout
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.package import part_file
from speechssm.export.parity.compare import RING_STEPS
from speechssm.export.presets import PRESETS
from speechssm.export.quantize import BLOCK, quantize
from speechssm.export.storage import Storage
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.settings import SamplerSettings

from .lm import contestant
from .roofline import Reader

STORAGES: tuple[Storage, ...] = ("float32", "int8", "int4", "dynamic_int8")
NATIVE: tuple[Storage, ...] = ("float32", "float16", "bfloat16", "int8", "int4")
"""Storages the native library's linear layers read."""
SHAPES: dict[str, LMShape] = {
    "200m": LMShape(
        vocab=32_768, width=1024, lru_width=1024, heads=8, kv_heads=1, head_dim=128, window=2048,
        mlp_width=3072, blocks=griffin_blocks(16), rope="none",
    ),
    "tiny": PRESETS["tiny"].lm,
    "2b": PRESETS["2b"].lm,
    "9b": PRESETS["9b"].lm,
}  # fmt: skip
POSITION = 3000
"""Every row is past the window: its rings are full."""
GEMM_SIDE = (1024, 3072)


@dataclass
class Timed:
    """A storage's step graph and what was measured of it."""

    storage: Storage
    native: bool
    """Whether layers and attention are operators of the native library."""
    weight_bytes: int
    """Of the tensors one step reads: all but the embedding table, of which it reads a row."""
    lm: LanguageModel
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Of steps, by rows."""

    @property
    def label(self) -> str:
        """Its name among the others of a run."""
        return f"{self.storage}, native" if self.native else self.storage


def written(
    shape: LMShape, storage: Storage, folder: Path, threads: int = 0, *, native: bool = False
) -> Timed:
    """The step graph of seeded weights in ``folder``, opened; with ``native`` it has the library's operators."""
    options = OrtOptions("cpu", threads, operators() if native else None)
    made = contestant(storage, shape, folder, dtype=storage, options=options)
    sizes = {name: e.length for name, e in tensors.read_header(folder / part_file("lm")).items()}
    # A tied float32 embedding is the head as well, which reads all of it.
    read = sum(size for name, size in sizes.items() if name != "embed" or "head.q" not in sizes)
    read -= sum(size for name, size in sizes.items() if name.startswith("rope."))
    return Timed(storage, native, read, made.lm)


def pool_of(timed: Timed, rows: int) -> LMRows:
    """``rows`` sessions past their window, ready to step."""
    pool = LMRows(timed.lm, rows)
    for row in range(rows):
        pool.start(row, row % timed.lm.vocab, SamplerSettings(), seed=row)
    for state in pool.state.sets:
        state["position"][:] = POSITION
    pool.active[:] = True
    pool.step()
    return pool


def in_turns(jobs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Times of each job, one after the other and again, for ``seconds`` in all and three rounds at least."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(next(iter(times.values()))) < 3:
        for name, job in jobs.items():
            at = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - at)
    return times


# the machine's own limits


class Products:
    """A product of ``rows`` rows through one (1024, 3072) matrix in ONNX Runtime, by storage; a job is some of them."""

    REPEATS = 5

    def __init__(self, storages: Sequence[Storage], threads: int, rows: int) -> None:
        inputs, outputs = GEMM_SIDE
        rng = np.random.default_rng(0)
        matrix = rng.standard_normal((outputs, inputs)).astype(np.float32)
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        self.operations = 2 * rows * inputs * outputs
        self.jobs: dict[str, Callable[[], object]] = {}
        self._best: dict[str, float] = {}
        for storage in dict.fromkeys(storages):
            session = _product(storage, matrix, threads)
            given = np.clip(x * 40 + 128, 0, 255).astype(np.uint8) if storage == "dynamic_int8" else x
            session.run(None, {"x": given})
            self._best[storage] = float("inf")
            self.jobs[f"product {storage}"] = self._job(storage, session, given)

    def _job(self, storage: str, session: Any, given: np.ndarray) -> Callable[[], None]:
        def run() -> None:
            for _ in range(self.REPEATS):
                at = time.perf_counter()
                session.run(None, {"x": given})
                self._best[storage] = min(self._best[storage], time.perf_counter() - at)

        return run

    def rates(self) -> dict[str, float]:
        """Best operations a second so far, by storage."""
        return {storage: self.operations / best for storage, best in self._best.items()}


def _product(storage: Storage, matrix: np.ndarray, threads: int) -> Any:
    outputs, inputs = matrix.shape
    kinds = {"dynamic_int8": (TensorProto.UINT8, TensorProto.INT32)}
    kind, made = kinds.get(storage, (TensorProto.FLOAT, TensorProto.FLOAT))
    weights: dict[str, np.ndarray] = {"w": np.ascontiguousarray(matrix.T)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    if storage == "dynamic_int8":
        weights = {
            "w": np.clip(np.rint(matrix.T * 40), -127, 127).astype(np.int8),
            "z": np.array(128, np.uint8),
        }
        node = helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])
    elif storage in ("int8", "int4"):
        bits = int(storage[3:])
        numbers, scale = quantize(matrix, bits)
        weights = {"w": numbers, "s": scale}
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits,
            block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", kind, ["b", inputs])],
        [helper.make_tensor_value_info("y", made, ["b", outputs])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# Hugging Face, same weights


def hugging_face(
    shape: LMShape, seed: int, threads: int, tokens: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """``RecurrentGemma.generate`` by mode, each a job that makes ``tokens`` tokens from a prompt of 8."""
    import torch

    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    config = transformers.RecurrentGemmaConfig(
        num_hidden_layers=shape.layers, vocab_size=shape.vocab, hidden_size=shape.width,
        intermediate_size=2 * shape.mlp_width, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, lru_width=shape.lru_width,
        attention_window_size=shape.window, eos_token_id=None, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    with torch.device("meta"):
        empty = transformers.RecurrentGemmaForCausalLM(config)
    parameters = seeded_griffin(shape, seed)
    state: dict[str, Any] = {}
    for ours, take in layout(shape).items():
        array = parameters[ours]
        # The checkpoint's layout differs from ours in the convolution alone.
        array = np.ascontiguousarray(array.T[:, None]) if array.shape != take.shape else array
        state[take.name] = torch.from_numpy(array)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    empty.load_state_dict(state, assign=True, strict=False)
    model = empty.eval()
    # Buffers that were made on the meta device are made again where they are used.
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer is not None and buffer.is_meta:
                made = type(module)(config).get_buffer(name) if "Rotary" in type(module).__name__ else None
                value = made if made is not None else torch.tensor(shape.width**0.5, dtype=torch.bfloat16)
                module.register_buffer(name, value.reshape(buffer.shape), persistent=False)
    prompt = torch.arange(1, 9)[None]

    def job(one: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return one.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True)

        return run

    yield "float32, eager", job(model)
    compiled = torch.compile(model.forward, dynamic=True)
    eager, model.forward = model.forward, compiled
    yield "float32, compiled", job(model)
    model.forward = eager
    yield "bfloat16, eager", job(model.to(torch.bfloat16))
    model.forward = torch.compile(model.forward, dynamic=True)
    yield "bfloat16, compiled", job(model)


def limits(
    shape: LMShape,
    *,
    storages: Sequence[Storage] = STORAGES,
    rows: Sequence[int] = (1, 64),
    threads: int = 2,
    seconds: float = 8.0,
    work: Path | None = None,
    native: bool = False,
    apart: bool = False,
) -> dict[str, Any]:
    """Shares of the machine's limits by storage and rows: the figures of this module as one JSON object.

    With ``native`` each storage takes its turns a second time with the native library's operators. ``apart``
    measures one form after the other, each with the machine's limits anew, for models that fit memory but once.
    """
    forms = [(s, n) for s in storages for n in (False, True)[: 1 + native] if not n or s in NATIVE]
    steps = list[dict[str, Any]]()
    for group in [[form] for form in forms] if apart else [forms]:
        with tempfile.TemporaryDirectory(dir=work, prefix="speechssm-limits-") as name:
            timed = [written(shape, s, Path(name) / f"{s}-{n}", threads, native=n) for s, n in group]
            for count in rows:
                steps += _measured(timed, shape, count, threads, seconds)
            for one in timed:
                one.lm.step.close()
            timed.clear()
    return {
        "parameters": shape.parameters,
        "threads": threads,
        "ring": shape.ring,
        "apart": apart,
        "steps": steps,
    }


def _measured(
    timed: Sequence[Timed], shape: LMShape, rows: int, threads: int, seconds: float
) -> list[dict[str, Any]]:
    """The forms' steps in turns with reading and, where rows are many, with products."""
    pools = {one.label: pool_of(one, rows) for one in timed}
    reader = Reader(threads)
    products = Products([one.storage for one in timed] if rows > 1 else [], threads, rows)
    jobs: dict[str, Callable[[], object]] = {
        "read": reader,
        **products.jobs,
        **{label: pool.step for label, pool in pools.items()},
    }
    times = in_turns(jobs, seconds)
    reader.close()
    bandwidth = reader.bytes / float(np.median(times["read"]))
    return [_row(one, shape, rows, times[one.label], bandwidth, products.rates()) for one in timed]


def _row(
    timed: Timed, shape: LMShape, rows: int, times: list[float], bandwidth: float, rates: Mapping[str, float]
) -> dict[str, Any]:
    low, middle = (float(np.percentile(times, p)) for p in (20, 50))
    flops = 2 * shape.matrix_parameters * rows
    rate = rates.get(timed.storage)
    return {
        "storage": timed.storage,
        "native": timed.native,
        "rows": rows,
        "steps": len(times),
        "step_ms": middle * 1e3,
        "step_ms_p20": low * 1e3,
        "tokens_per_s": rows / middle,
        "weights_mb": timed.weight_bytes / 1e6,
        "read_gb_per_s": bandwidth / 1e9,
        "share_of_bandwidth": timed.weight_bytes / bandwidth / middle,
        "product_gop_per_s": rate and rate / 1e9,
        "share_of_product_rate": rate and flops / middle / rate,
    }


def main() -> None:
    """Command line of this module; the last line printed is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="200m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--storages", nargs="+", default=list(STORAGES))
    parser.add_argument(
        "--ring", choices=RING_STEPS, default="float32", help="how past keys and values are kept"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--work", type=Path, help="folder for the temporary bundles")
    parser.add_argument("--native", action="store_true", help="also with the native library's operators")
    parser.add_argument("--apart", action="store_true", help="one form at a time: memory holds one model")
    parser.add_argument("--peers", action="store_true", help="also Hugging Face generate, same weights")
    parser.add_argument("--peer-tokens", type=int, default=16)
    given = parser.parse_args()
    shape = SHAPES[given.shape].model_copy(update={"ring": given.ring})
    found = limits(
        shape, storages=given.storages, rows=given.rows, threads=given.threads, seconds=given.seconds,
        work=given.work, native=given.native, apart=given.apart,
    )  # fmt: skip
    if given.peers:
        found["hugging_face_tokens_per_s"] = peers = dict[str, float | str]()
        for name, job in hugging_face(shape, 0, given.threads, given.peer_tokens):
            try:
                job()  # compiles, and allocates
                peers[name] = given.peer_tokens / float(np.median(in_turns({name: job}, 2.0)[name]))
            except Exception as error:  # a mode that does not run here is told, not hidden
                peers[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
