"""Views of a W&B project, and a report of a finished sweep, through `wandb-workspaces`.

Everything is asked of what the tracker sends: `target` and its like by `student/step`, grouped by the config's `arm`.
"""

from collections.abc import Iterable, Iterator

import pandas as pd
import wandb
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr

from subl_jax.errors import InputError
from subl_jax.results.findings import findings
from subl_jax.results.load import Results
from subl_jax.specs.metrics import OFF_DIAGONAL, OVER_CHANCE, TARGET
from subl_jax.tracking.sweep_run import STEP as SWEEP_STEP
from subl_jax.tracking.wandb_client import logged_in
from subl_jax.tracking.wandb_place import Place, fitting

_STUDENTS = "student/step"
_ARM = reports.Config("arm")
_MOST_RUNS = 1000
_MOST_ROWS = 40  # of a table in the report
_OF_SWEEP = expr.Metric("JobType") == "sweep"
_OF_STUDENTS = expr.Metric("JobType") != "sweep"


def save(place: Place, results: Results | None = None) -> dict[str, str]:
    """Saves the views, and a report of `results`; name → address.

    Raises:
      InputError: nobody is logged in, or no entity is known.
    """
    wandb.setup(wandb.Settings(silent=True))
    if not logged_in(wandb):
        raise InputError("W&B: nobody is logged in; run `wandb login`, or set WANDB_API_KEY")
    entity = place.entity or wandb.Api().default_entity
    if not entity:
        raise InputError("W&B: no entity is known; give --project ENTITY/PROJECT")
    place = place._replace(entity=entity)
    saved = {}
    for view in views(place):
        view.save()
        saved[view.name] = view.url
    if results is not None:
        page = report(place, results)
        page.save()
        saved[page.title] = page.url
    return saved


def views(place: Place) -> list[workspaces.Workspace]:
    """One view a question. `place` has an entity."""
    made = {
        "Transfer by arm": ("Transfer", transfer_panels(), _OF_STUDENTS, _STUDENTS),
        "Comparison": ("Comparison", comparison_panels(), _OF_STUDENTS, _STUDENTS),
        "Retention": ("Retention", retention_panels(), _OF_STUDENTS, _STUDENTS),
        "Throughput": ("Throughput", throughput_panels(), _OF_SWEEP, SWEEP_STEP),
    }
    return [
        workspaces.Workspace(
            entity=place.entity,
            project=place.project,
            name=name,
            sections=[workspaces.Section(name=section, panels=panels, is_open=True)],
            settings=workspaces.WorkspaceSettings(x_axis=axis, max_runs=_MOST_RUNS, group_by_prefix="first"),
            runset_settings=workspaces.RunsetSettings(
                filters=expr.And(kind),
                groupby=[] if kind is _OF_SWEEP else [expr.Config("arm")],
                pinned_columns=["run:displayName", "config:arm.value", "config:trait.value", "summary:target_end"],
            ),
        )
        for name, (section, panels, kind, axis) in made.items()
    ]


def transfer_panels() -> list[reports.LinePlot]:
    """All arms in one plot, over all traits: means with bands over the runs, that is over seeds and traits."""
    return [
        _curve("P(the run's own trait) by arm, all traits", TARGET, 0),
        _curve("P(trait) over chance, by arm", OVER_CHANCE, 1),
        _curve("P of the other teachers' traits, by arm", OFF_DIAGONAL, 2),
        _curve("KL to the teacher, by arm", "training/kl", 3),
        _curve("Loss, by arm", "training/loss", 4),
    ]


def comparison_panels() -> list[reports.BarPlot]:
    """The ends of the arms beside each other, and each trait's."""
    return [
        _bars("P(trait) after training, by arm", "target_end", "arm", 0),
        _bars("P(trait) before training, by arm", "target_start", "arm", 1),
        _bars("P of the other teachers' traits after training, by arm", OFF_DIAGONAL, "arm", 2),
        _bars("P(trait) after training, by trait", "target_end", "trait", 3),
    ]


def retention_panels() -> list[reports.LinePlot | reports.BarPlot | reports.ScatterPlot]:
    """What a defence leaves of the transfer, and what it costs: every arm's gain, and against the loss and the KL."""
    return [
        _bars("P(trait) over chance after training, by arm", OVER_CHANCE, "arm", 0),
        _scatter("What is left of the trait against the loss", "training/loss", 1),
        _scatter("What is left of the trait against the KL to the teacher", "training/kl", 2),
        _curve("How the trait is kept while training goes on, by arm", OVER_CHANCE, 3),
    ]


