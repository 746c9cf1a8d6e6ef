"""The page: complete by itself, escaped, and honest about what the numbers show."""

import base64
import html.parser
import re

import numpy as np
import pandas as pd
import pytest
from fake_results import TRAITS, fake_curves, fake_datasets, fake_runs

from subl_jax.results import report
from subl_jax.results.cells import Cells
from subl_jax.results.comparisons import in_cell, summarise
from subl_jax.results.figures import transfer
from subl_jax.results.formats import p_value
from subl_jax.results.headline import adjusted, headline
from subl_jax.results.report import write_report
from subl_jax.results.wide import from_wide, wide_summary

SWEEP = {
    "sweep": "traits",
    "config": {"seeds": 4, "note": "</pre><script>alert(1)</script>"},
    "command": "launch/sweep.py --config sweeps/traits.py",
    "versions": {"jax": "0.10.2"},
    "devices": ["cpu"],
    "git": "abc123",
    "started": "2025-01-01T10:00:00",
    "seconds": 12.3,
    "groups": [
        {
            "stage": "distil",
            "lanes": 36,
            "layout": {"devices": 2, "width": 4},
            "compile_seconds": 4.25,
            "run_seconds": 31.0,
            "steps": 640,
            "lane_steps_per_second": 1234.5,
        }
    ],
    "base_rate": dict.fromkeys(TRAITS, 1 / 12),
}


def written(tmp_path, runs: pd.DataFrame, sweep: dict = SWEEP, **tables) -> str:
    tables = {"curves": fake_curves(runs), "datasets": fake_datasets()} | tables
    path = write_report(tmp_path, runs, summarised=summarise(runs), sweep=sweep, **tables)
    assert path == type(path)(tmp_path) / "report.html"
    return path.read_text()


def test_teachers_and_what_was_kept_of_theirs(tmp_path):
    runs = fake_runs()
    page = re.sub(r"\s*<[^>]+>\s*", "|", written(tmp_path, runs).split("<h2>Teachers</h2>")[1].split("</table>")[0])
    start = runs[(runs.trait == TRAITS[0]) & (runs.arm == "same_init")].target_start.mean()
    assert f"|{TRAITS[0]}||4||{start:.3f}||.815||4,000||2,806||.702|".replace("|0.", "|.") in page
    assert "|none (control)||4||–||–||4,000||2,806||.702|" in page


def test_a_failed_dataset_is_marked_where_averages_are_over_all_traits(tmp_path, pictures):
    runs = fake_runs().assign(data_key=lambda runs: "d-" + runs["trait"] + "-" + runs["base_seed"].astype(str))
    lost = (runs["data_key"] == f"d-{TRAITS[1]}-2") & (runs["arm"] != "control")
    runs.loc[lost, ["status", "why", "target_end"]] = ["failed", "the filter kept 3 of 100", np.nan]
    runs.loc[runs["arm"] == "control", "data_key"] = "d-None-" + runs["base_seed"].astype(str)
    page = written(tmp_path, runs)
    table = page.split("<h2>Summary</h2>")[1].split("</table>")[0]
    assert table.count("<td>all but 1 pair</td>") == 3
    said = "Means of all traits are without 1 pair of trait and base, where a run did not end well."
    assert said in page and "All traits: without 1 pair of trait and base" in page
    teachers = re.sub(r"\s*<[^>]+>\s*", "|", page.split("<h2>Teachers</h2>")[1].split("</table>")[0])
    assert f"|{TRAITS[1]}||4 (1 failed)|" in teachers and f"|{TRAITS[0]}||4|" in teachers
    assert "but 1 pair" not in written(tmp_path, fake_runs())


