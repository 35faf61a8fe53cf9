"""Joining windows: on codec frames (what sessions use), or on waveforms with a fade (the alternative).

:class:`CodeStitcher` cuts each acoustic call's codes to the tokens the call sends and lays them end to
end. One codec state then decodes the whole row of frames, so the waveform has no seam to hide. The
calls are those of :mod:`speechssm.runtime.windows`.

:class:`WaveformJoin` is for acoustic stages that give audio instead of codes: it blends from one window
to the next behind each join, with weights that add up to exactly one at every sample.

Both hold at most one window, refuse calls that leave a gap or come twice, and change nothing when they
refuse.
"""

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.errors import SessionFailed, SettingsError, SnapshotError

from .windows import WindowCall, WindowSettings, keep_from

_FADE_BITS = 24


class CodeStitcher:
    """Codes of acoustic calls in, one unbroken row of codec frames out.

    Args:
        settings: the session's windows.
        levels: codec levels q.
    """

    def __init__(self, settings: WindowSettings, levels: int) -> None:
        self._settings = settings
        self._emitted = 0
        self._start = 0  # token of the first kept frame
        self._codes: NDArray[np.int64] = np.empty((levels, 0), np.int64)

    @property
    def emitted(self) -> int:
        """Tokens sent so far: the ``emitted`` of the next call."""
        return self._emitted

    @property
    def nbytes(self) -> int:
        """Bytes of codes kept for later calls: at most one window of them."""
        return self._codes.nbytes

    def known(self, call: WindowCall) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What an acoustic call may take as given.

        Returns:
            codes int64 (q, f) and known bool (q, f), f = 2 * ``call.bucket``: the codes already sent of
            tokens ``call.start .. call.known_to``; unknown codes are 0.

        Raises:
            SessionFailed: the call asks for codes that are no longer, or not yet, here.
        """
        self._check_next(call)
        levels = self._codes.shape[0]
        codes = np.zeros((levels, call.bucket * TOKEN_FRAMES), np.int64)
        mask = np.zeros(codes.shape, np.bool_)
        if call.known_to > call.start:
            if call.start < self._start or call.known_to != self._emitted:
                raise SessionFailed(
                    f"a call needs the codes of tokens {call.start} to {call.known_to}, but those of "
                    f"{self._start} to {self._emitted} are kept; the window plan and the stitcher disagree."
                )
            given = self._codes[:, (call.start - self._start) * TOKEN_FRAMES :]
            codes[:, : given.shape[1]] = given
            mask[:, : given.shape[1]] = True
        return codes, mask

    def push(self, call: WindowCall, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Take a call's codes, integers (q, f) with f = 2 * ``call.bucket``; return those to decode now.

        Returns:
            int64 (q, f'), the frames of tokens ``call.emit_from .. call.emit_to``. Known frames are not
            read: what was sent stays as it was sent.

        Raises:
            SessionFailed: the call does not follow the one before it, or the codes have another shape.
        """
        self._check_next(call)
        expected = (self._codes.shape[0], call.bucket * TOKEN_FRAMES)
        if codes.shape != expected or not np.issubdtype(codes.dtype, np.integer):
            raise SessionFailed(
                f"the acoustic stage returned codes {codes.dtype}{list(codes.shape)} instead of integers "
                f"{list(expected)}; the bundle's acoustic graph does not fit its manifest."
            )
        first, stop = ((token - call.start) * TOKEN_FRAMES for token in (call.emit_from, call.emit_to))
        sent = codes[:, first:stop].astype(np.int64)  # a copy: the engine's buffer is reused
        low = keep_from(self._settings, call.emit_to, call.end + (not call.final))
        kept = np.concatenate([self._codes, sent], axis=1)[:, max(0, low - self._start) * TOKEN_FRAMES :]
        self._codes = np.ascontiguousarray(kept)
        self._start = max(low, self._start)
        self._emitted = call.emit_to
        return sent

    def snapshot(self) -> dict[str, NDArray[np.int64]]:
        """All it takes to go on elsewhere, int64.

        ``codes`` (q, f) are the kept codes, ``place`` (2) their first token and ``emitted``.
        """
        return {"codes": self._codes.copy(), "place": np.array([self._start, self._emitted], np.int64)}

    def restore(self, saved: dict[str, NDArray[np.int64]]) -> None:
        """Go on from a :meth:`snapshot` of a stitcher with the same settings and levels.

        Raises:
            SnapshotError: it holds something else; the stitcher stays as it was.
        """
        codes, place = saved.get("codes"), saved.get("place")
        if codes is None or place is None or place.shape != (2,) or place.dtype != np.int64:
            raise SnapshotError(
                "the snapshot's stitched codes are incomplete; it was not written by this runtime."
            )
        start, emitted = (int(token) for token in place)
        frames = (emitted - start) * TOKEN_FRAMES
        if not 0 <= start <= emitted or emitted - start > self._settings.window:
            raise SnapshotError(
                f"the snapshot keeps codes of tokens {start} to {emitted}, which no window spans."
            )
        if codes.dtype != np.int64 or codes.shape != (self._codes.shape[0], frames):
            raise SnapshotError(
                f"the snapshot's codes are {codes.dtype}{list(codes.shape)}, "
                f"but this model needs int64{[self._codes.shape[0], frames]}; it belongs to another bundle."
            )
        self._codes, self._start, self._emitted = codes.copy(), start, emitted

    def _check_next(self, call: WindowCall) -> None:
        _check_follows(call, self._emitted)


