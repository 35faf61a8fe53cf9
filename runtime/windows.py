"""Which tokens each window reads, and which it keeps: all of it, as integer arithmetic.

Speech is tokenized and synthesized in windows of 30 s that overlap by 4 s; each window works alone and
hands over to the next at the middle of their overlap (arXiv 2412.18603, section 3 and Figure 4). In
tokens: window 750, overlap 100, hop 650, and 50 dropped on each inner side::

    token      0            650  700  750          1300 1350 1400       L
    window 0   |=================:::::|
    window 1                |::::=====================:::::|
    window 2                                       |:::::===============|~~~~~~~~|
    kept       |------- 0 -------|--------- 1 --------|-------- 2 ------|

    = kept     : dropped, the neighbour keeps it     ~ padding: the stream's own tokens 0, 1, 2, ...

The last window is rarely full. It is padded from the *start of the same stream*, never with silence, so
its last tokens sound mid-stream and the model is not taught to stop; what the padding makes is dropped.
A stream of L > 750 tokens takes ceil((L - 750) / 650) + 1 windows, a shorter one takes one.

**The ramp** (opt-in) divides window 0, so that speech starts after 2 s of tokens and not after 30 s::

    call 0   |==::|                                      reads 50,  keeps 25
    call 1   |##==::::|                                  reads 100, keeps 50
    call 2   |####========::::|                          reads 200, keeps 150
    call 3   |############================::::|          reads 400, keeps 350
    call 4   |############################==========:::| reads 750, keeps 700

    # known: codes already sent, given to the model as they are

**Same calls live and offline.** A call is made only once it is certain how far the stream goes: with a
known ``total`` by comparing, without one when a token past the call's end exists. So the calls, their
shapes and their order are a function of the settings and the stream's length alone, however the tokens
arrive, and streamed audio equals offline audio.

**Going on after an end.** A stream that reached its ``total`` has sent its last window to the very end.
Asked for more, it takes the smallest window that holds the new end, or the one whose kept part holds
the next token; everything of that window already sent enters as known codes. An end that falls exactly
on a join leaves nothing to be known: the next window starts as if the stream had never stopped.

Everything here is in tokens (25 Hz, axis t) unless a name says samples. No arrays, no input or output.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from speechssm.axes import TOKEN_RATE_HZ, TOKEN_SAMPLES
from speechssm.errors import SettingsError

MAX_WINDOW = 1 << 16
"""Longest window a setting may ask for, in tokens (43 minutes)."""
SPEAKER_TOKENS = 3 * TOKEN_RATE_HZ
"""Length of the speaker prompt before every acoustic window, in tokens (3 s, outside the window)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stop of a window: read up to ``end``, withhold the last ``withheld`` tokens of it."""

    end: int
    withheld: int


RAMP = (Step(50, 25), Step(100, 50), Step(200, 50), Step(400, 50))
"""Stops of window 0 when the ramp is on, in tokens; the full window follows them."""


@dataclass(frozen=True)
class WindowSettings:
    """Window geometry of one session, part of its settings and snapshots.

    Args:
        window: tokens one window reads.
        overlap: tokens two neighbouring windows both read, below ``window``.
        ramp: whether window 0 is synthesized in growing steps for early sound.

    Raises:
        SettingsError: a length is not an integer or outside its range.
    """

    window: int = 750
    overlap: int = 100
    ramp: bool = False

    def __post_init__(self) -> None:
        for name in ("window", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise SettingsError(f"{name} is {value!r}, but it counts tokens: give an integer.")
        if not 1 <= self.window <= MAX_WINDOW:
            raise SettingsError(f"window is {self.window} tokens; give 1 to {MAX_WINDOW} (750 is 30 s).")
        if not 0 <= self.overlap < self.window:
            raise SettingsError(
                f"overlap is {self.overlap} tokens with a window of {self.window}; "
                "each window must bring something new, so give 0 to window - 1 (100 is 4 s)."
            )
        if not isinstance(self.ramp, bool):
            raise SettingsError(f"ramp is {self.ramp!r}; give True or False.")

    @property
    def hop(self) -> int:
        """Tokens from one window's start to the next one's."""
        return self.window - self.overlap

    @property
    def tail(self) -> int:
        """Tokens a window leaves to its successor: the second half of the overlap, rounded down."""
        return self.overlap // 2

    @property
    def head(self) -> int:
        """Tokens a window leaves to its predecessor: the first half of the overlap."""
        return self.overlap - self.tail

    @cached_property
    def first_steps(self) -> tuple[Step, ...]:
        """Steps of window 0: those of the ramp that end before the window and its join, then all of it."""
        join = self.window - self.tail
        early = (s for s in RAMP if self.ramp and s.end < self.window and s.end - s.withheld < join)
        return (*early, *self.later_steps)

    @cached_property
    def later_steps(self) -> tuple[Step, ...]:
        """Steps of every later window: one, the whole of it."""
        return (Step(self.window, self.tail),)

    @cached_property
    def buckets(self) -> tuple[int, ...]:
        """Every length an acoustic call can have, ascending."""
        return tuple(step.end for step in self.first_steps)

    @property
    def pad_tokens(self) -> int:
        """Tokens of the stream's start that padding a later window may need: 649 for 750 and 100."""
        return self.hop - 1


