"""What the terminal shows after a sweep. Rows are written in the wide form, both tables beside each other."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from subl_jax.results.wide import from_wide
from subl_jax.tracking.final_table import (
    comparison_table,
    defence_table,
    other_start_table,
    print_outcome,
    specificity_table,
)


def recorded(terminal: bool = False, width: int = 80) -> Console:
    # The size of the tests' own terminal must not matter, nor its NO_COLOR and TERM.
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=50, _environ={"TERM": "xterm"})


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def comparison_table_of(wide: pd.DataFrame) -> Table:
    return comparison_table(from_wide(wide))


def specificity_table_of(wide: pd.DataFrame) -> Table:
    return specificity_table(from_wide(wide))


def other_start_table_of(wide: pd.DataFrame) -> Table:
    return other_start_table(from_wide(wide))


def defence_table_of(wide: pd.DataFrame) -> Table:
    return defence_table(from_wide(wide))


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
    lines = table_lines(comparison_table_of(summary_of()))
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
    text = "\n".join(table_lines(comparison_table_of(small), width=160))
    assert "8.0e-4 [8e-4,9e-4]" in text and "+6.8e-4 p=.012 [6e-4,8e-4]" in text and "0.00" not in text
    assert "…" not in "".join(table_lines(comparison_table_of(small), width=80))
    mixed = summary_of().assign(ci_low=-0.003)
    assert "0.80 [-0.00,0.85]" in "".join(table_lines(comparison_table_of(mixed)))


def test_comparison_at_80_columns():
    lines = table_lines(comparison_table_of(summary_of()), width=80)
    assert all(len(line) <= 80 for line in lines)
    assert "0.80" in lines[2] and "+0.70 p=.012" in lines[2]
    # Each interval is whole on its line.
    assert [part for part in lines[3].split() if part.startswith("[")] == [
        *("[0.75,0.85]", "[0.07,0.17]", "[0.05,0.15]", "[0.58,0.78]", "[0.60,0.80]")
    ]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("arms", [tuple(ARMS), (*ARMS, "paraphrased_by_another")])
def test_nothing_is_cut_off_at_80_columns(arms, small):
    """Long names of swept fields, intervals of three signs: what does not fit beside the rest goes below it."""
    summary = pd.concat(
        summary_of(arms=arms, **{"data.filter.max_value": value, "teacher.train.schedule": "a_schedule"})
        for value in ("a_rather_long_word", "another_rather_long_word")
    )
    for name in summary.select_dtypes("float"):
        if not name.startswith("p_"):
            summary[name] *= -1e-3 if small else -1
    console = recorded(width=80)
    print_outcome(console, from_wide(summary), {"report.html": "runs/x/report.html"}, [])
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, lines_of(console))) <= 80
    # As many intervals as where there is room, and each whole.
    wide = recorded(width=250)
    print_outcome(wide, from_wide(summary), {}, [])
    whole = re.compile(r"\[-?[\d.e-]+,-?[\d.e-]+\]")
    assert sorted(whole.findall(text)) == sorted(whole.findall(wide.file.getvalue()))
    assert text.count("P(trait) after training") == wide.file.getvalue().count("P(trait) after training")


def test_an_average_that_leaves_pairs_out_has_a_star():
    summary = summary_of()
    assert "*" not in "".join(table_lines(comparison_table_of(summary)))
    summary["left_out"] = np.where(summary["trait"] == "all", 2, 0)
    lines = table_lines(comparison_table_of(summary))
    assert [line.split()[0] for line in lines[2:5]] == ["owl", "cat", "all*"]
    assert lines[-1] == "* without the pairs of trait and base where a run of some arm did not end well"


def test_one_trait_is_not_pooled_as_well():
    assert comparison_table_of(summary_of(("owl",))).row_count == 1


def test_missing_arms_columns_and_values():
    summary = summary_of(arms=("same_init", "control"))
    assert "cross" not in "\n".join(table_lines(comparison_table_of(summary)))
    bare = summary[["trait", "arm", "mean"]]
    assert table_lines(comparison_table_of(bare))[2].split() == ["owl", "–", "0.80", "0.10"]
    only_control = table_lines(comparison_table_of(summary_of(arms=("control",))))
    assert only_control[2].split() == ["owl", "8", "0.10", "[0.05,0.15]"]
    # One base has a mean but no interval; a cell whose runs all diverged has neither.
    summary.loc[:, ["ci_low", "ci_high", "p_control", "p_control_holm", "diff_control_low"]] = np.nan
    summary.loc[summary["trait"] == "cat", ["mean", "diff_control"]] = np.nan
    lines = table_lines(comparison_table_of(summary))
    assert lines[2].split() == ["owl", "8", "0.80", "0.10", "+0.70"]
    assert lines[3].split() == ["cat", "8", "–", "–", "–"]


def test_swept_cells_have_headings_and_borrow_the_control():
    swept = [
        summary_of(arms=("same_init", "cross_init"), **{"train.lr": lr, "data.size": 100, "data.filter.kind": kind})
        for lr, kind in ((0.001, "strict"), (0.003, None))
    ]
    free = summary_of(arms=("control",), **{"train.lr": np.nan, "data.size": 100, "data.filter.kind": None})
    lines = table_lines(comparison_table_of(pd.concat([*swept, free], ignore_index=True)))
    # What is the same in every cell (size) is not repeated.
    assert lines[2:4] == ["lr 0.001", "kind strict"]
    assert [line.split()[0] for line in lines[4:7]] == ["owl", "cat", "all"]
    assert lines[7] == "lr 0.003"
    assert all("0.10 [0.05,0.15]" in line for line in lines[4:7] + lines[8:11])


def test_many_cells_show_the_pooled_rows_and_say_what_is_left():
    summary = pd.concat([summary_of(**{"train.lr": lr / 1000}) for lr in range(1, 9)], ignore_index=True)
    lines = table_lines(comparison_table_of(summary))
    assert lines[0].startswith("all at")
    assert [line.split()[:2] for line in lines[2:10]] == [["lr", f"{lr / 1000:g}"] for lr in range(1, 9)]
    assert lines[-1] == "16 more rows are in summary.parquet"
    summary = pd.concat([summary_of(**{"train.lr": lr / 1000}) for lr in range(1, 31)], ignore_index=True)
    table = comparison_table_of(summary)
    assert table.row_count == 20
    assert table_lines(table)[-1] == "70 more rows are in summary.parquet"


def test_many_traits_keep_the_pooled_row():
    lines = table_lines(comparison_table_of(summary_of([f"t{i}" for i in range(30)])))
    assert [line.split()[0] for line in lines[2:22]] == [*(f"t{i}" for i in range(19)), "all"]
    assert lines[-1] == "11 more rows are in summary.parquet"


def test_fields_of_one_name_keep_what_tells_them_apart():
    summary = pd.concat(
        [summary_of(**{"train.lr": lr, "data.teacher.train.lr": lr}) for lr in (0.1, 0.2)], ignore_index=True
    )
    assert table_lines(comparison_table_of(summary))[2:4] == ["train.lr 0.1", "teacher.train.lr 0.1"]


def test_worlds_are_cells_too():
    summary = pd.concat([summary_of(), summary_of().assign(world="digits")], ignore_index=True)
    lines = table_lines(comparison_table_of(summary))
    assert (lines[2], lines[6]) == ("world toy", "world digits")


def test_other_teachers():
    summary = summary_of(arms=("same_init", "control", "mixed"))
    assert specificity_table_of(summary).row_count == specificity_table_of(pd.DataFrame()).row_count == 0
    ends = {"others": 0.3, "diff_others": 0.5, "diff_others_low": 0.4, "diff_others_high": 0.6, "p_others": 0.004}
    same = summary["arm"] == "same_init"
    summary = summary.assign(**{name: np.where(same, value, np.nan) for name, value in ends.items()})
    lines = table_lines(specificity_table_of(summary), width=80)
    words = [word.strip() for word in lines[0].split("  ") if word.strip()]
    assert words == ["trait", "n", "same init", "other teachers", "same − other teachers"]
    assert [line.split()[0] for line in lines[2:5]] == ["owl", "cat", "all"]
    assert "0.80 [0.75,0.85]  0.30" in lines[2] and lines[2].endswith("+0.50 p=.004 [0.40,0.60]")


def test_rare_traits_are_compared_by_ratios():
    ratios = {"ratio_control": 9.53, "ratio_control_low": 2.7, "ratio_control_high": 33.68, "p_ratio_control": 0.011}
    tiny = {"target_start": 1e-4, "mean": 5e-4, "ci_low": 4e-4, "ci_high": 6e-4, **ratios}
    summary = summary_of(arms=("same_init", "control"))
    lines = table_lines(comparison_table_of(summary.assign(**tiny)), width=80)
    assert [word.strip() for word in lines[0].split("  ") if word.strip()][-1] == "same / control"
    assert lines[2].endswith("×9.5 p=.011 [2.7,34]")
    assert lines[-1].startswith("A / B: of their gains")
    common = summary.assign(**tiny | {"target_start": 0.2})
    assert "/" not in "".join(table_lines(comparison_table_of(common)))


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
    assert table_lines(comparison_table_of(summary))[0].split()[-3:] == ["same", "−", "control"]
    lines = table_lines(other_start_table_of(summary))
    words = [word.strip() for word in lines[0].split("  ") if word.strip()]
    assert words == ["trait", "n", "cross init", "cross control", "cross − cross control"]
    assert lines[2].split("  ")[-3:] == ["0.12 [0.07,0.17]", "0.11 [0.06,0.16]", "+0.01 p=.500 [-0.09,0.11]"]
    assert "…" not in "".join(table_lines(other_start_table_of(summary), width=80))
    assert defence_table_of(summary).row_count == 0
    assert other_start_table_of(summary_of()).row_count == 0  # the first table says all
    assert other_start_table_of(summary_of(arms=("cross_init",))).row_count == 0


def test_amounts_of_noise_in_the_start_are_rows_of_their_own():
    noisy = [crossed(with_same=False, **{"world.sigma": sigma}) for sigma in (0.1, 0.5)]
    of_one_start = summary_of(arms=("same_init", "control"), **{"world.sigma": 0.0})
    summary = pd.concat([of_one_start, *noisy], ignore_index=True)
    lines = table_lines(comparison_table_of(summary))
    assert "cross" not in lines[0] and lines[2].split()[0] == "owl"
    lines = table_lines(other_start_table_of(summary), width=200)
    assert [line.split()[-1] for line in lines[2:] if line.startswith("sigma")] == ["0.1", "0.5"]
    assert lines[3].split()[:3] == ["owl", "8", "0.12"]
    assert "-0.68 p=.500 [-0.78,-0.58]" in lines[3] and lines[3].endswith("+0.01 p=.500 [-0.09,0.11]")
    lines = table_lines(other_start_table_of(summary), width=80)
    assert "…" not in "".join(lines)
    without = summary[summary["arm"] != "cross_control"].assign(diff_cross_control=np.nan)
    assert "control" not in table_lines(other_start_table_of(without))[0]


def test_defences():
    summary = summary_of(arms=("same_init", "control", "mixed"))
    lines = table_lines(defence_table_of(summary))
    assert lines[2].split()[:4] == ["owl", "8", "mixed", "0.40"]
    assert "-0.40 p=.012 [-0.50,-0.30]" in lines[2] and "+0.30 p=.012 [0.20,0.40]" in lines[2]
    assert defence_table_of(summary_of()).row_count == 0


def test_outcome():
    console = recorded()
    path = "/a/" + "long/" * 20 + "report.html"
    print_outcome(
        console, from_wide(summary_of(arms=(*ARMS, "mixed"))), {"report": path, "runs": "[x]"}, ["wandb sync [d]"]
    )
    text = lines_of(console)
    assert text[-3:] == [f"report  {path}", "runs    [x]", "wandb sync [d]"]
    assert sum("P(trait) after training" in line for line in text) == 2


@pytest.mark.parametrize("summary", [pd.DataFrame(), summary_of().iloc[:0]])
def test_outcome_of_nothing(summary):
    console = recorded()
    print_outcome(console, from_wide(summary), {}, [])
    assert lines_of(console) == ["No run has a trait to compare."]