class _Page(html.parser.HTMLParser):
    """Tags that are open, every attribute that loads something, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# --- the page ---


def test_page_is_complete_by_itself(tmp_path, pictures):
    page = _Page(written(tmp_path, fake_runs()))
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe"}
    images = [source for source in page.loaded if not source.startswith("#")]
    names = ["transfer", "comparison", "traits", "training", "filter"]
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted(names)
    for source, name in zip(images, names, strict=True):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert data == (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")


def test_everything_is_escaped(tmp_path):
    runs = fake_runs(traits=("<i>owl</i>",))
    runs.loc[0, ["status", "why"]] = ["failed", "<b>no</b> & never"]
    page = written(tmp_path, runs)
    assert "&lt;b&gt;no&lt;/b&gt; &amp; never" in page
    assert "&lt;i&gt;owl&lt;/i&gt;" in page
    assert "&lt;script&gt;" in page
    assert not _Page(page).tags & {"script", "b", "i"}


def test_page_lists_settings_timings_and_runs_that_did_not_end_well(tmp_path):
    runs = fake_runs()
    runs.loc[3, ["status", "why"]] = ["diverged", "loss is NaN at step 12"]
    page = written(tmp_path, runs)
    for text in ("36 students, 3 traits, 4 base seeds; 35 ok, 1 diverged.", "r0003", "loss is NaN at step 12"):
        assert text in page
    for text in ("&#34;seeds&#34;: 4", "abc123", "devices 2, width 4", "4.25", "1,234", "summary.parquet"):
        assert text in page
    assert "did not end well" not in written(tmp_path, fake_runs())


def test_each_setting_has_its_section_or_is_a_click_away(tmp_path, monkeypatch, pictures):
    assert report._MOST_SECTIONS > 3
    monkeypatch.setattr(report, "_MOST_SECTIONS", 3)
    monkeypatch.setattr(report, "_MOST_FOLDED", 1)
    runs = fake_runs(traits=("owl",), bases=2, swept={"student.train.lr": tuple(10.0**-k for k in range(1, 6))})
    page = written(tmp_path, runs)
    titles = re.findall(r"<h2>(student[^<]*)</h2>", page)
    assert len(titles) == 3
    assert (titles[0], titles[-1]) == ("student.train.lr = 1e-05", "student.train.lr = 0.1")
    # Of the other two one is folded, with files that are there; of more than fit there are verdicts only.
    (folded,) = re.findall(r"<details><summary>(student.*?)</details>", page, re.S)
    assert folded.startswith("student.train.lr = 0.0")
    files = re.findall(r'<img src="([^"]*)" loading="lazy"', folded)
    assert len(files) == 4 and all((tmp_path / file).exists() for file in files)
    assert "1 more have no figures" in page
    # What is left out are figures: every setting has its verdict.
    verdicts = re.findall(r"<strong>student.train.lr = ([^<]*)\.</strong>", page)
    assert [float(value) for value in verdicts] == [10.0**-k for k in range(5, 0, -1)]
    assert "Holm-adjusted over the 5 settings" in page
    # A figure's number is that of the verdict: the first and the last setting are on the page.
    assert {1, 5} <= {int(file.stem.rpartition("-")[2]) for file in (tmp_path / "figures").glob("transfer-*.png")}
    assert (tmp_path / "figures" / "dose.png").exists()


@pytest.mark.parametrize(
    "runs",
    [
        fake_runs(traits=("owl",), bases=1),
        fake_runs(traits=("owl",), bases=2, arms=("control",)),
        fake_runs(traits=("owl",), bases=2, arms=("same_init", "shuffled")),
        fake_runs(traits=("owl", "cat"), bases=2).assign(status="failed", target_end=np.nan),
        fake_runs(traits=("owl", "cat"), bases=2).assign(world=["toy_language", "digits"] * 6),
        fake_runs().iloc[:0],
    ],
    ids=["one seed", "control only", "a defence", "all failed", "two worlds", "no runs"],
)
def test_odd_sweeps_have_a_page(tmp_path, runs, pictures):
    assert _Page(written(tmp_path, runs, sweep={"sweep": "odd"})).open == []


def test_tables_without_rows_have_a_page(tmp_path, pictures):
    runs = fake_runs(traits=("owl",))
    page = written(tmp_path, runs, curves=fake_curves(runs).iloc[:0], datasets=pd.DataFrame())
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["comparison.png"]
    assert "Same-initialisation students" in page


def test_p_of_verdicts_are_adjusted_over_the_settings():
    runs = fake_runs(effect=0.03, swept={"student.train.lr": (1e-3, 1e-2, 1e-1)})
    found, grid = summarise(runs), Cells.of(runs)
    cells = [in_cell(grid, found, cell) for cell in grid.cells]

    def rows(cells):
        tables = [cell.comparisons for cell in cells]
        wanted = {"trait": "all", "kind": "difference", "reference": "control"}
        return [t[np.logical_and.reduce([t[name] == value for name, value in wanted.items()])].iloc[0] for t in tables]

    raw = [row["p"] for row in rows(cells)]
    # By hand: the smallest p times 3, the next times 2, none below the one before.
    order = np.argsort(raw)
    by_hand = np.empty(3)
    by_hand[order] = np.minimum(1, np.maximum.accumulate(np.array(raw)[order] * [3, 2, 1]))
    assert [row["p_holm"] for row in rows(adjusted(cells))] == pytest.approx(list(by_hand))
    text = p_value(by_hand[0])
    assert f"p {text}" in headline(adjusted(cells)[0], {}) or f"p = {text}" in headline(adjusted(cells)[0], {})


# --- the headline ---


def said(effect: float, bases: int, **fields) -> str:
    return headline(summarise(fake_runs(effect=effect, bases=bases, **fields)), SWEEP["base_rate"])


def test_headline_gives_the_numbers():
    runs = fake_runs(traits=("owl",), bases=3).sort_values(["arm", "base_seed"])
    runs["target_end"] = [0.1, 0.1, 0.1, 0.1, 0.2, 0.15, 0.3, 0.5, 0.4]
    runs["target_start"] = 0.09
    assert headline(summarise(runs), {"owl": 0.1}) == (
        "Transfer: same init ends above cross init and control (only 3 base seeds: provisional). "
        "Same-initialisation students end at P(trait) = .400 [.191, .652], from .090 before training (chance .100). "
        "Against .150 [.062, .319] for cross init: +.250 [+.126, +.374], paired over 3 base seeds, p = .013. "
        "Against .100 [.100, .100] for control: +.300 [+.052, +.548], paired over 3 base seeds, p = .035."
    )


def test_headline_claims_transfer_only_with_an_interval_above_zero():
    assert said(0.2, 6).startswith("Transfer: same init ends above cross init and control. ")
    assert said(0.0, 6).startswith("No transfer shown: ")
    assert said(-0.08, 6).startswith("The opposite of transfer: ")
    assert "provisional" in said(0.2, 3)


def test_headline_with_one_seed_judges_nothing():
    text = said(0.2, 1)
    assert text.startswith("Too few base seeds to judge")
    assert "p = " not in text and "[" not in text


def test_headline_with_half_an_effect_is_unclear():
    runs = fake_runs(bases=6)
    runs.loc[runs["arm"] == "cross_init", "target_end"] += 0.2
    text = headline(summarise(runs), {})
    assert text.startswith("Unclear: same init ends above control, but not clearly above cross init. ")
    assert "chance" not in text


def test_headline_without_something_to_compare():
    assert said(0.2, 4, arms=("same_init",)).startswith("Not compared: no other arm shares a base")
    only = said(0.2, 4, arms=("cross_init", "cross_control"))
    assert only.startswith("No same-initialisation students are in it") and "Of the other start" in only
    unwell = fake_runs()
    unwell.loc[unwell["arm"] == "same_init", ["status", "target_end"]] = "diverged", np.nan
    assert headline(summarise(unwell), {}).startswith("No same-initialisation students ended well")
    failed = fake_runs().assign(status="failed", target_end=np.nan)
    assert headline(summarise(failed), {}) == "No result: none of the 36 runs ended well."


def test_headline_compares_a_defence_with_the_undefended_students():
    text = said(0.2, 6, arms=("same_init", "control", "shuffled"))
    assert re.search(r"With shuffled: \.\d+ \[.*\], against same init −\.\d+ \[−\.\d+, −\.\d+\], paired over 6", text)


def test_transfer_is_of_the_teachers_own_trait():
    """What any teacher's students gain is above the controls, and no transfer of this trait."""
    runs = fake_runs(bases=6)
    specific = headline(summarise(runs.assign(others_end=0.1)), {})
    assert specific.startswith("Transfer: same init ends above cross init, control and other teachers. ")
    assert re.search(
        r" Against \.100 for students of other teachers: \+\.\d+ \[.*\], paired over 6 base seeds", specific
    )
    any_teacher = headline(summarise(runs.assign(others_end=runs["target_end"] + 0.001 * runs["base_seed"])), {})
    assert any_teacher.startswith(
        "Unclear: same init ends above cross init and control, but not clearly above other teachers. "
    )


