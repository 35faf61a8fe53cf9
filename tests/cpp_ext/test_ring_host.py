"""The attention ring on a processor against float64: odd shapes, wraps, raggedness, slots, poison (catalogue P1)."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from speechssm.cpp_ext.native import Ring
from tests.cpp_ext.lru_native import AVX2, AVX512, SCALAR
from tests.cpp_ext.ring_native import call_of, run_ring
from tests.cpp_ext.ring_reference import RINGS, assert_close, attend, random_case

SHAPES = (
    (1, 1, 1, 1, 1, 1), (1, 3, 4, 2, 8, 16), (5, 2, 3, 1, 17, 7), (9, 3, 10, 1, 64, 16), (2, 2, 22, 2, 36, 33),
    (3, 2, 9, 3, 100, 50), (1, 2, 5, 1, 256, 300), (2, 1, 2, 2, 512, 40),
)  # fmt: skip
"""Tokens, rows, query heads, key/value heads, head dim, window."""
VERSIONS = (1, 2)


def compare(host, case, version=1, slack=0.0, **options):
    y, check, rings = run_ring(host, case, version=version, **options)
    named = {n: options.get(n) for n in ("lengths", "active", "slots")}
    want_y, want_check, want = attend(case, appends=options.get("appends", True), **named)
    assert_close(y, want_y, slack)
    assert np.array_equal(np.isnan(check), np.isnan(want_check))
    assert (check[~np.isnan(check)] == 0).all()
    for n, ring in rings.items():
        assert ring.tobytes() == want[n].tobytes(), n
    return y, check, rings


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(host, rng, shape, version):
    compare(host, random_case(rng, *shape), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("window", [1, 15, 16, 17, 40])
def test_positions_before_at_and_after_the_window(host, rng, window, version):
    positions = [0, 1, window - 1, window, window + 1, 2 * window - 1, 2 * window, 10**12 + 7]
    case = random_case(rng, 3, len(positions), 4, 2, 24, window)
    case["position"] = np.array(positions)
    compare(host, case, version, in_place=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("dim", [16, 21])
def test_every_type(host, rng, ring, dtype, dim, version):
    """A narrow ring is read back by the tokens after: six of them, a window of four."""
    case = random_case(rng, 6, 3, 6, 2, dim, 4, dtype=dtype, ring=ring)
    slack = 0.0 if dtype is np.float32 else float(ml_dtypes.finfo(dtype).eps) / 2
    compare(host, case, version, slack)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("layout", ["tb", "bt"])
@pytest.mark.parametrize("ring", RINGS)
def test_everything_at_once(host, rng, version, layout, ring):
    """Ragged, inactive and fresh rows in permuted slots of a pool, in place, every unused number poisoned."""
    tokens, rows, pool, window = 20, 9, 14, 6
    case = random_case(rng, tokens, rows, 4, 2, 19, window, pool=pool, ring=ring)
    lengths = np.array([20, 0, 1, 19, 7, 500, -3, 12, 6])
    active = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1])
    slots = rng.permutation(pool)[:rows]
    slots[7] = -1
    slots[8] = pool
    case["position"] = np.array([0, 0, 3, 5, 0, 1, 0, 7, 9])
    parts = [n for n in ("key_scale", "value_scale") if n in case] or ["key", "value"]
    for name in ("q", "k", "v"):
        for b in range(rows):
            used = min(max(lengths[b], 0), tokens) if active[b] and 0 <= slots[b] < pool else 0
            case[name][used:, b] = np.nan
    for part in parts:
        for slot in set(range(pool)) - {int(s) for s in slots if 0 <= s < pool}:
            case[part][slot] = np.nan
        for b in range(rows):  # slots that no token has reached, as a damaged stream left them
            if 0 <= slots[b] < pool:
                case[part][slots[b], int(case["position"][b]) :] = np.nan
    before = {n: case[n].copy() for n in ("key", "value", *(p for p in parts if "scale" in p))}
    rows_given = {"lengths": lengths, "active": active, "slots": slots}
    y, check, rings = run_ring(host, case, version=version, layout=layout, in_place=True, **rows_given)
    want_y, _, want = attend(case, **rows_given)
    assert_close(y, want_y)
    assert (check == 0).all()
    runs = {int(slots[b]) for b in range(rows) if 0 <= slots[b] < pool and active[b] and lengths[b] > 0}
    for n, ring_out in rings.items():
        for slot in range(pool):
            expected = want[n] if slot in runs else before[n]
            assert ring_out[slot].tobytes() == expected[slot].tobytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_idle_rings_are_copied_bit_for_bit(host, rng, version):
    case = random_case(rng, 2, 3, 2, 1, 5, 4)
    bits = rng.integers(0, 2**32, case["key"].shape, dtype=np.uint32)
    bits[:, 0], bits[:, 1] = 0x80000000, 0x7FA00001  # -0.0 and a signalling NaN
    case["key"] = bits.view(np.float32)
    _, check, rings = run_ring(host, case, version=version, lengths=[0, 2, 2], active=[1, 0, 0])
    assert rings["key"].tobytes() == case["key"].tobytes()
    assert (check == 0).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ring", RINGS)
def test_without_outputs_nothing_is_appended(host, rng, version, ring):
    case = random_case(rng, 1, 4, 6, 3, 20, 9, ring=ring)
    y, _, rings = compare(host, case, version, appends=False)
    assert rings == {}
    assert y.tobytes() == run_ring(host, case, version=version)[0].tobytes()


@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(("heads", "dim"), [(1, 1), (3, 15), (7, 16), (10, 17), (8, 64), (20, 130)])
def test_every_instruction_set_gives_the_scalar_bits(host, rng, isa, ring, heads, dim):
    case = random_case(rng, 3, 2, heads, 1, dim, 37, ring=ring, spread=4)
    case["position"][:] = [35, 90]
    host.set_isa(SCALAR)
    want_y, _, want = run_ring(host, case)
    best = host.set_isa(isa)
    try:
        if best != isa:
            pytest.skip("this processor lacks the instruction set")
        y, _, rings = run_ring(host, case)
    finally:
        host.set_isa(AVX512)
    assert y.tobytes() == want_y.tobytes()
    assert all(rings[n].tobytes() == want[n].tobytes() for n in want)


@pytest.mark.parametrize("ring", RINGS)
def test_a_chunk_and_its_tokens_give_the_same_bits(host, rng, ring):
    case = random_case(rng, 40, 3, 6, 2, 20, 16, ring=ring)
    case["position"][0] = 0
    whole_y, _, whole = run_ring(host, case)
    parts, state = [], {n: case[n] for n in whole}
    for t in range(40):
        one = {n: case[n][t : t + 1] for n in ("q", "k", "v")} | state | {"position": case["position"] + t}
        y, _, state = run_ring(host, one)
        parts.append(y[0])
    assert np.stack(parts).tobytes() == whole_y.tobytes()
    assert all(state[n].tobytes() == whole[n].tobytes() for n in whole)


def test_neighbours_and_slots_change_no_bit(host, rng):
    case = random_case(rng, 5, 6, 4, 2, 23, 11)
    y, _, rings = run_ring(host, case)
    order = rng.permutation(6)
    moved = case | {n: case[n][:, order] for n in ("q", "k", "v")} | {"position": case["position"][order]}
    y2, _, rings2 = run_ring(host, moved, slots=order)
    assert y2.tobytes() == np.ascontiguousarray(y[:, order]).tobytes()
    assert all(rings2[n].tobytes() == rings[n].tobytes() for n in rings)
    alone = {n: case[n][:, 2:3] for n in ("q", "k", "v")}
    alone |= {n: case[n][2:3] for n in ("key", "value", "position")}
    assert run_ring(host, alone)[2]["key"].tobytes() == rings["key"][2:3].tobytes()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "key", "value", "last key"])
def test_damage_shows_in_the_check_of_its_row(host, rng, version, isa, value, where):
    case = random_case(rng, 1, 3, 2, 1, 33, 40)
    case["position"][:] = 40
    if where == "last key":
        case["key"][1, 39, 0, 32] = value
    else:
        case[where].reshape(-1 if where in ("key", "value") else 1, *case[where].shape[1:])
        target = case[where][1, 3, 0] if where in ("key", "value") else case[where][0, 1, 0]
        target[20] = value
    host.set_isa(isa)
    try:
        _, check, _ = run_ring(host, case, version=version)
    finally:
        host.set_isa(AVX512)
    assert np.isnan(check).tolist() == [False, True, False]


@pytest.mark.parametrize("version", VERSIONS)
def test_scores_that_exp_cannot_reach(host, rng, version):
    """Scores hundreds apart, rising and falling: the largest decides, nothing overflows."""
    case = random_case(rng, 1, 2, 2, 1, 16, 64, spread=1)
    case["position"][:] = 64
    case["q"][:] = 10
    ramp = np.linspace(-40, 40, 64, dtype=np.float32)
    case["key"][0], case["key"][1] = ramp[:, None, None], ramp[::-1, None, None]
    compare(host, case, version)


def test_weights_too_small_to_matter_are_zero(host):
    """Not denormal, which would be slow: beside a weight of 1, a value of 1e30 at a score of -70 adds nothing."""
    one = np.ones((1, 1, 1, 16), np.float32)
    case = {"q": one.copy(), "k": 10 * one, "v": one.copy(), "position": np.array([1])}
    case["key"], case["value"] = (5.625 * one).reshape(1, 1, 1, 16), np.full((1, 1, 1, 16), 1e30, np.float32)
    y, check, _ = run_ring(host, case)  # scores 160 and 90
    assert (y == 1).all()
    assert (check == 0).all()
    case["value"][0, 0, 0, 3] = np.inf
    assert np.isnan(run_ring(host, case)[1]).all()  # but damage is seen at any weight


def test_int8_rings_round_as_the_graphs_do(host, rng):
    """Ties, zeros, the tiniest and the largest heads; a head that holds a NaN keeps it in its scale."""
    x = rng.standard_normal((1, 7, 1, 16)).astype(np.float32)
    x[0, 1] = 0
    x[0, 2] = np.float32(1e-38) * np.arange(16).reshape(1, 16)
    x[0, 3] = 3e38
    x[0, 4, 0] = np.arange(16) * 0.5
    x[0, 4, 0, 15] = 127
    x[0, 5, 0, 3] = np.nan
    x[0, 6, 0, 0] = np.inf
    case = random_case(rng, 1, 7, 1, 1, 16, 2, ring="int8")
    case["position"][:] = 0
    case["k"] = x
    for version in VERSIONS:
        _, _, rings = run_ring(host, case, version=version)
        with np.errstate(all="ignore"):
            want = attend({n: a[:, :5] if n in "qkv" else a[:5] for n, a in case.items()})[2]
        assert rings["key"][:5].tobytes() == want["key"].tobytes()
        assert rings["key_scale"][:5].tobytes() == want["key_scale"].tobytes()
        assert np.isnan(rings["key_scale"][5, 0, 0])
        assert np.isinf(rings["key_scale"][6, 0, 0])


def test_refusals_say_what_is_wrong(host, rng):
    case = random_case(rng, 4, 2, 4, 2, 8, 5, ring="int8")

    def status(version=1, **changes):
        call, keep, _, _, _ = call_of(case)
        for name, value in changes.items():
            setattr(call, name, value)
        code = host.lib.speechssm_ring_host(ctypes.addressof(call), version)
        assert np.isnan(keep["y"]).all() == (code != 0)  # a refused call writes nothing
        return host.text(code)

    assert status() == "ok"
    assert "rebuild both" in status(struct_bytes=ctypes.sizeof(Ring) - 8)
    assert "negative" in status(tokens=-1)
    assert "kv_heads" in status(kv_heads=3)
    assert "kv_heads" in status(kv_heads=0)
    assert "head_dim" in status(head_dim=513)
    assert "window" in status(window=0)
    assert "dtype is none" in status(dtype=3)
    assert "ring_dtype" in status(ring_dtype=4)
    for name in ("q", "y", "position", "key_in", "value_scale_in", "key_out", "key_scale_out"):
        assert "NULL" in status(**{name: None})
    nothing = dict.fromkeys(("key_out", "value_out", "key_scale_out", "value_scale_out"))
    assert "exactly one token" in status(**nothing)
    assert "overlap" in status(token_stride=1)
    assert "per batch row" in status(slot_count=1)
    assert "version" in status(version=3)


def test_empty_calls(host, rng):
    case = random_case(rng, 0, 2, 2, 1, 8, 4)
    for version in VERSIONS:
        _, check, rings = run_ring(host, case, version=version)
        assert rings["key"].tobytes() == case["key"].tobytes()
        assert (check == 0).all()