class WaveformJoin:
    """Audio of acoustic calls in, one unbroken waveform out, faded from window to window.

    Behind each join the earlier window's audio gives way to the later one's along a straight line.
    The two weights of a sample are w and 1 - w with w a multiple of 2^-24, so in float32 their sum is
    exactly one: speech that both windows agree on keeps its level (A1). Output follows the same token
    ranges as :class:`CodeStitcher`.

    Args:
        fade: samples of a fade; it is shortened where the earlier window has fewer to give (it ends at
            its own last real token, never in padding) or the later call sends fewer.
        token_samples: samples n of one token.
    """

    def __init__(self, fade: int = TOKEN_SAMPLES, token_samples: int = TOKEN_SAMPLES) -> None:
        if fade < 0 or token_samples < 1:
            raise SettingsError(f"fade {fade} and token_samples {token_samples}: give at least 0 and 1.")
        self._fade = fade
        self._token_samples = token_samples
        self._emitted = 0
        self._rest: NDArray[np.float32] = np.empty(0, np.float32)

    @property
    def emitted(self) -> int:
        """Tokens sent so far."""
        return self._emitted

    def push(self, call: WindowCall, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take a call's audio, float32 (n) with n = ``token_samples * call.bucket``; return what to play now.

        Returns:
            float32 (n'), the samples of tokens ``call.emit_from .. call.emit_to``.

        Raises:
            SessionFailed: the call does not follow the one before it, or the audio has another shape.
        """
        _check_follows(call, self._emitted)
        if audio.shape != (call.bucket * self._token_samples,) or audio.dtype != np.float32:
            raise SessionFailed(
                f"the acoustic stage returned {audio.dtype}{list(audio.shape)} instead of "
                f"float32[{call.bucket * self._token_samples}]; the bundle does not fit its manifest."
            )
        first, stop, end = (
            (token - call.start) * self._token_samples for token in (call.emit_from, call.emit_to, call.end)
        )
        sent = audio[first:stop].copy()
        fade = min(len(self._rest), len(sent))
        weight = fade_weights(fade)
        sent[:fade] = self._rest[:fade] * (np.float32(1) - weight) + sent[:fade] * weight
        self._rest = audio[stop : min(end, stop + self._fade)].copy()
        self._emitted = call.emit_to
        return sent


def fade_weights(fade: int) -> NDArray[np.float32]:
    """Weights of the later window over a fade: float32 (n), a line from just above 0 to just below 1.

    Multiples of 2^-24, so ``1 - w`` and ``w + (1 - w)`` are exact in float32.
    """
    steps = ((2 * np.arange(fade, dtype=np.int64) + 1) << _FADE_BITS) // (2 * max(fade, 1))
    return steps.astype(np.float32) * np.float32(2.0**-_FADE_BITS)


def _check_follows(call: WindowCall, emitted: int) -> None:
    if call.emit_from != emitted:
        what = "a gap" if call.emit_from > emitted else "an overlap"
        raise SessionFailed(
            f"a window starts sending at token {call.emit_from} but {emitted} tokens are sent: {what}. "
            "Give calls in the order of the plan, each once."
        )