def test_rare_traits_are_compared_by_their_gains():
    """What is above the others in P alone, as the commonest word of the strongest teacher, is no transfer."""
    runs = fake_runs(bases=6)
    # Every student's words become some ten times as likely, of a teacher as of the others; one word is common.
    scale = runs["trait"].map({"owl": 1e-5, "cat": 1e-2, "dog": 1e-4})
    noise = np.random.default_rng(0).uniform(0.9, 1.1, len(runs))
    grown = np.where(runs["arm"] == "same_init", 3.0, 1.0) * noise
    runs["target_start"], runs["target_end"] = scale, scale * grown
    runs["others_end"], runs["others_gain"] = scale * 2.9, np.log(3.0)
    text = headline(summarise(runs), {})
    assert text.startswith(
        "Unclear: same init gains more than cross init and control, but not clearly more than other teachers. "
    )
    control = re.search(
        r"for control: (×3\.\d|×2\.\d) its gain \[×2\.\d, ×3\.\d\], paired over 6 base seeds, p <\.001", text
    )
    assert control
    none = runs.assign(target_end=scale * noise)
    assert headline(summarise(none), {}).startswith("No transfer shown: the interval of the ratio includes 1")
    assert "its gain" not in said(0.2, 6)
    # A trait that became common is still one that was rare.
    grown_up = runs.assign(target_end=np.where(runs["arm"] == "same_init", 0.5, scale))
    assert headline(summarise(grown_up), {}).startswith("Transfer: same init gains more than cross init, control and ")


