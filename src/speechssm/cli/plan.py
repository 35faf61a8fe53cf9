"""``speechssm plan``: how many sessions a machine holds and runs, from the cost model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechssm.axes import TOKEN_RATE_HZ
from speechssm.bundle import limits
from speechssm.errors import SettingsError

if TYPE_CHECKING:
    from speechssm.perf.capacity import Machine

UNITS = {
    "": 1,
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
    "MB": 10**6,
    "GB": 10**9,
}
MOST_MINUTES = limits.POSITION / TOKEN_RATE_HZ / 60
"""A session ends where the rotary tables do."""
MOST_BYTES = 1 << 50
"""Most memory of a machine (1 PiB)."""
MOST_RATE = 1e9
"""Most GB/s or TFLOP/s."""
ITEM_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.53125}
"""Bytes of one weight; int4 in blocks of 128 carries a float32 scale and a zero point."""

RINGS = ("float32", "float16")
"""Types a ring or cache may have."""


def plan(
    preset: Annotated[str, typer.Option(help="tiny, demo, 2b or 9b.")] = "2b",
    memory: Annotated[str, typer.Option(help="Memory for weights and sessions, such as 24GiB.")] = "24GiB",
    bandwidth: Annotated[float | None, typer.Option(help="GB/s; measured here when left out.")] = None,
    flops: Annotated[float | None, typer.Option(help="TFLOP/s; measured here when left out.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Weights: float32, float16, bfloat16, int8 or int4.")
    ] = "bfloat16",
    ring: Annotated[str, typer.Option(help="Attention ring or cache: float32 or float16.")] = "float16",
    minutes: Annotated[
        float, typer.Option(help="Length of a session, which a Transformer's cache grows with.")
    ] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how many sessions fit, how many run in real time, and which limit binds; the LM stage alone."""
    from speechssm.perf.capacity import capacity, step_seconds
    from speechssm.perf.contest import models_of

    if not 0 < minutes <= MOST_MINUTES:
        raise SettingsError(f"--minutes is {minutes}: give a number above 0, at most {MOST_MINUTES:g}")
    machine = _machine(size_bytes(memory), bandwidth, flops)
    weight, item = _item("--dtype", dtype), int(_item("--ring", ring, RINGS))
    tokens = round(minutes * 60 * TOKEN_RATE_HZ)
    rows: list[dict[str, Any]] = []
    for name, shape in models_of(preset).items():
        found = capacity(shape, machine, weight_item_bytes=weight, ring_item_bytes=item, tokens=tokens)
        one = step_seconds(shape, machine, 1, tokens, weight_item_bytes=weight, ring_item_bytes=item)
        rows.append(
            {
                "model": name,
                "parameters": shape.parameters,
                "weight_bytes": round(shape.parameters * weight),
                "session_bytes": shape.session_bytes(tokens, item),
                "sessions_fit": found.fit,
                "sessions_real_time": found.real_time,
                "limit": found.limit,
                "step_floor_ms_one_row": 1e3 * one.total_s,
            }
        )
    if as_json:
        print(json.dumps({"tokens": tokens, "machine": asdict(machine), "models": rows}))
        return
    rates = f"{machine.read_bytes_per_s / 1e9:.0f} GB/s, {machine.flops_per_s / 1e12:.2f} TFLOP/s"
    print(f"{rates}, sessions of {tokens} tokens")
    print(f"{'model':<18}{'weights':>10}{'session':>11}{'fit':>8}{'real time':>11}  limit")
    for row in rows:
        print(
            f"{row['model']:<18}{row['weight_bytes'] / 2**30:>7.2f}GiB{row['session_bytes'] / 2**20:>8.1f}MiB"
            f"{row['sessions_fit']:>8}{row['sessions_real_time']:>11}  {row['limit']}"
        )


def size_bytes(text: str) -> int:
    """``24GiB`` as a number of bytes. Raises SettingsError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise SettingsError(f"{text!r} is not a size: write a number and a unit, such as 24GiB or 500MB")
    size = float(found[1]) * UNITS[found[2].upper()]
    if not 1 <= size <= MOST_BYTES:
        raise SettingsError(
            f"a memory of {size:g} bytes cannot be meant: give 1 byte to {MOST_BYTES >> 40}TiB"
        )
    return round(size)


def _item(option: str, dtype: str, known: Collection[str] = ITEM_BYTES) -> float:
    if dtype not in known:
        raise SettingsError(f"{option} is {dtype!r}: choose one of {', '.join(known)}")
    return ITEM_BYTES[dtype]


def _machine(memory_bytes: int, bandwidth: float | None, flops: float | None) -> Machine:
    from speechssm.perf.capacity import Machine
    from speechssm.perf.roofline import measure

    for option, value in (("--bandwidth", bandwidth), ("--flops", flops)):
        if value is not None and not (math.isfinite(value) and 0 < value <= MOST_RATE):
            raise SettingsError(f"{option} is {value}: give a number above 0, at most {MOST_RATE:g}")
    if bandwidth is None or flops is None:
        here = measure(passes=3)
        bandwidth = bandwidth or here.read_bytes_per_s / 1e9
        flops = flops or here.gemm_flops_per_s / 1e12
    return Machine(memory_bytes, bandwidth * 1e9, flops * 1e12)