DEFAULT = WindowSettings()
"""The paper's windows: 30 s, 4 s of overlap, no ramp."""


def token_count(samples: int) -> int:
    """Tokens of a recording of n samples: t = ceil(n / 640)."""
    return -(-samples // TOKEN_SAMPLES)


def window_count(tokens: int, settings: WindowSettings = DEFAULT) -> int:
    """Windows of a stream of ``tokens`` > 0: ceil((tokens - window) / hop) + 1, and one if it is short."""
    _at_least("tokens", tokens, 1)
    return max(0, -(-(tokens - settings.window) // settings.hop)) + 1


def window_start(index: int, settings: WindowSettings = DEFAULT) -> int:
    """First token that window ``index`` reads."""
    return index * settings.hop


def window_keep(index: int, tokens: int, settings: WindowSettings = DEFAULT) -> range:
    """Stream tokens that window ``index`` of a stream of ``tokens`` keeps (midpoint rule).

    The first window keeps its head and the last its tail, so the windows' ranges are 0..tokens, cut at
    the joins.
    """
    last = window_count(tokens, settings) - 1
    if not 0 <= index <= last:
        raise SettingsError(f"window {index} of a stream of {tokens} tokens: it has windows 0 to {last}.")
    start = window_start(index, settings)
    stop = tokens if index == last else start + settings.window - settings.tail
    return range(_keep_start(index, settings), stop)


# ---- padding -----------------------------------------------------------------------------------------


def pad_ranges(stream: int, pad: int) -> tuple[range, ...]:
    """Stretches of a stream that make ``pad`` elements of padding: its start, again and again if short.

    Works for tokens and samples alike; each range is a slice of the stream.
    """
    _at_least("stream", stream, 1)
    _at_least("pad", pad, 0)
    whole, rest = divmod(pad, stream)
    return (range(stream),) * whole + ((range(rest),) if rest else ())


def pad_indices(stream: int, pad: int) -> tuple[int, ...]:
    """Indices into a stream of the ``pad`` elements that follow its end: 0, 1, 2, ... around."""
    return tuple(index for stretch in pad_ranges(stream, pad) for index in stretch)


def speaker_indices(tokens: int, wanted: int = SPEAKER_TOKENS) -> tuple[int, ...]:
    """Indices of the last ``wanted`` tokens of a recording, which is repeated if it is shorter.

    The last index is always the recording's last token: it borders on the speech to be made.
    """
    _at_least("tokens", tokens, 1)
    return tuple((tokens - wanted + i) % tokens for i in range(wanted))


# ---- tokenizing a prompt -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptWindow:
    """One call of the tokenizer: samples in, and which of its tokens stay.

    Attributes:
        start, end: samples of the recording it reads.
        pad: samples appended from the recording's own start (:func:`pad_ranges`), so that every call
            has the length of a full window, 480 000 samples for 750 tokens.
        keep_from, keep_to: tokens it keeps, counted from its own first token.
    """

    start: int
    end: int
    pad: int
    keep_from: int
    keep_to: int


def prompt_windows(samples: int, settings: WindowSettings = DEFAULT) -> tuple[PromptWindow, ...]:
    """Tokenizer calls for a recording of n samples, by the same windows and joins as synthesis.

    The kept tokens, one window after another, are the recording's ceil(n / 640) tokens.
    """
    _at_least("samples", samples, 1)
    tokens = token_count(samples)
    length = settings.window * TOKEN_SAMPLES
    windows = []
    for index in range(window_count(tokens, settings)):
        first = window_start(index, settings)
        start = first * TOKEN_SAMPLES
        end = min(samples, start + length)
        keep = window_keep(index, tokens, settings)
        windows.append(
            PromptWindow(start, end, length - (end - start), keep.start - first, keep.stop - first)
        )
    return tuple(windows)


def merge_tokens(windows: Sequence[PromptWindow], rows: Sequence[Sequence[int]]) -> list[int]:
    """Join the token rows of the tokenizer calls (each t = window) into the recording's tokens.

    Raises:
        SettingsError: there is not one row per window, or a row is shorter than what it should keep.
    """
    if len(windows) != len(rows):
        raise SettingsError(f"{len(rows)} rows of tokens for {len(windows)} windows; give one for each.")
    merged: list[int] = []
    for window, row in zip(windows, rows, strict=True):
        if len(row) < window.keep_to:
            raise SettingsError(
                f"a window returned {len(row)} tokens but should keep up to {window.keep_to}."
            )
        merged.extend(int(token) for token in row[window.keep_from : window.keep_to])
    return merged


# ---- the synthesis plan ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WindowCall:
    """One call of the acoustic stage. Positions are stream tokens.

    Attributes:
        start, end: tokens it reads.
        bucket: tokens of the call's shape; the ``pad`` missing ones come from the stream's own start,
            at ``pad_indices(call.end, call.pad)``.
        emit_from, emit_to: tokens whose codes are new and go out.
        known_to: codes of ``start..known_to`` are already out and enter as known; ``start`` if none.
        final: the stream ends at ``end``, and so does what is sent.
    """

    start: int
    end: int
    bucket: int
    emit_from: int
    emit_to: int
    known_to: int
    final: bool

    @property
    def pad(self) -> int:
        """Tokens of padding behind ``end``."""
        return self.bucket - (self.end - self.start)


def next_call(
    settings: WindowSettings, emitted: int, available: int, total: int | None = None
) -> WindowCall | None:
    """The call to make now, or None: wait for more tokens, or nothing is left.

    Args:
        settings: the session's windows.
        emitted: tokens already sent, the previous call's ``emit_to`` (0 at the start).
        available: tokens the stream has so far.
        total: tokens it will have; None while nobody knows. It may be set later, or raised after the
            end to go on, but never below ``available``.

    Raises:
        SettingsError: not 0 <= emitted <= available <= total.
    """
    planned = _plan_call(settings, emitted, total)
    if available < emitted:
        raise SettingsError(f"{emitted} tokens are sent but only {available} exist.")
    if total is not None and available > total:
        raise SettingsError(f"the stream already has {available} tokens: it cannot end at {total}.")
    if planned is None or available < planned.end + (total is None):
        return None
    return planned


def tokens_needed(settings: WindowSettings, emitted: int, total: int | None = None) -> int:
    """Tokens the stream must have before :func:`next_call` answers again; ``emitted`` if it never will."""
    planned = _plan_call(settings, emitted, total)
    return emitted if planned is None else planned.end + (total is None)


def plan(settings: WindowSettings, total: int) -> Iterator[WindowCall]:
    """Every call of a stream of ``total`` tokens, in order."""
    _at_least("total", total, 0)
    emitted = 0
    while (call := _plan_call(settings, emitted, total)) is not None:
        yield call
        emitted = call.emit_to


def keep_from(settings: WindowSettings, emitted: int, available: int) -> int:
    """First token that a later call may still read, going on after an end included.

    A session keeps the tokens from here on, and the first ``settings.pad_tokens`` of the stream: with
    both, memory is constant. Codes already sent are needed from here to ``emitted`` at most. When
    :func:`next_call` has nothing to do, at most one window of tokens lies past this point.
    """
    shortest = max(available, emitted + 1)
    index = min(_window_of(emitted, settings), window_count(shortest, settings) - 1)
    return window_start(index, settings)


def _plan_call(settings: WindowSettings, emitted: int, total: int | None) -> WindowCall | None:
    """The call that follows ``emitted`` in a stream of ``total`` tokens, or in one that goes on past it."""
    _at_least("emitted", emitted, 0)
    index = _window_of(emitted, settings)
    if total is not None:
        if total < emitted:
            raise SettingsError(f"{emitted} tokens are already sent: the stream cannot end at {total}.")
        if total == emitted:
            return None
        # Going on after an end inside the overlap: if the window before still holds the new end it is
        # the one to use, so the stream never takes more windows than its length asks for.
        index = min(index, window_count(total, settings) - 1)
    start = window_start(index, settings)
    known_to = emitted if emitted != _keep_start(index, settings) else start
    for step in settings.first_steps if index == 0 else settings.later_steps:
        end = start + step.end
        if total is not None and total <= end:
            return WindowCall(start, total, step.end, emitted, total, known_to, final=True)
        if end - step.withheld > emitted:
            return WindowCall(start, end, step.end, emitted, end - step.withheld, known_to, final=False)
    raise AssertionError("the last step of a window passes every token the window keeps")


def _window_of(token: int, settings: WindowSettings) -> int:
    """The window that keeps this token in an endless stream."""
    return max(0, (token - settings.head) // settings.hop)


def _keep_start(index: int, settings: WindowSettings) -> int:
    """First token that window ``index`` keeps."""
    return window_start(index, settings) + settings.head if index else 0


def _at_least(name: str, value: int, low: int) -> None:
    if operator.index(value) < low:
        raise SettingsError(f"{name} is {value}; it must be at least {low}.")
