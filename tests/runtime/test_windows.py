"""Window arithmetic, tried at every length that matters. Invariant A1: streamed = offline, in its plan."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechssm.errors import SettingsError
from speechssm.runtime.windows import (
    DEFAULT,
    RAMP,
    WindowCall,
    WindowSettings,
    keep_from,
    merge_tokens,
    next_call,
    pad_indices,
    pad_ranges,
    plan,
    prompt_windows,
    speaker_indices,
    token_count,
    tokens_needed,
    window_count,
    window_keep,
    window_start,
)

RAMPED = WindowSettings(ramp=True)
GEOMETRIES = (DEFAULT, RAMPED)


@st.composite
def geometries(draw: st.DrawFn) -> WindowSettings:
    """Odd windows and overlaps, more than half of the window included."""
    window = draw(st.one_of(st.integers(1, 24), st.integers(1, 900)))
    return WindowSettings(window, draw(st.integers(0, window - 1)), draw(st.booleans()))


def check_call(call: WindowCall, geometry: WindowSettings, emitted: int) -> None:
    assert call.emit_from == emitted
    assert call.start <= call.known_to <= call.emit_from < call.emit_to <= call.end
    assert call.known_to in (call.start, call.emit_from)
    assert call.bucket in geometry.buckets
    assert call.start % geometry.hop == 0
    assert 0 <= call.pad < call.bucket
    if call.final:
        assert call.emit_to == call.end
    else:
        assert call.pad == 0
    if call.start:
        assert call.bucket == geometry.window
        assert call.emit_from - call.start >= geometry.head
        # Padding of a later window never asks for more of the start than a session keeps.
        assert all(index < geometry.pad_tokens for index in pad_indices(call.end, call.pad))


def check_plan(geometry: WindowSettings, total: int) -> list[WindowCall]:
    calls = list(plan(geometry, total))
    emitted = 0
    for call in calls:
        check_call(call, geometry, emitted)
        assert call.final == (call.emit_to == total)
        emitted = call.emit_to
    assert emitted == total
    starts = sorted({call.start for call in calls})
    assert starts == [window_start(i, geometry) for i in range(window_count(total, geometry))]
    for index, start in enumerate(starts):
        mine = [call for call in calls if call.start == start]
        keep = window_keep(index, total, geometry)
        assert (mine[0].emit_from, mine[-1].emit_to) == (keep.start, keep.stop)
        for before, after in pairwise(mine):
            assert before.end < after.end
            assert after.known_to == before.emit_to
        if start:
            assert len(mine) == 1
            assert mine[0].known_to == start
    return calls


# ---- the published geometry ---------------------------------------------------------------------------


def test_the_numbers_of_the_paper() -> None:
    assert (DEFAULT.hop, DEFAULT.head, DEFAULT.tail, DEFAULT.pad_tokens) == (650, 50, 50, 649)
    assert DEFAULT.buckets == (750,)
    assert RAMPED.buckets == (50, 100, 200, 400, 750)
    assert window_count(6_000) == 10  # 4 min
    assert window_count(24_000) == 37  # 16 min


def test_figure_4() -> None:
    """The paper draws windows of 5 tokens, 2 of overlap: hop 3, one token dropped per side."""
    five = WindowSettings(5, 2)
    assert [(c.start, c.emit_from, c.emit_to, c.pad) for c in plan(five, 10)] == [
        (0, 0, 4, 0),
        (3, 4, 7, 0),
        (6, 7, 10, 1),
    ]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a1_every_token_is_sent_once_and_in_order(geometry: WindowSettings) -> None:
    for total in range(3001):
        if total == 0:
            assert list(plan(geometry, 0)) == []
        else:
            check_plan(geometry, total)


def test_the_window_count_formula() -> None:
    for tokens in range(1, 3001):
        expected = 1 if tokens <= 750 else -((750 - tokens) // 650) + 1
        assert window_count(tokens) == expected
        assert sum(1 for call in plan(DEFAULT, tokens)) == expected


def test_a_token_belongs_to_the_window_whose_edges_are_farthest() -> None:
    """The midpoint rule, told another way: the kept copy has the most context on its worse side."""
    for tokens in (751, 1400, 1401, 2051, 2999):
        count = window_count(tokens)
        for token in range(tokens):

            def context(index: int, token: int = token, last: int = count - 1) -> float:
                start = window_start(index)
                before = float("inf") if index == 0 else token - start
                after = float("inf") if index == last else start + 750 - token - 1
                return min(before, after) if before >= 0 and after >= 0 else -1

            owner = next(i for i in range(count) if token in window_keep(i, tokens))
            assert context(owner) == max(context(i) for i in range(count))


def test_edges_around_every_hop() -> None:
    for k in range(1, 6):
        for offset in (-1, 0, 1):
            for total in (650 * k + offset, 650 * k + 50 + offset, 650 * k + 100 + offset):
                for geometry in GEOMETRIES:
                    check_plan(geometry, total)


def test_the_ramp_stops_where_it_should() -> None:
    calls = list(plan(RAMPED, 5_000))
    assert [(c.bucket, c.emit_from, c.emit_to) for c in calls[:6]] == [
        (50, 0, 25),
        (100, 25, 50),
        (200, 50, 150),
        (400, 150, 350),
        (750, 350, 700),
        (750, 700, 1350),
    ]
    assert [c.known_to - c.start for c in calls[:6]] == [0, 25, 50, 150, 350, 0]


def test_an_end_inside_a_ramp_step_is_padded_to_that_step() -> None:
    *_, last = plan(RAMPED, 110)
    assert last == WindowCall(0, 110, 200, 50, 110, 50, final=True)
    assert pad_indices(last.end, last.pad) == tuple(range(90))
    (only,) = plan(RAMPED, 3)
    assert only.bucket == 50
    assert pad_indices(3, 47) == (0, 1, 2) * 15 + (0, 1)


# ---- any geometry -------------------------------------------------------------------------------------


@given(geometries(), st.integers(0, 4000))
@settings(max_examples=400, deadline=None)
def test_a1_any_geometry(geometry: WindowSettings, total: int) -> None:
    if total:
        total = min(total, 40 * geometry.hop + geometry.window)
        check_plan(geometry, total)
        assert all(step in RAMP or step.end == geometry.window for step in geometry.first_steps)


@given(geometries(), st.integers(1, 4000), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
@example(DEFAULT, 750, False, None)
@example(RAMPED, 50, False, None)
def test_a1_streamed_calls_are_the_offline_calls(
    geometry: WindowSettings, total: int, told: bool, data: st.DataObject | None
) -> None:
    """Tokens arrive in any portions, the end is known from the start or only when it comes."""
    total = min(total, 12 * geometry.hop + geometry.window)
    available = emitted = 0
    made = []
    while True:
        end = total if told or available == total else None
        while (call := next_call(geometry, emitted, available, end)) is not None:
            assert call.end <= available
            made.append(call)
            emitted = call.emit_to
        if available == total:
            break
        step = data.draw(st.integers(1, max(1, total // 3))) if data else 1
        # Never overtake the point at which a call is due: the session makes it before anything else.
        needed = tokens_needed(geometry, emitted, end)
        assert next_call(geometry, emitted, needed - 1, end) is None
        available = min(total, available + step)
    assert made == list(plan(geometry, total))


@given(geometries(), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_tokens_needed_is_the_first_moment(geometry: WindowSettings, total: int) -> None:
    total = min(total, 6 * geometry.hop + geometry.window)
    for call in plan(geometry, total):
        for end in (total, None):
            needed = tokens_needed(geometry, call.emit_from, end)
            if end is None and needed > total:
                continue
            assert next_call(geometry, call.emit_from, needed, end) == call
            assert next_call(geometry, call.emit_from, needed - 1, end) is None
    assert tokens_needed(geometry, total, total) == total
    assert next_call(geometry, total, total, total) is None


class Session:
    """A session's memory: only the tokens :func:`keep_from` and ``pad_tokens`` allow, and codes sent."""

    def __init__(self, geometry: WindowSettings) -> None:
        self.geometry = geometry
        self.head: list[int] = []
        self.recent: dict[int, int] = {}
        self.codes: set[int] = set()
        self.available = self.emitted = 0

    def read(self, token: int) -> int:
        return self.recent[token] if token in self.recent else self.head[token]

    def add(self) -> None:
        if len(self.head) < self.geometry.pad_tokens:
            self.head.append(self.available)
        self.recent[self.available] = self.available
        self.available += 1

    def advance(self, total: int | None) -> list[WindowCall]:
        calls = []
        while (call := next_call(self.geometry, self.emitted, self.available, total)) is not None:
            check_call(call, self.geometry, self.emitted)
            wanted = [*range(call.start, call.end), *pad_indices(call.end, call.pad)]
            assert [self.read(token) for token in wanted] == wanted
            assert all(token in self.codes for token in range(call.start, call.known_to))
            self.codes.update(range(call.emit_from, call.emit_to))
            self.emitted = call.emit_to
            calls.append(call)
            self.drop()
        self.drop()
        # Constant memory: one window, and the start.
        assert len(self.recent) <= self.geometry.window
        assert len(self.codes) <= self.geometry.window
        return calls

    def drop(self) -> None:
        low = keep_from(self.geometry, self.emitted, self.available)
        self.recent = {t: v for t, v in self.recent.items() if t >= low}
        self.codes = {t for t in self.codes if t >= low}


