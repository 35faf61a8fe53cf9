"""Control: bent in no place, the same bundle and snapshot are taken, so every refusal means something."""

import numpy as np

from .attack import HostileBundle, HostileSnapshot, run


def test_the_unbent_bundle_is_taken(bundle: HostileBundle) -> None:
    with bundle.model():
        pass
    with bundle.weights():
        pass
    out = bundle.folder.parent / "out" / "speech.wav"
    words = ("generate", bundle.prompt, "-o", out, "--seconds", 1, "--bundle", bundle.folder, "--threads", 1)
    done = run(*words)
    assert done.code == 0, done
    assert out.stat().st_size == 44 + 32_000


def test_the_unbent_snapshot_is_taken(snapshot: HostileSnapshot) -> None:
    audio = np.concatenate(list(snapshot.model.restore(snapshot.write()).resume()))
    assert len(audio) + snapshot.session["samples"] == 7 * 16_000
