"""The RG-LRU on a processor against float64: odd shapes, chunks, raggedness, slots, poison (catalogue P1)."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from speechssm.cpp_ext.native import RGLRU
from tests.cpp_ext.lru_native import AVX2, AVX512, SCALAR, HostLibrary
from tests.cpp_ext.lru_reference import assert_close, errors, random_case, rglru

CHUNKS = (1, 2, 3, 127, 128, 129, 1000)
SHAPES = ((1, 1, 1), (2, 3, 7), (3, 5, 17), (127, 2, 33), (128, 1, 16), (129, 3, 15), (1000, 2, 37))


def compare(host: HostLibrary, case: dict, expected_rows=None, **options):
    y, state = host.scan(case, **options)
    named = {n: options.get(n) for n in ("lengths", "active", "slots", "branch")}
    want_y, want_state = rglru(**case, **named)
    assert_close(y, want_y, case["state"])
    assert_close(state, want_state, case["state"], want_y)
    return y, state


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sequential_agrees_with_float64(host, rng, shape):
    compare(host, random_case(rng, *shape))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [(3, 5, 17), (129, 3, 15), (1000, 2, 37)], ids=str)
def test_chunked_agrees_with_float64(host, rng, shape, chunk):
    compare(host, random_case(rng, *shape), version=2, chunk=chunk)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("layout", ["tbe", "bte"])
def test_everything_at_once(host, rng, version, layout):
    """Ragged, inactive and reset rows in permuted slots of a pool, in place, every unused number poisoned."""
    tokens, rows, width, pool = 130, 9, 21, 14
    case = random_case(rng, tokens, rows, width, pool)
    lengths = np.array([130, 0, 1, 129, 77, 500, -3, 128, 64])
    active = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1])
    slots = rng.permutation(pool)[:rows]
    slots[7] = -1
    slots[8] = pool
    case["position"] = np.array([0, 0, 0, 5, 0, -60, 0, 7, 9])  # row 5 meets its reset row at token 60
    for name in ("x", "gate_x", "gate_a"):
        for b in range(rows):
            used = min(max(lengths[b], 0), tokens) if active[b] and 0 <= slots[b] < pool else 0
            case[name][used:, b] = np.nan
    case["gate_a"][0, 0] = np.nan  # a reset row has no use for the recurrence gate
    used_slots = {int(s) for s in slots if 0 <= s < pool}
    for slot in set(range(pool)) - used_slots:
        case["state"][slot] = np.nan
    case["state"][slots[0]] = np.nan  # a slot reused after a damaged stream
    case["state"][slots[1]] = np.nan
    before = case["state"].copy()
    y, state = host.scan(
        case,
        version=version,
        layout=layout,
        in_place=True,
        lengths=lengths,
        active=active,
        slots=slots,
        chunk=32,
    )
    want_y, want_state = rglru(**case, lengths=lengths, active=active, slots=slots)
    assert_close(y, want_y, case["state"])
    runs = [b for b in range(rows) if 0 <= slots[b] < pool and active[b] and lengths[b] > 0]
    for b in runs:
        assert_close(state[slots[b]], want_state[slots[b]], before[slots[b]], want_y[:, b])
    for slot in set(range(pool)) - {int(slots[b]) for b in runs}:
        assert state[slot].tobytes() == before[slot].tobytes()


@pytest.mark.parametrize("version", [1, 2])
def test_idle_rows_are_copied_bit_for_bit(host, rng, version):
    case = random_case(rng, 5, 3, 19)
    bits = rng.integers(0, 2**32, case["state"].shape, dtype=np.uint32)
    bits[:, 0], bits[:, 1] = 0x80000000, 0x7FA00001  # -0.0 and a signalling NaN
    case["state"] = bits.view(np.float32)
    _, state = host.scan(case, version=version, chunk=2, lengths=[0, 5, 5], active=[1, 0, 0])
    assert state.tobytes() == case["state"].tobytes()


@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 31, 100])
def test_every_instruction_set_gives_the_scalar_bits(host, rng, isa, width):
    case = random_case(rng, 40, 2, width)
    case["gate_a"][3, 0, : width // 2] = np.float32(200)
    case["gate_x"][5, 1] = np.float32(-1000)
    case["position"][1] = -7
    host.set_isa(SCALAR)
    want_y, want_state = host.scan(case)
    best = host.set_isa(isa)
    try:
        if best != isa:
            pytest.skip("this processor lacks the instruction set")
        y, state = host.scan(case)
    finally:
        host.set_isa(AVX512)
    assert y.tobytes() == want_y.tobytes()
    assert state.tobytes() == want_state.tobytes()


def test_scan_and_steps_give_the_same_bits(host, rng):
    case = random_case(rng, 50, 3, 45)
    case["position"][0] = 0
    whole_y, whole_state = host.scan(case)
    state, parts = case["state"], []
    for t in range(50):
        one = {n: case[n][t : t + 1] for n in ("x", "gate_x", "gate_a")}
        one |= {"decay": case["decay"], "state": state, "position": case["position"] + t}
        y, state = host.step(one)
        parts.append(y[0])
    assert np.stack(parts).tobytes() == whole_y.tobytes()
    assert state.tobytes() == whole_state.tobytes()


def test_neighbours_and_slots_change_no_bit(host, rng):
    case = random_case(rng, 20, 6, 23)
    y, state = host.scan(case)
    order = rng.permutation(6)
    moved = {n: case[n][:, order] for n in ("x", "gate_x", "gate_a")}
    moved |= {"decay": case["decay"], "state": case["state"], "position": case["position"][order]}
    y2, state2 = host.scan(moved, slots=order)
    assert y2.tobytes() == np.ascontiguousarray(y[:, order]).tobytes()
    assert state2.tobytes() == state.tobytes()
    alone = {n: case[n][:, 2:3] for n in ("x", "gate_x", "gate_a")}
    alone |= {"decay": case["decay"], "state": case["state"][2:3], "position": case["position"][2:3]}
    assert host.scan(alone)[1].tobytes() == state[2:3].tobytes()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("where", ["x", "gate_x", "gate_a", "state"])
def test_damage_stays_visible_and_stays_in_its_channel(host, rng, version, isa, where):
    """A NaN must reach the health output, even past a chunk long enough to decay to nothing."""
    case = random_case(rng, 600, 1, 33)
    case["decay"][:] = -30.0
    target = case[where][0] if where == "state" else case[where][2, 0]
    target[20] = np.nan
    host.set_isa(isa)
    try:
        y, state = host.scan(case, version=version, chunk=300)
    finally:
        host.set_isa(AVX512)
    assert np.isnan(state[0, 20])
    assert np.isnan(y[-1, 0, 20])
    assert np.isfinite(np.delete(state[0], 20)).all()


def test_slow_decays_keep_their_digits(host, rng):
    """a within 1e-6 of one for 4 000 tokens. Rounding the state itself walks to about 6e-6; the textbook
    float32 form (a rounded, 1 - a*a cancelling) is off by thousands of times its own resolution.
    """
    case = random_case(rng, 4000, 1, 16)
    case["gate_a"] = rng.uniform(-9, -5, case["gate_a"].shape).astype(np.float32)
    case["decay"] = np.geomspace(-1e-4, -0.1, 16).astype(np.float32)
    case["state"][:] = 1.0
    y, _ = host.scan(case)
    want, _ = rglru(**case)
    assert errors(y, want, case["state"])[1] <= 1e-5
    a = np.exp(case["decay"] / (1 + np.exp(-case["gate_a"][:, 0])))
    drive = np.sqrt(np.maximum(1 - a * a, 0)) * case["x"][:, 0] / (1 + np.exp(-case["gate_x"][:, 0]))
    textbook = np.ones(16, np.float32)
    for t in range(4000):
        textbook = a[t] * textbook + drive[t]
    assert textbook.dtype == np.float32
    assert errors(textbook, want[-1, 0], case["state"])[1] > 1e-4


def test_a_long_chunk_hands_the_state_on_exactly(host, rng):
    """No input, only decay: a state of 1 times the product of 1 000 factors, through one stretch.

    Over 150 seeds, composing a - 1 token by token was off by 7.3e-7 at best; the bound lies well below.
    """
    case = random_case(rng, 1000, 1, 200)
    case["x"][:] = 0
    case["decay"] = (-np.geomspace(1e-3, 0.1, 200)).astype(np.float32)
    case["state"][:] = 1
    _, state = host.scan(case, version=2, chunk=1000)
    _, want = rglru(**case)
    assert np.abs(state - want).max() <= 3e-7


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("version", [1, 2])
def test_two_byte_inputs(host, rng, dtype, version):
    case = random_case(rng, 70, 2, 35)
    narrow = case | {n: case[n].astype(dtype) for n in ("x", "gate_x", "gate_a")}
    wide = case | {n: narrow[n].astype(np.float32) for n in ("x", "gate_x", "gate_a")}
    y, state = host.scan(narrow, version=version, chunk=16)
    want_y, want_state = rglru(**wide)
    assert_close(state, want_state, case["state"], want_y)
    assert_close(y.astype(np.float32), want_y, case["state"], slack=float(ml_dtypes.finfo(dtype).eps) / 2)


def test_two_byte_outputs_round_to_nearest_even(host, rng):
    """Every two-byte value times a factor that makes ties, through reset rows with a saturated gate."""
    bits = np.arange(65536, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = bits.view(dtype)
        case = {n: values.reshape(1, 1, -1) for n in ("x", "gate_x", "gate_a")}
        case["gate_x"] = np.full((1, 1, values.size), 80, dtype)
        case |= {
            "decay": np.full(values.size, -1, np.float32),
            "state": np.zeros((1, values.size), np.float32),
        }
        case["position"] = np.zeros(1)
        branch = np.asarray(
            rng.choice([1.0, 0.99951171875, 1.0009765625, 1.5, 2.0**-12], values.size)
        ).astype(dtype)
        y, _ = host.scan(case, branch=branch.reshape(1, 1, -1))
        with np.errstate(all="ignore"):
            want = (values.astype(np.float32) * branch.astype(np.float32)).astype(dtype)
        finite = ~np.isnan(want.astype(np.float32))
        assert np.array_equal(y.ravel().view(np.uint16)[finite], want.view(np.uint16)[finite])
        assert np.isnan(y.ravel().astype(np.float32)[~finite]).all()


def test_branch_product(host, rng):
    case = random_case(rng, 9, 4, 20)
    compare(host, case, branch=rng.standard_normal(case["x"].shape).astype(np.float32))


def test_refusals_say_what_is_wrong(host, rng):
    case = random_case(rng, 4, 2, 8)

    def status(version=1, step=False, **changes):
        call, keep, _, _ = host.call_of(case, chunk=2)
        for name, value in changes.items():
            setattr(call, name, value)
        address = ctypes.addressof(call)
        if step:
            code = host.lib.speechssm_rglru_step_host(address)
        else:
            code = host.lib.speechssm_rglru_scan_host(address, version)
        assert np.isnan(keep["y"]).all() == (code != 0)  # a refused call writes nothing
        return host.text(code)

    assert status() == "ok"
    assert "another speechssm_rglru" in status(struct_bytes=ctypes.sizeof(RGLRU) - 8)
    assert "negative" in status(tokens=-1)
    assert "negative" in status(width=0)
    assert "dtype" in status(dtype=3)
    assert "NULL" in status(gate_a=None)
    assert "NULL" in status(position=None)
    assert "overlap" in status(token_stride=8)
    assert "per batch row" in status(slot_count=1)
    assert "workspace" in status(version=2, workspace_bytes=63)
    assert "NULL" in status(version=2, workspace=None)
    assert "exactly one token" in status(step=True)
    assert "version" in status(version=3)


def test_empty_calls(host, rng):
    case = random_case(rng, 0, 2, 8)
    for version in (1, 2):
        _, state = host.scan(case, version=version)
        assert state.tobytes() == case["state"].tobytes()
