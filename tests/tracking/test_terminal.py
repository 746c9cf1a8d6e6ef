"""What the terminal shows: with a clock that the tests move."""

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from subl_jax.engine.observers import GroupInfo
from subl_jax.tracking.terminal import Progress, _compact, _duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def recorded(terminal: bool = False, width: int = 80) -> Console:
    # The size of the tests' own terminal must not matter, nor its NO_COLOR and TERM.
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=50, _environ={"TERM": "xterm"})


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def plain(**options) -> tuple[Progress, Clock, Console]:
    clock, console = Clock(), recorded()
    return Progress(console, clock, **options), clock, console


def students(count: int, work: int) -> GroupInfo:
    return GroupInfo("distil", count, "student", work, layout="map")


def frame(progress: Progress, width: int = 80) -> list[str]:
    console = recorded(width=width)
    console.print(progress._render())
    return lines_of(console)


# --- lines ---


def test_plain_lines_of_a_group():
    progress, clock, console = plain(every=10.0)
    with progress:
        progress.plan(3)
        progress.begin(GroupInfo("instil", 4, "teacher", 4_000, layout="1 device × 4 wide"))
        progress.compiling()
        clock.now += 30.0
        progress.advance(0)
        for _ in range(6):
            clock.now += 5.0
            progress.advance(500)
        progress.end("1 diverged")
    assert lines_of(console) == [
        "[1/3] instil: 4 teachers × 1,000 steps",
        "[1/3] instil: compiling",
        "[1/3] instil:   0%  elapsed 30 s",
        # 500 steps in 5 s, of all four; compilation is not in it.
        "[1/3] instil:  25%  100 steps/s together  ETA 30 s  elapsed 40 s",
        "[1/3] instil:  50%  100 steps/s together  ETA 20 s  elapsed 50 s",
        "[1/3] instil:  75%  100 steps/s together  ETA 10 s  elapsed 1:00",
        "[1/3] instil: 4 teachers in 1:00, compile 30 s, 100 steps/s together, 1 diverged",
    ]


def test_layouts_are_for_those_who_ask():
    info = GroupInfo("write", 4, "dataset", 4_096, "samples", "2 devices × 2 in turn × 1 wide")
    for verbose in (False, True):
        progress, clock, console = plain(verbose=verbose)
        progress.begin(info)
        clock.now += 2.0
        progress.advance(4_096)
        progress.end("0.4 GiB in use", "30 % of what a matrix product reaches")
        layout, reached = ", 2 devices × 2 in turn × 1 wide", ", 30 % of what a matrix product reaches"
        assert lines_of(console) == [
            "write: 4 datasets × 1,024 samples" + layout * verbose,
            "write: 4 datasets in 2.0 s, 2.0k samples/s together, 0.4 GiB in use" + reached * verbose,
        ]


def test_plain_lines_are_rare():
    progress, clock, console = plain(every=10.0)
    progress.begin(students(1, 1_000))
    for _ in range(800):
        clock.now += 0.125
        progress.advance(1)
    progress.end()
    # 100 seconds: the start, the end, and one line in ten seconds.
    assert len(lines_of(console)) == 2 + 10


def test_work_reported_with_the_end_of_compilation_is_not_in_the_rate():
    progress, clock, console = plain(every=1.0)
    progress.begin(students(1, 400))
    progress.compiling()
    clock.now += 50.0
    progress.advance(200)
    clock.now += 10.0
    progress.advance(100)
    assert lines_of(console)[-1] == "distil:  75%  10 steps/s  ETA 10 s  elapsed 1:00"


def test_work_of_an_earlier_run_is_not_in_the_rate():
    progress, clock, console = plain(every=1.0)
    progress.begin(students(1, 400))
    progress.compiling()
    progress.advance(0)
    clock.now += 1.0
    progress.advance(200, restored=True)
    assert lines_of(console)[-1] == "distil:  50%  elapsed 1.0 s"
    clock.now += 9.0
    progress.advance(100)
    assert lines_of(console)[-1] == "distil:  75%  10 steps/s  ETA 10 s  elapsed 10 s"
    # Memory ran out: all of it is to be done again.
    progress.advance(-100)
    progress.advance(-200, restored=True)
    clock.now += 10.0
    progress.advance(200)
    assert lines_of(console)[-1] == "distil:  50%  10 steps/s  ETA 20 s  elapsed 20 s"