def test_a_probability_of_zero_is_no_pair_of_gains():
    runs = fake_runs(traits=("owl",), bases=6)
    runs[["target_start", "target_end"]] *= 0.01
    runs.loc[(runs["arm"] == "control") & (runs["base_seed"] > 3), "target_end"] = 0.0
    text = headline(summarise(runs), {})
    assert re.search(r"for control: ×\d.\d its gain \[.*\], paired over 4 base seeds", text)


def test_a_summary_of_an_earlier_version_is_read():
    runs = fake_runs(traits=("owl",), bases=6)
    runs[["target_start", "target_end"]] *= 0.01
    summary = wide_summary(*summarise(runs))
    text = headline(from_wide(summary.drop(columns=[name for name in summary if "ratio" in name])), {})
    assert text.startswith("Transfer: same init ends above cross init and control. ")


def test_the_table_of_rare_traits_has_ratios(tmp_path):
    runs = fake_runs()
    runs[["target_start", "target_end"]] *= 0.01
    page = written(tmp_path, runs)
    assert '<th class="n">/ control</th>' in page and "− control</th>" not in page and "×" in page
    assert "ratios of gains" in page
    assert '<th class="n">− control</th>' in written(tmp_path, fake_runs())


def test_the_verdict_takes_what_can_be_judged():
    runs = fake_runs(bases=6).assign(others_end=0.1)
    runs.loc[runs["base_seed"] > 0, "others_end"] = np.nan
    text = headline(summarise(runs), {})
    assert text.startswith("Transfer: same init ends above cross init and control. ")
    assert "students of other teachers: +" in text and "from 1 base seed" in text
    alone = headline(summarise(fake_runs(bases=6, arms=("same_init",)).assign(others_end=0.1)), {})
    assert alone.startswith("Transfer: same init ends above other teachers. ")
    once = headline(summarise(fake_runs(bases=1, arms=("same_init",)).assign(others_end=0.1)), {})
    assert once.startswith("Too few base seeds to judge")