@given(geometries(), st.lists(st.tuples(st.integers(1, 700), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=250, deadline=None)
@example(DEFAULT, [(700, True), (1, True), (49, True), (1, True), (700, False), (3, True)])
@example(RAMPED, [(25, True), (1, True), (24, True), (150, False), (150, True), (400, True)])
def test_going_on_after_an_end_in_constant_memory(
    geometry: WindowSettings, portions: list[tuple[int, bool]]
) -> None:
    """Ends and new beginnings anywhere: nothing twice, nothing missing, nothing forgotten too early."""
    session, total = Session(geometry), 0
    for more, stop in portions:
        total += min(more, 6 * geometry.hop + 1)
        while session.available < total:
            session.add()
            session.advance(None)
        if stop:
            calls = session.advance(total)
            assert session.emitted == total
            assert [c.final for c in calls] == [False] * (len(calls) - 1) + [True] * bool(calls)


def test_going_on_after_an_end_on_a_join_is_as_if_it_never_stopped() -> None:
    """650 k + 50 tokens: nothing of the next window is out, so nothing is known."""
    total = 700
    (first,) = plan(DEFAULT, total)
    assert first.final
    assert next_call(DEFAULT, 700, 1400, 1400) == WindowCall(650, 1400, 750, 700, 1400, 650, final=True)
    # A new end that the first window still holds is the first window's work.
    assert next_call(DEFAULT, 700, 730, 730) == WindowCall(0, 730, 750, 700, 730, 700, final=True)
    # Past it, the next window takes over, and what is out enters as known.
    assert next_call(DEFAULT, 730, 2000, None) == WindowCall(650, 1400, 750, 730, 1350, 730, final=False)


# ---- prompts ------------------------------------------------------------------------------------------


@given(geometries(), st.integers(1, 3000), st.integers(0, 639))
@settings(max_examples=200, deadline=None)
def test_prompt_windows_make_each_token_once(geometry: WindowSettings, tokens: int, short: int) -> None:
    tokens = min(tokens, 30 * geometry.hop + geometry.window)
    samples = tokens * 640 - short
    windows = prompt_windows(samples, geometry)
    rows = []
    for window in windows:
        assert window.start < window.end <= samples
        assert window.end - window.start + window.pad == geometry.window * 640
        first = window.start // 640
        rows.append([first + i for i in range(geometry.window)])
        # No kept token starts in the padding.
        assert (first + window.keep_to - 1) * 640 < window.end
    assert merge_tokens(windows, rows) == list(range(tokens))
    assert token_count(samples) == tokens


def test_a_ten_second_prompt_is_padded_by_its_own_start() -> None:
    (window,) = prompt_windows(160_000)
    assert (window.start, window.end, window.pad, window.keep_from, window.keep_to) == (
        0,
        160_000,
        320_000,
        0,
        250,
    )
    assert pad_ranges(160_000, window.pad) == (range(160_000), range(160_000))


def test_merge_refuses_a_missing_or_short_row() -> None:
    windows = prompt_windows(500_000)
    with pytest.raises(SettingsError, match="1 rows of tokens for 2 windows"):
        merge_tokens(windows, [[0] * 750])
    with pytest.raises(SettingsError, match="returned 600 tokens"):
        merge_tokens(windows, [[0] * 600, [0] * 750])


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_padding_is_the_stream_around_and_around(stream: int, pad: int) -> None:
    indices = pad_indices(stream, pad)
    assert indices == tuple(i % stream for i in range(pad))
    assert sum(len(r) for r in pad_ranges(stream, pad)) == pad


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_speaker_prompt_ends_where_the_recording_ends(tokens: int, wanted: int) -> None:
    indices = speaker_indices(tokens, wanted)
    assert len(indices) == wanted
    assert indices[-1] == tokens - 1
    assert all((after - before) % tokens == 1 % tokens for before, after in pairwise(indices))
    if tokens >= wanted:
        assert indices == tuple(range(tokens - wanted, tokens))


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "overlap", "ramp"),
    [
        (0, 0, False),
        (-5, 0, False),
        (750, 750, False),
        (750, -1, False),
        (1 << 17, 0, False),
        (750.0, 100, False),
        (True, 0, False),
        (750, True, False),
        (750, 100, 1),
        ("750", 100, False),
        (750, None, False),
    ],
)
def test_bad_settings_are_refused(window: object, overlap: object, ramp: object) -> None:
    with pytest.raises(SettingsError):
        WindowSettings(window, overlap, ramp)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("emitted", "available", "total"),
    [(-1, 10, None), (5, 4, None), (5, 10, 4), (5, 10, 9), (11, 10, 11), (5, 4, 5)],
)
def test_impossible_positions_are_refused(emitted: int, available: int, total: int | None) -> None:
    with pytest.raises(SettingsError):
        next_call(DEFAULT, emitted, available, total)


def test_windows_of_nothing_are_refused() -> None:
    for call in (window_count, prompt_windows, speaker_indices):
        with pytest.raises(SettingsError):
            call(0)
    with pytest.raises(SettingsError):
        pad_indices(0, 3)
    with pytest.raises(SettingsError):
        window_keep(1, 750)
