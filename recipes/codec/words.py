"""Stage ``codec words``: word errors of Whisper-base on original and decoded speech.

Transcribing needs ``faster-whisper``, which lives in an environment of its own:

    JUDGE/bin/python recipes/codec/words.py FOLDER/heldout WHISPER    # writes transcripts.json there
    python -m recipes.codec words                                     # prints the word errors

so this file imports nothing of the project while it transcribes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def transcribe(folder: Path, whisper: Path) -> None:
    """Transcripts of ``folder``/{real,made}/*.flac as ``transcripts.json``: {"real": {stem: text}, ...}."""
    import soundfile
    from faster_whisper import WhisperModel

    model = WhisperModel(str(whisper), compute_type="int8", cpu_threads=1, local_files_only=True)
    found: dict[str, dict[str, str]] = {}
    for kind in ("real", "made"):
        found[kind] = {}
        for path in sorted((folder / kind).glob("*.flac")):
            audio, _ = soundfile.read(path, dtype="float32")
            parts, _ = model.transcribe(audio, language="en", beam_size=5, condition_on_previous_text=False)
            found[kind][path.stem] = " ".join(p.text.strip() for p in parts)
    (folder / "transcripts.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z']+", text.lower().replace("’", "'"))


def run(folder: Path) -> dict[str, float]:
    """Word error rates in percent: of the originals, and of the decoded, against the read text."""
    from ..units import edit_distance

    transcripts = json.loads((folder / "transcripts.json").read_text(encoding="utf-8"))
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    rates = {}
    for kind, found in transcripts.items():
        vocabulary: dict[str, int] = {}
        wrong = total = 0
        for stem, text in found.items():
            read, heard = (
                [vocabulary.setdefault(w, len(vocabulary)) for w in words(t)] for t in (texts[stem], text)
            )
            wrong, total = wrong + edit_distance(read, heard), total + len(read)
        rates[kind] = 100 * wrong / total
    rates["added"] = rates["made"] - rates["real"]
    return rates


if __name__ == "__main__":
    transcribe(Path(sys.argv[1]), Path(sys.argv[2]))
