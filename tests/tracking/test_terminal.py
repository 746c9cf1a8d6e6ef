"""What the terminal shows: with a clock that the tests move."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from subl_jax.tracking.terminal import (
    Progress,
    _compact,
    _duration,
    comparison_table,
    defence_table,
    other_start_table,
    print_outcome,
    specificity_table,
)


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


def frame(progress: Progress, width: int = 80) -> list[str]:
    console = recorded(width=width)
    console.print(progress._render())
    return lines_of(console)


# --- lines ---


def test_plain_lines_of_a_group():
    progress, clock, console = plain(every=10.0)
    with progress:
        progress.plan(3)
        progress.begin("instil", lanes=4, lane_steps=4_000, layout="1 device × 4 wide")
        progress.compiling()
        clock.now += 30.0
        progress.advance(0)
        for _ in range(6):
            clock.now += 5.0
            progress.advance(500)
        progress.end("1 diverged")
    assert lines_of(console) == [
        "[1/3] instil: 4 lanes, 4,000 lane-steps, 1 device × 4 wide",
        "[1/3] instil: compiling",
        "[1/3] instil:   0%  elapsed 30 s",
        # 500 lane-steps in 5 s over 4 lanes; compilation is not in it.
        "[1/3] instil:  25%  25 steps/s  100 lane-steps/s  ETA 30 s  elapsed 40 s",
        "[1/3] instil:  50%  25 steps/s  100 lane-steps/s  ETA 20 s  elapsed 50 s",
        "[1/3] instil:  75%  25 steps/s  100 lane-steps/s  ETA 10 s  elapsed 1:00",
        "[1/3] instil: 4 lanes in 1:00, compile 30 s, 100 lane-steps/s, 1 diverged",
    ]


def test_plain_lines_are_rare():
    progress, clock, console = plain(every=10.0)
    progress.begin("distil", lanes=1, lane_steps=1_000, layout="map")
    for _ in range(800):
        clock.now += 0.125
        progress.advance(1)
    progress.end()
    # 100 seconds: the start, the end, and one line in ten seconds.
    assert len(lines_of(console)) == 2 + 10


def test_work_reported_with_the_end_of_compilation_is_not_in_the_rate():
    progress, clock, console = plain(every=1.0)
    progress.begin("distil", lanes=1, lane_steps=400, layout="map")
    progress.compiling()
    clock.now += 50.0
    progress.advance(200)
    clock.now += 10.0
    progress.advance(100)
    assert lines_of(console)[-1] == "distil:  75%  10 steps/s  10 lane-steps/s  ETA 10 s  elapsed 1:00"


def test_work_of_an_earlier_run_is_not_in_the_rate():
    progress, clock, console = plain(every=1.0)
    progress.begin("distil", lanes=1, lane_steps=400, layout="map")
    progress.compiling()
    progress.advance(0)
    clock.now += 1.0
    progress.advance(200, restored=True)
    assert lines_of(console)[-1] == "distil:  50%  elapsed 1.0 s"
    clock.now += 9.0
    progress.advance(100)
    assert lines_of(console)[-1] == "distil:  75%  10 steps/s  10 lane-steps/s  ETA 10 s  elapsed 10 s"
    # Memory ran out: all of it is to be done again.
    progress.advance(-100)
    progress.advance(-200, restored=True)
    clock.now += 10.0
    progress.advance(200)
    assert lines_of(console)[-1] == "distil:  50%  10 steps/s  10 lane-steps/s  ETA 20 s  elapsed 20 s"


def test_groups_are_counted_and_elapsed_is_that_of_the_sweep():
    progress, clock, console = plain(every=0.0)
    progress.plan(2)
    for stage in ("pretrain", "instil"):
        progress.begin(stage, 2, 10, "map")
        clock.now += 2.0
        progress.advance(10)
        progress.end()
    found = lines_of(console)
    assert found[0].startswith("[1/2] pretrain: 2 lanes, 10 lane-steps")
    assert found[4] == "[2/2] instil: 100%  2.5 steps/s  5.0 lane-steps/s  ETA 0.0 s  elapsed 4.0 s"
    assert found[5] == "[2/2] instil: 2 lanes in 2.0 s, 5.0 lane-steps/s"


def test_a_group_without_steps_or_of_one_chunk_ends_well():
    progress, _, console = plain()
    progress.begin("generate", 1, 0, "map")
    progress.compiling()
    progress.advance(0)
    progress.end()
    progress.end()
    progress.advance(5)
    progress.compiling()
    assert lines_of(console)[-1] == "generate: 1 lane in 0.0 s"


def test_text_is_shown_as_it_is():
    progress, _, console = plain()
    progress.say("[bold]owl[/bold] " + "x" * 100)
    progress.warn("[red] lost")
    assert lines_of(console) == ["[bold]owl[/bold] " + "x" * 100, "warning: [red] lost"]


# --- the live display ---


def test_the_live_display_fits_80_columns():
    clock = Clock()
    progress = Progress(recorded(terminal=True), clock)
    progress.plan(12)
    progress.begin("instil", 1_024, 1_024 * 4_000, "8 devices × 64 wide × 2 chunks, " + "y" * 50)
    progress.compiling()
    clock.now += 1.0
    assert "compiling" in frame(progress)[1]
    progress.advance(0)
    clock.now += 1_000.0
    progress.advance(1_024 * 1_000)
    head, line = frame(progress)
    assert head.startswith("[1/12] instil  1,024 lanes  8 devices × 64 wide") and head.rstrip().endswith("…")
    assert line.endswith("  25%  1.0 steps/s  1.0k lane-steps/s  ETA 50:00  elapsed 16:41")
    # Between two reports the time that is left runs down, and the rate stands.
    clock.now += 60.0
    assert "1.0 steps/s  1.0k lane-steps/s  ETA 49:00  elapsed 17:41" in frame(progress)[1]
    assert all(len(text) <= 80 for text in frame(progress))
    progress.end()
    assert frame(progress) == [""]


def test_live_shows_lines_above_and_gives_the_terminal_back():
    console = recorded(terminal=True)
    with pytest.raises(RuntimeError, match="boom"), Progress(console, Clock()) as progress:
        progress.begin("distil", 3, 30, "map")
        progress.say("a line")
        progress.advance(3)
        raise RuntimeError("boom")
    text = console.file.getvalue()
    assert "a line" in text and "3 lanes" in text
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


# --- the outcome ---

ARMS = {"same_init": 0.8, "cross_init": 0.12, "control": 0.1}


def row(trait: str, arm: str, mean: float, **more) -> dict:
    line = {"sweep": "s", "world": "toy", "trait": trait, "arm": arm, "n_runs": 8, "n": 8}
    line |= {"mean": mean, "ci_low": mean - 0.05, "ci_high": mean + 0.05}
    for other in ("cross_init", "control", "same_init"):
        compared = (arm == "same_init" and other != "same_init") or (arm not in ARMS and other != "cross_init")
        value = mean - ARMS[other] if compared else np.nan
        line |= {f"diff_{other}": value, f"diff_{other}_low": value - 0.1, f"diff_{other}_high": value + 0.1}
        line |= {f"p_{other}": 0.0002 if compared else np.nan}
        line |= {f"p_{other}_holm": 0.0123 if compared and trait != "all" else np.nan}
    return line | more


def summary_of(traits=("owl", "cat"), arms=tuple(ARMS), **more) -> pd.DataFrame:
    return pd.DataFrame([row(trait, arm, ARMS.get(arm, 0.4), **more) for arm in arms for trait in (*traits, "all")])


def table_lines(table, width: int = 140) -> list[str]:
    console = recorded(width=width)
    console.print(table)
    return [line.rstrip() for line in lines_of(console)]


def test_comparison():
    lines = table_lines(comparison_table(summary_of()))
    assert [word.strip() for word in lines[0].split("  ") if word.strip()] == [
        *("trait", "n", "same init", "cross init", "control", "same − cross", "same − control")
    ]
    numbers = "8  0.80 [0.75,0.85]  0.12 [0.07,0.17]  0.10 [0.05,0.15]"
    assert lines[2] == f"owl    {numbers}  +0.68 p=.012 [0.58,0.78]  +0.70 p=.012 [0.60,0.80]"
    # The pooled row is one test: its p is not adjusted.
    assert lines[4] == f"all    {numbers}  +0.68 p<.001 [0.58,0.78]  +0.70 p<.001 [0.60,0.80]"
    assert lines[5] == "P(trait) after training: mean [95 % interval] over n bases; p paired, Holm"


def test_small_probabilities_keep_two_digits():
    small = summary_of()
    for name in small.select_dtypes("float"):
        if not name.startswith("p_"):
            small[name] *= 1e-3
    text = "\n".join(table_lines(comparison_table(small), width=160))
    assert "8.0e-4 [8e-4,9e-4]" in text and "+6.8e-4 p=.012 [6e-4,8e-4]" in text and "0.00" not in text
    assert "…" not in "".join(table_lines(comparison_table(small), width=80))
    mixed = summary_of().assign(ci_low=-0.003)
    assert "0.80 [-0.00,0.85]" in "".join(table_lines(comparison_table(mixed)))


def test_comparison_at_80_columns():
    lines = table_lines(comparison_table(summary_of()), width=80)
    assert all(len(line) <= 80 for line in lines)
    assert "0.80" in lines[2] and "+0.70 p=.012" in lines[2]
    # Each interval is whole on its line.
    assert [part for part in lines[3].split() if part.startswith("[")] == [
        *("[0.75,0.85]", "[0.07,0.17]", "[0.05,0.15]", "[0.58,0.78]", "[0.60,0.80]")
    ]


def test_one_trait_is_not_pooled_as_well():
    assert comparison_table(summary_of(("owl",))).row_count == 1


def test_missing_arms_columns_and_values():
    summary = summary_of(arms=("same_init", "control"))
    assert "cross" not in "\n".join(table_lines(comparison_table(summary)))
    bare = summary[["trait", "arm", "mean"]]
    assert table_lines(comparison_table(bare))[2].split() == ["owl", "–", "0.80", "0.10"]
    only_control = table_lines(comparison_table(summary_of(arms=("control",))))
    assert only_control[2].split() == ["owl", "8", "0.10", "[0.05,0.15]"]
    # One base has a mean but no interval; a cell whose runs all diverged has neither.
    summary.loc[:, ["ci_low", "ci_high", "p_control", "p_control_holm", "diff_control_low"]] = np.nan
    summary.loc[summary["trait"] == "cat", ["mean", "diff_control"]] = np.nan
    lines = table_lines(comparison_table(summary))
    assert lines[2].split() == ["owl", "8", "0.80", "0.10", "+0.70"]
    assert lines[3].split() == ["cat", "8", "–", "–", "–"]


def test_swept_cells_have_headings_and_borrow_the_control():
    swept = [
        summary_of(arms=("same_init", "cross_init"), **{"train.lr": lr, "data.size": 100, "data.filter.kind": kind})
        for lr, kind in ((0.001, "strict"), (0.003, None))
    ]
    free = summary_of(arms=("control",), **{"train.lr": np.nan, "data.size": 100, "data.filter.kind": None})
    lines = table_lines(comparison_table(pd.concat([*swept, free], ignore_index=True)))
    # What is the same in every cell (size) is not repeated.
    assert lines[2:4] == ["lr 0.001", "kind strict"]
    assert [line.split()[0] for line in lines[4:7]] == ["owl", "cat", "all"]
    assert lines[7] == "lr 0.003"
    assert all("0.10 [0.05,0.15]" in line for line in lines[4:7] + lines[8:11])


def test_many_cells_show_the_pooled_rows_and_say_what_is_left():
    summary = pd.concat([summary_of(**{"train.lr": lr / 1000}) for lr in range(1, 9)], ignore_index=True)
    lines = table_lines(comparison_table(summary))
    assert lines[0].startswith("all at")
    assert [line.split()[:2] for line in lines[2:10]] == [["lr", f"{lr / 1000:g}"] for lr in range(1, 9)]
    assert lines[-1] == "16 more rows are in summary.parquet"
    summary = pd.concat([summary_of(**{"train.lr": lr / 1000}) for lr in range(1, 31)], ignore_index=True)
    table = comparison_table(summary)
    assert table.row_count == 20
    assert table_lines(table)[-1] == "70 more rows are in summary.parquet"


def test_many_traits_keep_the_pooled_row():
    lines = table_lines(comparison_table(summary_of([f"t{i}" for i in range(30)])))
    assert [line.split()[0] for line in lines[2:22]] == [*(f"t{i}" for i in range(19)), "all"]
    assert lines[-1] == "11 more rows are in summary.parquet"


def test_fields_of_one_name_keep_what_tells_them_apart():
    summary = pd.concat(
        [summary_of(**{"train.lr": lr, "data.teacher.train.lr": lr}) for lr in (0.1, 0.2)], ignore_index=True
    )
    assert table_lines(comparison_table(summary))[2:4] == ["train.lr 0.1", "teacher.train.lr 0.1"]


def test_worlds_are_cells_too():
    summary = pd.concat([summary_of(), summary_of().assign(world="digits")], ignore_index=True)
    lines = table_lines(comparison_table(summary))
    assert (lines[2], lines[6]) == ("world toy", "world digits")


def test_other_teachers():
    summary = summary_of(arms=("same_init", "control", "mixed"))
    assert specificity_table(summary).row_count == specificity_table(pd.DataFrame()).row_count == 0
    ends = {"others": 0.3, "diff_others": 0.5, "diff_others_low": 0.4, "diff_others_high": 0.6, "p_others": 0.004}
    same = summary["arm"] == "same_init"
    summary = summary.assign(**{name: np.where(same, value, np.nan) for name, value in ends.items()})
    lines = table_lines(specificity_table(summary), width=80)
    words = [word.strip() for word in lines[0].split("  ") if word.strip()]
    assert words == ["trait", "n", "same init", "other teachers", "same − other teachers"]
    assert [line.split()[0] for line in lines[2:5]] == ["owl", "cat", "all"]
    assert "0.80 [0.75,0.85]  0.30" in lines[2] and lines[2].endswith("+0.50 p=.004 [0.40,0.60]")


def test_rare_traits_are_compared_by_ratios():
    ratios = {"ratio_control": 9.53, "ratio_control_low": 2.7, "ratio_control_high": 33.68, "p_ratio_control": 0.011}
    tiny = {"target_start": 1e-4, "mean": 5e-4, "ci_low": 4e-4, "ci_high": 6e-4, **ratios}
    summary = summary_of(arms=("same_init", "control"))
    lines = table_lines(comparison_table(summary.assign(**tiny)), width=80)
    assert [word.strip() for word in lines[0].split("  ") if word.strip()][-1] == "same / control"
    assert lines[2].endswith("×9.5 p=.011 [2.7,34]")
    assert lines[-1].startswith("A / B: of their gains")
    common = summary.assign(**tiny | {"target_start": 0.2})
    assert "/" not in "".join(table_lines(comparison_table(common)))


def crossed(with_same: bool, **more) -> pd.DataFrame:
    """The two arms of another start. Without `with_same` their cell has no same_init of its own."""
    lines = []
    for trait in ("owl", "cat", "all"):
        cross, control = (row(trait, arm, mean) for arm, mean in (("cross_init", 0.12), ("cross_control", 0.11)))
        for other, mean in (("cross_control", 0.11), *(() if with_same else (("same_init", 0.8),))):
            value = 0.12 - mean
            cross |= {f"diff_{other}": value, f"diff_{other}_low": value - 0.1, f"diff_{other}_high": value + 0.1}
            cross |= {f"p_{other}": 0.5, f"p_{other}_holm": 0.5}
        lines += [cross, control]
    return pd.DataFrame(lines).assign(**more)


def test_another_start_is_shown_beside_its_own_control():
    summary = pd.concat([summary_of(arms=("same_init", "control")), crossed(with_same=True)], ignore_index=True)
    assert table_lines(comparison_table(summary))[0].split()[-3:] == ["same", "−", "control"]
    lines = table_lines(other_start_table(summary))
    words = [word.strip() for word in lines[0].split("  ") if word.strip()]
    assert words == ["trait", "n", "cross init", "cross control", "cross − cross control"]
    assert lines[2].split("  ")[-3:] == ["0.12 [0.07,0.17]", "0.11 [0.06,0.16]", "+0.01 p=.500 [-0.09,0.11]"]
    assert "…" not in "".join(table_lines(other_start_table(summary), width=80))
    assert defence_table(summary).row_count == 0
    assert other_start_table(summary_of()).row_count == 0  # the first table says all
    assert other_start_table(summary_of(arms=("cross_init",))).row_count == 0


def test_amounts_of_noise_in_the_start_are_rows_of_their_own():
    noisy = [crossed(with_same=False, **{"world.sigma": sigma}) for sigma in (0.1, 0.5)]
    of_one_start = summary_of(arms=("same_init", "control"), **{"world.sigma": 0.0})
    summary = pd.concat([of_one_start, *noisy], ignore_index=True)
    lines = table_lines(comparison_table(summary))
    assert "cross" not in lines[0] and lines[2].split()[0] == "owl"
    lines = table_lines(other_start_table(summary), width=200)
    assert [line.split()[-1] for line in lines[2:] if line.startswith("sigma")] == ["0.1", "0.5"]
    assert lines[3].split()[:3] == ["owl", "8", "0.12"]
    assert "-0.68 p=.500 [-0.78,-0.58]" in lines[3] and lines[3].endswith("+0.01 p=.500 [-0.09,0.11]")
    lines = table_lines(other_start_table(summary), width=80)
    assert "…" not in "".join(lines)
    without = summary[summary["arm"] != "cross_control"].assign(diff_cross_control=np.nan)
    assert "control" not in table_lines(other_start_table(without))[0]


def test_defences():
    summary = summary_of(arms=("same_init", "control", "mixed"))
    lines = table_lines(defence_table(summary))
    assert lines[2].split()[:4] == ["owl", "8", "mixed", "0.40"]
    assert "-0.40 p=.012 [-0.50,-0.30]" in lines[2] and "+0.30 p=.012 [0.20,0.40]" in lines[2]
    assert defence_table(summary_of()).row_count == 0


def test_outcome():
    console = recorded()
    path = "/a/" + "long/" * 20 + "report.html"
    print_outcome(console, summary_of(arms=(*ARMS, "mixed")), {"report": path, "runs": "[x]"}, ["wandb sync [d]"])
    text = lines_of(console)
    assert text[-3:] == [f"report  {path}", "runs    [x]", "wandb sync [d]"]
    assert sum("P(trait) after training" in line for line in text) == 2


@pytest.mark.parametrize("summary", [pd.DataFrame(), summary_of().iloc[:0]])
def test_outcome_of_nothing(summary):
    console = recorded()
    print_outcome(console, summary, {}, [])
    assert lines_of(console) == ["No run has a trait to compare."]
