"""Models that judge speech and words, by role. None ships here: they come from the user's paths or from packages
that are installed, and one that is absent says so.

========  ==========================  ==================================================================
role      gives                       from
========  ==========================  ==================================================================
speaker   an embedding of a voice     ``pretrained.pt`` of the package Resemblyzer, or an ONNX model (1,n) -> (1,m)
dnsmos    DNSMOS, overall             the package speechmos
distill   DistillMOS                  the package distillmos
asr       a transcript                a CTranslate2 Whisper folder, by the package faster-whisper
sentence  an embedding of a text      a sentence-transformers folder, by the package transformers
text      nats of a text's tokens     a causal language model's folder, by the package transformers
========  ==========================  ==================================================================

Nothing is fetched: a package that would download its weights is not asked to.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ

Audio = NDArray[np.float32]

ROLES = ("speaker", "dnsmos", "distill", "asr", "sentence", "text")


class Absent(Exception):
    """Why a judge is not here, and how to get it."""


@dataclass
class Judges:
    """Judges by role, opened when first asked for; ``absent`` holds the reasons of those that are not here."""

    paths: Mapping[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    _open: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def get(self, role: str) -> Callable[..., Any] | None:
        """The judge, or None with the reason in ``absent``."""
        if role in self.absent:
            return None
        if role not in self._open:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder that lacks a file must not be completed
            try:
                self._open[role] = _MAKERS[role](self.paths.get(role))
            except Absent as why:
                self.absent[role] = str(why)
                return None
            except Exception as error:  # somebody else's code and files: whatever they raise is the reason
                first = str(error).strip().splitlines()[:1]
                self.absent[role] = f"cannot be opened: {type(error).__name__}: {' '.join(first)}"
                return None
        return self._open[role]

    def reason(self, role: str) -> str:
        """Why the judge is not here."""
        return self.absent.get(role, "not asked for")


def _need(package: str, how: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise Absent(f"the package {package} is not installed: {how}")
    return importlib.import_module(package)


def _speaker(path: str | None) -> Callable[[Audio], NDArray[np.float32]]:
    if path is not None and path.endswith(".onnx"):
        ort = importlib.import_module("onnxruntime")
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()

        def embed(audio: Audio) -> NDArray[np.float32]:
            found = np.asarray(session.run(None, {given.name: audio[None]})[0], np.float32).ravel()
            unit: NDArray[np.float32] = found / np.linalg.norm(found)
            return unit

        return embed
    if path is None:
        spec = importlib.util.find_spec("resemblyzer")
        if spec is None or not spec.submodule_search_locations:
            raise Absent(
                "no speaker model: pip install --no-deps Resemblyzer==0.1.4, or --model speaker=FILE.onnx"
            )
        path = str(Path(next(iter(spec.submodule_search_locations))) / "pretrained.pt")
    _need("torch", "pip install torch")
    from .voiceprint import load

    return load(Path(path)).of


def _dnsmos(path: str | None) -> Callable[[Audio], float]:
    dnsmos: Any = getattr(_need("speechmos", "pip install speechmos"), "dnsmos", None)
    if dnsmos is None:
        dnsmos = importlib.import_module("speechmos.dnsmos")
    return lambda audio: float(dnsmos.run(np.clip(audio, -1, 1), SAMPLE_RATE_HZ)["ovrl_mos"])


def _distill(path: str | None) -> Callable[[Audio], float]:
    module: Any = _need("distillmos", "pip install distillmos")
    torch: Any = _need("torch", "pip install torch")
    model = module.ConvTransformerSQAModel().eval()

    def judge(audio: Audio) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(audio)[None])[0])

    return judge


def _asr(path: str | None) -> Callable[[Audio], str]:
    whisper: Any = _need("faster_whisper", "pip install faster-whisper")
    if path is None:
        raise Absent("no Whisper model: --model asr=FOLDER of a CTranslate2 Whisper model")
    model = whisper.WhisperModel(path, device="cpu", compute_type="int8", local_files_only=True)

    def hear(audio: Audio) -> str:
        parts, _ = model.transcribe(audio, language="en", beam_size=5, condition_on_previous_text=False)
        return " ".join(part.text.strip() for part in parts)

    return hear


def _sentence(path: str | None) -> Callable[[str], NDArray[np.float32]]:
    transformers: Any = _need("transformers", "pip install transformers")
    torch: Any = _need("torch", "pip install torch")
    if path is None:
        raise Absent("no sentence model: --model sentence=FOLDER, such as all-MiniLM-L6-v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()

    def embed(text: str) -> NDArray[np.float32]:
        with torch.no_grad():
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            hidden = model(**given).last_hidden_state[0].mean(0)
        unit: NDArray[np.float32] = (hidden / hidden.norm()).numpy()
        return unit

    return embed


def _text(path: str | None) -> Callable[[str], tuple[float, int]]:
    transformers: Any = _need("transformers", "pip install transformers")
    torch: Any = _need("torch", "pip install torch")
    if path is None:
        raise Absent("no text model: --model text=FOLDER of a causal language model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    longest = int(min(getattr(model.config, "max_position_embeddings", 1024), 1024))

    def nats(text: str) -> tuple[float, int]:
        """Sum of nats, and of how many tokens; in stretches of what the model can read."""
        ids = tokenizer(text, return_tensors="pt").input_ids
        total, count = 0.0, 0
        with torch.no_grad():
            for at in range(0, ids.shape[1] - 1, longest):
                part = ids[:, at : at + longest]
                if part.shape[1] < 2:
                    break
                total += float(model(part, labels=part).loss) * (part.shape[1] - 1)
                count += part.shape[1] - 1
        return total, count

    return nats


_MAKERS: dict[str, Callable[[str | None], Callable[..., Any]]] = {
    "speaker": _speaker, "dnsmos": _dnsmos, "distill": _distill, "asr": _asr, "sentence": _sentence, "text": _text,
}  # fmt: skip