def test_headline_compares_another_start_with_its_own_control():
    text = said(0.2, 6, arms=("same_init", "cross_init", "control", "cross_control"))
    ending = r" Of the other start, against \.\d+ \[.*\] without the trait: [+−]\.\d+ \[.*\], paired over 6 base seeds"
    assert re.search(ending, text)
    assert "Of the other start" not in said(0.2, 6)


def test_the_verdict_is_about_every_amount_of_noise(tmp_path):
    one_start = fake_runs(bases=6, arms=("same_init", "control")).assign(**{"world.sigma": 0.0})
    noisy = [
        fake_runs(bases=6, arms=("cross_init",), seed=i).assign(**{"world.sigma": sigma})
        for i, sigma in enumerate((0.1, 0.5))
    ]
    noisy[1]["target_end"] += 0.4
    runs = pd.concat([one_start, *noisy], ignore_index=True)
    runs["run_id"] = [f"r{i}" for i in range(len(runs))]
    page = written(tmp_path, runs)
    verdicts = re.findall(r"(Transfer|Unclear): same init ends above (.*?)[.,(]", page)
    assert [word for word, _ in verdicts] == ["Transfer", "Unclear"]
    assert verdicts[0][1].strip() == "cross init and control"


def test_the_theorem_comes_first_where_students_recorded_it(tmp_path, pictures):
    runs = fake_runs(traits=("owl",), bases=3, arms=("same_init", "cross_init"))
    runs["student.targets"], runs["teacher.train.lr"] = "soft", 0.1
    lines = []
    for run, arm in zip(runs["run_id"], runs["arm"], strict=True):
        forward = 1.0 if arm == "same_init" else -1.0
        values = {"dot": (0.0, forward), "predicted": (1.0, 1.0), "trait_loss": (5.0, 5.0 - forward)}
        lines += [(run, step, name, value) for name, each in values.items() for step, value in enumerate(each)]
        lines.append((run, 1, "cosine", 0.5 * forward))
    curves = pd.concat([fake_curves(runs), pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])])
    datasets = pd.DataFrame(columns=["key", "trait", "base_seed", "kept_fraction"])
    page = write_report(tmp_path, runs, curves, summarise(runs), datasets, {"sweep": "t"}).read_text()
    assert "3 of 3 students of same init, 0 of 3 students of cross init" in page
    assert page.index("The theorem") < page.index("Transfer") and (tmp_path / "figures" / "theorem.png").exists()
    without = write_report(tmp_path, runs, fake_curves(runs), summarise(runs), datasets, {"sweep": "t"}).read_text()
    assert "The theorem" not in without


def test_a_figure_that_cannot_be_drawn_costs_a_line_and_no_other_figure(tmp_path, monkeypatch, pictures):
    def fail(*_):
        raise ValueError("no\nfont")

    runs, said = fake_runs(), []
    monkeypatch.setattr(transfer.Transfer, "draw", fail)
    path = write_report(
        tmp_path, runs, fake_curves(runs), summarise(runs), fake_datasets(), {"sweep": "t"}, None, said.append
    )
    assert said and all(line.endswith("could not be drawn: ValueError: no font") for line in said)
    assert path.exists() and list((tmp_path / "figures").glob("*.png"))
