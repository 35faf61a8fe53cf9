"""``batch``, ``export`` and ``plan`` with input nobody should give: one sentence, a non-zero exit, nothing left."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

import speechssm
from speechssm.errors import ExportError
from speechssm.export import tradeoff
from speechssm.export.checkpoints import huggingface
from speechssm.export.checkpoints.files import read_json
from speechssm.export.package import new_folder
from speechssm.runtime.model import Model
from tests.attacks.attack import listing, one_sentence, refused, run, safetensors_file

SECOND = 16_000


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, model: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound prompt and a sound list beside what the tests put there; the model is loaded once."""
    monkeypatch.setattr(speechssm, "load", lambda *_args, **_options: model)
    soundfile.write(tmp_path / "p.wav", 0.1 * rng.standard_normal(20_000), SECOND)
    (tmp_path / "ok.jsonl").write_text(json.dumps({"prompt": "p.wav", "seconds": 0.2}) + "\n")
    return tmp_path


# ---- batch -------------------------------------------------------------------------------------------

LISTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "pipe": (lambda path: os.mkfifo(path), "is not a file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "empty": (lambda path: path.write_bytes(b""), "holds no job"),
    "blank lines": (lambda path: path.write_bytes(b"\n \n\n"), "holds no job"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\x00{"), "is not a JSON object"),
    "bomb": (lambda path: path.write_bytes(b"[" * 60_000), "is not a JSON object"),
    "long line": (lambda path: path.write_bytes(b'{"prompt":"' + b"a" * 70_000), "is longer than"),
    "a list": (lambda path: path.write_text("[1]\n"), "line 1"),
    "NaN": (lambda path: path.write_text('{"prompt":"p.wav","seconds":NaN}\n'), "seconds"),
    "infinite": (lambda path: path.write_text('{"prompt":"p.wav","seconds":1e999}\n'), "seconds"),
    "negative": (lambda path: path.write_text('{"prompt":"p.wav","seconds":-1}\n'), "seconds"),
    "unknown key": (lambda path: path.write_text('{"prompt":"p.wav","seconds":1,"rm":1}\n'), "rm"),
    "other types": (lambda path: path.write_text('{"prompt":7,"seconds":"x"}\n'), "prompt"),
    "many digits": (lambda path: path.write_text('{"seconds":' + "9" * 5_000 + "}\n"), "line 1"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_jobs(folder: Path, tiny_bundle: Path, kind: str) -> None:
    make, why = LISTS[kind]
    path = folder / "jobs.jsonl"
    make(path)
    words = ("batch", path, "-o", folder / "out", "--bundle", tiny_bundle, "--threads", 1)
    assert "jobs.jsonl" in refused(folder, *words, why=why)


OUTPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda out: out.write_text("x"), "cannot use the folder"),
    "a loop": (lambda out: out.symlink_to(out), "cannot use the folder"),
    "its lock is a link": (lambda out: (out.mkdir(), (out / ".lock").symlink_to("../p.wav")), "cannot use the folder"),
    "its lock is a folder": (lambda out: (out / ".lock").mkdir(parents=True), "cannot use the folder"),
    "its journal is a folder": (lambda out: (out / "results.jsonl").mkdir(parents=True), "is not a file"),
    "its journal is a pipe": (lambda out: (out.mkdir(), os.mkfifo(out / "results.jsonl")), "is not a file"),
    "its journal is endless": (
        lambda out: (out.mkdir(), (out / "results.jsonl").symlink_to("/dev/zero")), "is not a file",
    ),
    "its journal has one long line": (
        lambda out: (out.mkdir(), (out / "results.jsonl").write_bytes(b"9" * 70_000)), "is longer than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_folders_of_a_batch(folder: Path, tiny_bundle: Path, kind: str) -> None:
    make, why = OUTPUTS[kind]
    out = folder / "out"
    make(out)
    whole = (folder / "p.wav").read_bytes()
    done = run("batch", folder / "ok.jsonl", "-o", out, "--bundle", tiny_bundle, "--threads", 1)
    assert (done.code, done.out) == (1, "")
    one_sentence(done.err.removesuffix("\n"), why)
    assert (folder / "p.wav").read_bytes() == whole
    assert not list(folder.rglob("*.wav.*"))


def test_a_journal_of_nonsense_is_a_journal_of_nothing(folder: Path, tiny_bundle: Path) -> None:
    """Lines that are no record are passed over: the job is done, and its line stands behind them."""
    out = folder / "out"
    out.mkdir()
    lines = [
        b"\xff\xfe",
        b"[1]",
        b'{"number": 1e999}',
        b'{"number": "x"}',
        b"[" * 50_000,
        b'{"number": {}}',
        b"nul",
    ]
    (out / "results.jsonl").write_bytes(b"\n".join(lines))
    words = ("batch", folder / "ok.jsonl", "-o", out, "--bundle", tiny_bundle, "--threads", 1)
    done = run(*words)
    assert done.code == 0, done
    assert "1 done" in done.out
    assert json.loads((out / "results.jsonl").read_bytes().splitlines()[-1])["number"] == 0
    assert "0 done" in run(*words).out


# ---- export ------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no checkpoint"),
    "pipe": (lambda path: os.mkfifo(path), "there is no checkpoint"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "there is no checkpoint"),
    "loop": (lambda path: path.symlink_to(path), "there is no checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "is not a safetensors file"),
    "empty folder": (lambda path: path.mkdir(), "holds no .safetensors file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Evil(path.parent / "made"))), "is a pickle"),
    "giant header": (lambda path: path.write_bytes(b"\xff" * 7 + b"\x0f{}"), "its header claims"),
    "giant tensor": (
        lambda path: path.write_bytes(
            safetensors_file({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
        ),
        "truncated or padded",
    ),
    "index that leaves": (
        lambda path: (path.mkdir(), (path / "a.safetensors.index.json").write_text('{"weight_map":{"a":"../x"}}')),
        "plain file names",
    ),
    "index that is a bomb": (
        lambda path: (path.mkdir(), (path / "a.safetensors.index.json").write_text("[" * 99_999)), "is not JSON",
    ),
    "index that is endless": (
        lambda path: (path.mkdir(), (path / "a.safetensors.index.json").symlink_to("/dev/zero")), "not a file",
    ),
    "index that is a pipe": (
        lambda path: (path.mkdir(), os.mkfifo(path / "a.safetensors.index.json")), "not a file",
    ),
}  # fmt: skip


CONFIG: dict[str, object] = {
    "model_type": "recurrent_gemma", "num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "intermediate_size": 144, "vocab_size": 64, "attention_window_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "bend",
    [
        {"num_hidden_layers": 10**18}, {"hidden_size": 2**40}, {"vocab_size": -1}, {"block_types": [[]]},
        {"block_types": "recurrent"}, {"rope_theta": "x"}, {"rope_parameters": {"rope_theta": None}},
        {"logits_soft_cap": []}, {"hidden_activation": {}}, {"rms_norm_eps": "1e-6x"}, {"head_dim": 3.5},
        {"attention_window_size": True}, {"rope_theta": 1e999}, {"model_type": ["recurrent_gemma"]},
    ],
)  # fmt: skip
def test_configurations(bend: dict[str, object]) -> None:
    with pytest.raises(ExportError) as caught:
        huggingface.shape_from_config(CONFIG | bend)
    one_sentence(str(caught.value), "config.json")


def test_configuration_control() -> None:
    assert huggingface.shape_from_config(CONFIG).layers == 2


@pytest.mark.parametrize(
    ("bend", "why"),
    [
        ({"blocks.99999999.x": (1,)}, "names layer 99999999"),
        ({"blocks.0.recurrent_block.rg_lru.input_gate.w": (0, 8, 8)}, "above 0"),
        ({"embedder.input_embedding": (64,)}, "expected 2 dimensions"),
        ({"blocks.0.recurrent_block.linear_x.weight": (7, 32)}, "are of no model"),
    ],
)
def test_shapes_read_off_tensors(tmp_path: Path, bend: dict[str, tuple[int, ...]], why: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "embedder.input_embedding": (64, 32),
        "blocks.0.recurrent_block.rg_lru.input_gate.w": (4, 8, 8),
        "blocks.0.recurrent_block.linear_x.weight": (32, 32),
        "blocks.0.mlp_block.ffw_up.w": (2, 32, 48),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in (shapes | bend).items()}
    save_file(arrays, tmp_path / "ckpt.safetensors")
    refused(tmp_path, "export", tmp_path / "ckpt.safetensors", "-o", tmp_path / "out", why=why)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seed", "-1"), ("--seed", "9" * 30), ("--rollout", "0"), ("--rollout", "9" * 12), ("--window", "-1"),
        ("--window", "9" * 30), ("--speech-vocab", "0"), ("--speech-vocab", "9" * 12), ("--capacity", "-4"),
        ("--dtype", "float8"), ("--transformer", "gqa"), ("--rope", "full"),
    ],
)  # fmt: skip
def test_values_no_export_can_have(tmp_path: Path, option: str, value: str) -> None:
    message = refused(tmp_path, "export", "-o", tmp_path / "out", option, value, why="", code=2)
    assert option in message


@pytest.mark.parametrize("kind", ["file", "folder", "link to nowhere", "loop", "pipe"])
def test_places_of_a_bundle(tmp_path: Path, kind: str) -> None:
    """What is there stays as it is, with and without --overwrite."""
    out = tmp_path / "out"
    {
        "file": lambda: out.write_text("x"),
        "folder": lambda: out.mkdir(),
        "link to nowhere": lambda: out.symlink_to("nowhere"),
        "loop": lambda: out.symlink_to(out),
        "pipe": lambda: os.mkfifo(out),
    }[kind]()
    for extra in ((), ("--overwrite",)):
        with pytest.raises(ExportError, match="already exists"), new_folder(out, overwrite=bool(extra)):
            pytest.fail("work began")
    assert sorted(listing(tmp_path)) == ["out"]


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, kind: str) -> None:
    make, why = CHECKPOINTS[kind]
    path = tmp_path / "ckpt.safetensors"
    make(path)
    refused(tmp_path, "export", path, "-o", tmp_path / "out", why=why)
    assert not (tmp_path / "made").exists()


def test_settings_files_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssm.export.checkpoints.files.INDEX_BYTES", 100)
    (tmp_path / "x.json").write_text("{" + " " * 100 + "}")
    with pytest.raises(ExportError, match="larger than 100 bytes"):
        read_json(tmp_path / "x.json", "an index")
    (tmp_path / "x.json").write_text("{}")
    assert read_json(tmp_path / "x.json", "an index") == {}


def saved(array: np.ndarray, pickled: bool = False) -> Callable[[Path], object]:
    return lambda path: np.save(path, array, allow_pickle=pickled)


GIANT = (
    b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 64), }".ljust(117)
    + b"\n"
)
HELD_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "pipe": (lambda path: os.mkfifo(path), "there is no file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "there is no file"),
    "folder": (lambda path: path.mkdir(), "there is no file"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read"),
    "text": (lambda path: path.write_text("1 2 3"), "cannot read"),
    "giant": (lambda path: path.write_bytes(GIANT), "cannot read"),
    "pickle": (saved(np.array([{}], dtype=object), pickled=True), "cannot read"),
    "nothing": (saved(np.zeros((0, 9), np.int64)), "expected integer tokens"),
    "floats": (saved(np.full((2, 8), np.nan)), "expected integer tokens"),
    "negative": (saved(np.full((1, 8), -5)), "of another model"),
    "too large": (saved(np.full((1, 8), 64)), "of another model"),
}


@pytest.mark.parametrize("kind", HELD_OUT)
def test_held_out_tokens(tmp_path: Path, kind: str) -> None:
    make, why = HELD_OUT[kind]
    path = tmp_path / "t.npy"
    make(path)
    with pytest.raises(ExportError) as caught:
        tradeoff.read_tokens(path, 64)
    one_sentence(str(caught.value), why)


def test_held_out_tokens_are_of_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(np.zeros((2, 8), np.int64))(tmp_path / "t.npy")
    assert tradeoff.read_tokens(tmp_path / "t.npy", 64).shape == (2, 8)
    monkeypatch.setattr(tradeoff, "HELD_OUT_TOKENS", 15)
    with pytest.raises(ExportError, match="at most 15"):
        tradeoff.read_tokens(tmp_path / "t.npy", 64)


# ---- plan --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--minutes", "nan"), ("--minutes", "inf"), ("--minutes", "-1"), ("--minutes", "0"), ("--minutes", "1e300"),
        ("--memory", "9" * 400 + "GiB"), ("--memory", "0GiB"), ("--bandwidth", "nan"), ("--bandwidth", "inf"),
        ("--bandwidth", "0"), ("--flops", "nan"), ("--flops", "1e300"), ("--preset", "../x"), ("--ring", "int4"),
    ],
)  # fmt: skip
def test_plans(tmp_path: Path, option: str, value: str) -> None:
    given = {"--bandwidth": "10", "--flops": "1", option: value}
    refused(tmp_path, "plan", *(word for pair in given.items() for word in pair), why="")
