"""From Griffin's parameters to the arrays the LM graphs read, one at a time.

Parameters are named as :class:`speechssm.export.models.griffin.Griffin` names them (the project's
training layout) and may come from a module or from any mapping, such as a checkpoint on disk that is
read tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from speechssm.bundle import limits
from speechssm.bundle.shapes import LMShape

from ..lazy import LazyArrays
from ..models.griffin import CONV_WIDTH, Griffin
from .griffin_nodes import LOW_POSITIONS

Parameters = Mapping[str, np.ndarray]
_Makers = dict[str, Callable[[], np.ndarray]]


def lm_weights(model: Griffin) -> LazyArrays:
    """Float32 arrays by graph name. Linear weights are (in, out); norms hold 1 + scale."""
    return griffin_weights(model.shape, model_parameters(model))


def model_parameters(model: Griffin) -> LazyArrays:
    """The parameters of a module as float32 arrays by name."""
    return LazyArrays({name: _reader(model, name) for name in model.state_dict()})


def griffin_weights(shape: LMShape, parameters: Parameters) -> LazyArrays:
    """As :func:`lm_weights`, from parameters by name; each array is made when it is asked for."""
    makers: _Makers = {"embed": lambda: parameters["embed"]}
    if not shape.tied_head:
        makers["head"] = lambda: parameters["head"]
    for i, block in enumerate(shape.blocks):
        ours, theirs = f"L{i:02d}", f"layers.{i}"
        for norm in ("temporal_norm", "channel_norm"):
            makers[f"{ours}.{norm}"] = _one_plus(parameters, f"{theirs}.{norm}.scale")
        if block == "recurrent":
            _recurrent(makers, shape, parameters, ours, f"{theirs}.temporal")
        else:
            for part in ("q", "k", "v", "out"):
                _linear(makers, parameters, f"{ours}.{part}", f"{theirs}.temporal.{part}", bias=part == "out")
        for part in ("gate", "up", "down"):
            _linear(makers, parameters, f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}")
    makers["final_norm"] = _one_plus(parameters, "final_norm.scale")
    if shape.rope == "half" and "attention" in shape.blocks:
        tables = rope_tables(shape.head_dim, shape.rope_base)
        makers.update({name: _constant(table) for name, table in tables.items()})
    return LazyArrays(makers)


def rope_tables(head_dim: int, base: float) -> dict[str, np.ndarray]:
    """Cosines and sines of the low and the high part of a position, made in float64."""
    frequencies = base ** (-2.0 * np.arange(head_dim // 4) / (head_dim // 2))
    low = np.arange(LOW_POSITIONS)[:, None] * frequencies
    high = LOW_POSITIONS * np.arange(limits.POSITION // LOW_POSITIONS)[:, None] * frequencies
    tables = {
        "cos_low": np.cos(low),
        "sin_low": np.sin(low),
        "cos_high": np.cos(high),
        "sin_high": np.sin(high),
    }
    return {f"rope.{name}": table.astype(np.float32) for name, table in tables.items()}


def _recurrent(makers: _Makers, shape: LMShape, parameters: Parameters, ours: str, theirs: str) -> None:
    for part in ("linear_x", "linear_y", "linear_out"):
        _linear(makers, parameters, f"{ours}.{part}", f"{theirs}.{part}")
    for j in range(CONV_WIDTH):
        makers[f"{ours}.conv.{j}"] = _row(parameters, f"{theirs}.conv_weight", j)
    makers[f"{ours}.conv.bias"] = lambda: parameters[f"{theirs}.conv_bias"]
    gates = [f"{theirs}.lru.{gate}" for gate in ("input_gate", "recurrence_gate")]
    for j in range(shape.heads):
        makers[f"{ours}.lru.gates.{j}"] = _gate_pair(parameters, gates, j)
    makers[f"{ours}.lru.gates.bias"] = lambda: np.concatenate(
        [parameters[f"{gate}.bias"] for gate in gates], 1
    ).reshape(-1)
    makers[f"{ours}.lru.log_decay"] = lambda: log_decay(parameters[f"{theirs}.lru.decay"])


def log_decay(decay: np.ndarray) -> np.ndarray:
    """-8 softplus(Lambda) of (e), in float64, as float32."""
    return (-8.0 * np.logaddexp(0.0, decay.astype(np.float64))).astype(np.float32)


def _linear(makers: _Makers, parameters: Parameters, ours: str, theirs: str, *, bias: bool = True) -> None:
    makers[f"{ours}.weight"] = lambda: np.ascontiguousarray(parameters[f"{theirs}.weight"].T)
    if bias:
        makers[f"{ours}.bias"] = lambda: parameters[f"{theirs}.bias"]


def _constant(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def _row(parameters: Parameters, name: str, j: int) -> Callable[[], np.ndarray]:
    return lambda: parameters[name][j]


def _gate_pair(parameters: Parameters, gates: list[str], j: int) -> Callable[[], np.ndarray]:
    """Block j of both gates side by side, (e/h, 2e/h), so that one product makes both."""
    return lambda: np.concatenate([parameters[f"{gate}.weight"][j] for gate in gates], 1)


def _one_plus(parameters: Parameters, name: str) -> Callable[[], np.ndarray]:
    return lambda: parameters[name] + np.float32(1)


def _reader(model: Griffin, name: str) -> Callable[[], np.ndarray]:
    tensor = model.state_dict()[name]
    return lambda: tensor.detach().float().cpu().numpy()
