"""Stage ``voice``: the four trained parts as the demo bundle, with what they were trained on and their figures.

The bundle holds every committed weight; ``recipes/trained`` keeps only what is said of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from speechssm.bundle.manifest import Manifest
from speechssm.export.checkpoints.own import write_checkpoint
from speechssm.export.exporter import export_checkpoint

from . import places, weights

NAME = "demo"
ABOUT = (
    "a small voice that shows the runtime at work: 11 M parameters, trained in hours of two processor cores"
)
LICENCES = (
    "weights: Apache-2.0, trained by recipes/ of this project",
    "kathleen: 1.4 h of one reader, CC0, rhasspy/dataset-voice-kathleen",
    "LibriSpeech train-clean-100, 251 speakers in excerpts (resemble-ai/Resemblyzer), CC BY 4.0, "
    "V. Panayotov, G. Chen, D. Povey, S. Khudanpur, OpenSLR 12",
    "story readings: synthesised with Kokoro-82M (Apache-2.0) from public-domain text",
    "stories: Standard Ebooks editions, public domain, editions CC0, spoken by flite's voices (CMU, BSD-like)",
    "teachers, not shipped: Whisper-base (MIT), Resemblyzer (Apache-2.0), PocketSphinx en-us (BSD)",
)
MOST_BYTES = 34_000_000
MOST_FILE_BYTES = 15_000_000


def build(target: Path | None = None, *, rollout: int | None = None, threads: int = 0) -> Manifest:
    """Write the bundle of the best weights. Raises FileNotFoundError naming a part that is not trained yet."""
    target = target or weights.VOICE
    found = {stage: weights.best(stage) for stage in weights.STAGES}
    with tempfile.TemporaryDirectory() as temporary:
        paths = {}
        for stage, (part, _) in weights.STAGES.items():
            paths[part] = Path(temporary) / f"{part}.safetensors"
            shape = weights.shape(stage, found[stage].about)
            write_checkpoint(paths[part], part, shape, found[stage].parameters, about=ABOUT)
        return export_checkpoint(
            paths.pop("lm"),
            target,
            parts=paths,
            name=NAME,
            about=ABOUT,
            licences=LICENCES,
            notes=notes({stage: f.about for stage, f in found.items()}),
            storage="float16",
            overwrite=True,
            rollout=rollout,
            threads=threads,
        )


def ship() -> None:
    """Build the bundle in the package, note what its weights are, and drop the separate copies."""
    found = {stage: weights.best(stage).about for stage in weights.STAGES}
    manifest = build()
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    if sum(sizes.values()) > MOST_BYTES or max(sizes.values()) > MOST_FILE_BYTES:
        raise ValueError(f"the bundle is too large to be committed: {sizes}")
    for stage, about in found.items():
        places.write_json(weights.TRAINED / f"{stage}.json", about)
        (weights.TRAINED / f"{stage}.safetensors").unlink(missing_ok=True)
    print(f"{weights.VOICE}: {sum(sizes.values()) / 1e6:.1f} MB")


def notes(about: dict[str, dict[str, Any]]) -> str:
    """The card's sections: training, figures on held-out speech, limits."""
    lines = [
        "## What it was trained on",
        "",
        "4.4 hours of recordings (one CC0 reader, 251 LibriSpeech speakers, story readings by Kokoro voices) for "
        "tokenizer, codec and acoustic stage; these and 65 hours of stories spoken by flite for the language model. "
        "Held out everywhere: LibriSpeech speakers whose id is divisible by 10, every tenth sentence of the reader, "
        "all of *Alice*, three Kokoro voices.",
        "",
        "## Figures on held-out speech",
        "",
        "| part | steps | figure | value |",
        "| --- | --- | --- | --- |",
    ]
    for stage, said in about.items():
        for name, value in figures(stage, said):
            lines.append(f"| {stage} | {said['step']} | {name} | {value} |")
    lines += [
        "",
        "## What it cannot do",
        "",
        "It was trained for hours on two processor cores: it babbles English-like speech in the prompt's voice "
        "rather than telling a story. It knows American read speech without music or noise, and no other language.",
    ]
    return "\n".join(lines)


def figures(stage: str, said: dict[str, Any]) -> list[tuple[str, str]]:
    """What the card prints of a part."""
    found, judged = said.get("figures", {}), said.get("evaluation", {})
    if stage == "tokenizer":
        return [
            ("phones explained (PNMI)", f"{found['pnmi']:.2f}"),
            ("edit distance between voices", f"{found['spread']:.2f}"),
        ]
    if stage == "codec":
        mean = judged.get("mean", {"stoi": found["stoi"], "pesq_wb": found["pesq_wb"]})
        return [("STOI", f"{mean['stoi']:.3f}"), ("PESQ-wb", f"{mean['pesq_wb']:.2f}")]
    if stage == "language":
        return [
            (f"nat per token below a 5-gram, {name}", f"{found[name]['gain_nat']:+.3f}")
            for name in ("alice", "real")
            if name in found
        ]
    names = {"word_errors": "word errors", "similarity": "speaker similarity", "dnsmos": "DNSMOS"}
    known = [(label, f"{judged[name]:.2f}") for name, label in names.items() if judged.get(name) is not None]
    return known or [("nats a code, level 1", f"{found['nats 1']:.2f}")]
