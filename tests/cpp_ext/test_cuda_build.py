"""The CUDA kernels compile for the promised devices, all of them, without spilling registers."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from speechssm.cpp_ext.build import SOURCES, library_file
from speechssm.cpp_ext.native import RGLRU
from tests.cpp_ext.conftest import built

KERNELS = {
    "rglru_step_1": 3, "rglru_step_2": 3, "rglru_scan_1_reduce": 3, "rglru_scan_1_carry": 1,
    "rglru_scan_1_apply": 3, "rglru_scan_2": 5, "conv4": 3,
    "ring_start": 1, "ring_1": 8, "ring_2": 16, "ring_2_last": 8,
}  # fmt: skip
"""Entry points of each kernel: one a dtype; scan_2 also has the one-channel form of the two-byte types, and the
attention ring one a pair of stream and ring, or one a ring for each of four shapes of heads."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return built("cuda")


@pytest.fixture(scope="module")
def report(folder) -> str:
    return (folder / "build.log").read_text()


@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_every_kernel_is_there(report, device):
    entries = set(re.findall(rf"Compiling entry function '(\S+)' for '{device}'", report))
    for name, count in KERNELS.items():
        tagged = f"{len(name)}{name}"  # how a mangled name holds it
        assert sum(tagged in e for e in entries) == count, name
    assert len(entries) == sum(KERNELS.values())


def test_nothing_spills(report):
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(usage) == 2 * sum(KERNELS.values())
    assert {tuple(map(int, u)) for u in usage} == {(0, 0, 0)}
    used = re.findall(r"Compiling entry function '(\S+)' for.*?Used (\d+) registers", report, re.DOTALL)
    assert len(used) == len(usage)
    # Six blocks of 128 threads; one of 512; one of 256.
    most = {"rglru or conv4": 80, "ring_1": 128, "ring_2": 255}
    for name, registers in used:
        kind = next((k for k in most if k in name), "rglru or conv4")
        assert int(registers) <= (128 if "ring_start" in name else most[kind]), name


def test_newer_devices_get_ptx(report):
    assert re.search(r"arch=compute_90,code=\[[^]]*compute_90[^]]*sm_90[^]]*\]", report)
    assert re.search(r"arch=compute_80,code=\[?sm_80\]?", report)


def test_the_library_loads_without_a_device_and_says_so(folder):
    lib = ctypes.CDLL(str(folder / library_file("cuda")))
    lib.speechssm_status_text.restype = ctypes.c_char_p
    call = RGLRU(struct_bytes=ctypes.sizeof(RGLRU) - 1)
    status = lib.speechssm_rglru_step_cuda(ctypes.byref(call), 0, None)
    assert b"another speechssm_rglru" in lib.speechssm_status_text(status)
    call.struct_bytes = ctypes.sizeof(RGLRU)
    assert b"below 1" in lib.speechssm_status_text(lib.speechssm_rglru_scan_cuda(ctypes.byref(call), 0, None))
    assert b"version" in lib.speechssm_status_text(lib.speechssm_rglru_scan_cuda(ctypes.byref(call), 3, None))


def test_launchers_neither_allocate_nor_wait():
    """Read from the sources: a launcher may be captured in a CUDA graph (catalogue P2)."""
    kernels = SOURCES / "kernels"
    text = "".join(p.read_text() for p in sorted(kernels.iterdir()))
    calls = set(re.findall(r"\bcuda[A-Z]\w+(?=\s*\()", text))
    assert calls == {"cudaPeekAtLastError"}
    launches = re.findall(r"<<<([^>]*(?:>[^>]+)*?)>>>", text)
    assert len(launches) >= 8
    assert all(launch.rstrip().endswith(("stream", "stream_of(stream)")) for launch in launches)
