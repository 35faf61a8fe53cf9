"""Stage ``codec pack``: a smaller data folder that can travel to another machine.

The corpora stay in their shares and their readers stay spread; held-out recordings stay behind.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from .. import data, splits
from .crops import SHARES


def run(root: Path, out: Path, mebibytes: float) -> int:
    """Copy training recordings of ``root`` to ``out`` until they fill ``mebibytes``; return their bytes."""
    training = [r for r in splits.training(data.recordings(root)) if r.corpus in SHARES]
    splits.refuse_held_out(training)
    taken: list[data.Recording] = []
    total = 0
    for corpus, share in SHARES.items():
        room = share * mebibytes * 2**20
        # Every k-th recording, so that what fits is spread over speakers and sentences.
        found = [r for r in training if r.corpus == corpus]
        sizes = sum(r.path.stat().st_size for r in found)
        apart = max(1.0, sizes / room)
        for i in range(int(len(found) / apart)):
            recording = found[int(i * apart)]
            size = recording.path.stat().st_size
            if size <= room:
                room, total = room - size, total + size
                taken.append(recording)
    for recording in taken:
        target = out / recording.path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recording.path, target)
    (out / "kathleen").mkdir(parents=True, exist_ok=True)
    with (out / "kathleen" / "transcripts.tsv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerows((r.stem, r.text) for r in taken if r.corpus == "kathleen")
    rows = [
        {"file": r.path.name, "voice": r.speaker, "text": r.text}
        for r in taken
        if r.corpus == "stories_speech"
    ]
    (out / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return total