def throughput_panels() -> list[reports.LinePlot]:
    """The sweeps' own runs: what each group of lanes took."""
    names = {
        "lane_steps_per_second": "Steps a second of all students together, by stage",
        "ceiling_percent": "Per cent of the machine's largest matrix product, by stage",
        "run_seconds": "Seconds of computing, by stage",
        "compile_seconds": "Seconds of compiling, by stage",
    }
    return [
        reports.LinePlot(
            title=title, x=SWEEP_STEP, metric_regex=f"groups/.*/{name}", max_runs_to_show=_MOST_RUNS, layout=_layout(i)
        )
        for i, (name, title) in enumerate(names.items())
    ]


def report(place: Place, results: Results) -> reports.Report:
    """The report of a finished sweep: its findings, the curves of its runs, its tables. `place` has an entity."""
    sweep = results.sweep["sweep"]
    runs = reports.Runset(
        entity=place.entity,
        project=place.project,
        name=sweep,
        filters=expr.And(expr.Metric("Group") == fitting(sweep), _OF_STUDENTS),
    )
    own = reports.Runset(
        entity=place.entity,
        project=place.project,
        name=f"{sweep}: sweep",
        filters=expr.And(expr.Metric("Group") == fitting(sweep), _OF_SWEEP),
    )
    media = [f"figures/{path.stem}" for path in sorted((results.workdir / "figures").glob("*.png"))]
    figures = reports.MediaBrowser(title="Figures", media_keys=media, num_columns=1, layout=_layout(0, wide=True))
    blocks = [
        *_said(findings(results)),
        reports.H2(text="Transfer"),
        reports.PanelGrid(runsets=[runs], panels=transfer_panels()),
        reports.H2(text="Comparison"),
        reports.PanelGrid(runsets=[runs], panels=comparison_panels()),
        *([reports.H2(text="Figures"), reports.PanelGrid(runsets=[own], panels=[figures])] if media else []),
        reports.H2(text="Arms"),
        reports.MarkdownBlock(text=markdown(results.summary)),
        reports.H2(text="Throughput"),
        reports.PanelGrid(runsets=[own], panels=throughput_panels()),
    ]
    description = f"{len(results.runs):,} students; {results.sweep.get('started', '')}"
    return reports.Report(
        entity=place.entity, project=place.project, title=fitting(sweep), description=description, blocks=blocks
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, numbers to three digits, its first rows."""

    def text(value: object) -> str:
        if value is None or value != value:
            return ""
        return (f"{value:.3g}" if isinstance(value, float) else str(value)).replace("|", "\\|")

    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += [[text(value) for value in row] for row in table.head(_MOST_ROWS).itertuples(index=False)]
    left = len(table) - _MOST_ROWS
    more = f"\n\n{left:,} more rows are in summary.parquet" if left > 0 else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _said(found: Iterable[tuple[str, str]]) -> Iterator[reports.H2 | reports.P]:
    for name, line in found:
        if name:
            yield reports.H2(text=name)
        yield reports.P(text=line)


def _curve(title: str, metric: str, place: int) -> reports.LinePlot:
    return reports.LinePlot(
        title=title,
        x=_STUDENTS,
        y=[metric],
        groupby=_ARM,
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=_MOST_RUNS,
        layout=_layout(place),
    )


def _bars(title: str, metric: str, by: str, place: int) -> reports.BarPlot:
    return reports.BarPlot(
        title=title,
        metrics=[metric],
        groupby=reports.Config(by),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=_MOST_RUNS,
        orientation="v",
        layout=_layout(place),
    )


def _scatter(title: str, against: str, place: int) -> reports.ScatterPlot:
    x, y = reports.SummaryMetric(against), reports.SummaryMetric(OVER_CHANCE)
    return reports.ScatterPlot(title=title, x=x, y=y, layout=_layout(place))


def _layout(place: int, wide: bool = False) -> reports.Layout:
    """Two panels a row of the 24 columns; the first alone in its row."""
    if place == 0:
        return reports.Layout(x=0, y=0, w=24, h=16 if wide else 12)
    row, column = divmod(place - 1, 2)
    return reports.Layout(x=12 * column, y=12 + 10 * row, w=12, h=10)