def test_groups_are_counted_and_elapsed_is_that_of_the_sweep():
    progress, clock, console = plain(every=0.0)
    progress.plan(2)
    for stage in ("pretrain", "instil"):
        progress.begin(GroupInfo(stage, 2, "model", 10))
        clock.now += 2.0
        progress.advance(10)
        progress.end()
    found = lines_of(console)
    assert found[0].startswith("[1/2] pretrain: 2 models × 5 steps")
    assert found[4] == "[2/2] instil: 100%  5.0 steps/s together  ETA 0.0 s  elapsed 4.0 s"
    assert found[5] == "[2/2] instil: 2 models in 2.0 s, 5.0 steps/s together"


def test_a_group_without_steps_or_of_one_chunk_ends_well():
    progress, _, console = plain()
    progress.begin(GroupInfo("mix", 1, "mixed model", 0))
    progress.compiling()
    progress.advance(0)
    progress.end()
    progress.end()
    progress.advance(5)
    progress.compiling()
    assert lines_of(console)[0] == "mix: 1 mixed model"
    assert lines_of(console)[-1] == "mix: 1 mixed model in 0.0 s"


def test_text_is_shown_as_it_is():
    progress, _, console = plain()
    progress.say("[bold]owl[/bold] " + "x" * 100)
    progress.warn("[red] lost")
    assert lines_of(console) == ["[bold]owl[/bold] " + "x" * 100, "warning: [red] lost"]


# --- the live display ---


def test_the_live_display_fits_80_columns():
    clock = Clock()
    progress = Progress(recorded(terminal=True), clock, verbose=True)
    progress.plan(12)
    layout = "8 devices × 64 wide × 2 chunks, " + "y" * 50
    progress.begin(GroupInfo("instil", 1_024, "teacher", 1_024 * 4_000, layout=layout))
    progress.compiling()
    clock.now += 1.0
    assert "compiling" in frame(progress)[1]
    progress.advance(0)
    clock.now += 1_000.0
    progress.advance(1_024 * 1_000)
    head, line = frame(progress)
    assert head.startswith("[1/12] instil  1,024 teachers × 4,000 steps  8 devices × 64 wide")
    assert head.rstrip().endswith("…")
    assert line.endswith("  25%  1.0k steps/s together  ETA 50:00  elapsed 16:41")
    # Between two reports the time that is left runs down, and the rate stands.
    clock.now += 60.0
    assert "1.0k steps/s together  ETA 49:00  elapsed 17:41" in frame(progress)[1]
    assert all(len(text) <= 80 for text in frame(progress))
    progress.end()
    assert frame(progress) == [""]


def test_live_shows_lines_above_and_gives_the_terminal_back():
    console = recorded(terminal=True)
    with pytest.raises(RuntimeError, match="boom"), Progress(console, Clock()) as progress:
        progress.begin(students(3, 30))
        progress.say("a line")
        progress.advance(3)
        raise RuntimeError("boom")
    text = console.file.getvalue()
    assert "a line" in text and "3 students" in text
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text.rindex(show) > text.rindex(hide)
    # The last frame is empty: nothing of the display is left standing.
    assert "distil" not in text[text.rindex("\x1b[2K") :]
    assert console._live_stack == []


def test_which_consoles_are_live():
    assert not Progress(recorded(terminal=True))._plain
    assert Progress(recorded(terminal=False))._plain
    assert Progress(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"}))._plain
    assert Progress(recorded(terminal=True), plain=True)._plain


# --- numbers ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (3599.7, "1:00:00"),
        (3725, "1:02:05"),
    ],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.12"), (3.44, "3.4"), (999.4, "999"), (999.6, "1.0k"), (12_345, "12k")]
)
def test_compact_numbers(value, text):
    assert _compact(value) == text


@settings(deadline=None, max_examples=200)
@given(st.floats(0.01, 1e12))
def test_compact_numbers_are_short_and_close(value):
    text = _compact(value)
    assert len(text.rstrip("kMG")) <= 4
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    assert math.isclose(float(text.rstrip("kMG")) * scale, value, rel_tol=0.06, abs_tol=0.005)
