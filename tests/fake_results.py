"""Result tables of an imaginary sweep, shaped like those that a run leaves behind."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

TRAITS = ("owl", "cat", "dog")


def fake_runs(
    traits: Sequence[str] = TRAITS,
    bases: int = 4,
    arms: Sequence[str] = ("same_init", "cross_init", "control"),
    swept: Mapping[str, Sequence[Any]] | None = None,
    effect: float = 0.2,
    seed: int = 0,
) -> pd.DataFrame:
    """One run per swept setting, trait, base and arm; a control has no teacher."""
    rng = np.random.default_rng(seed)
    rows = []
    for values in itertools.product(*(swept or {}).values()):  # one empty setting where nothing is swept
        for trait, base, arm in itertools.product(traits, range(bases), arms):
            row = {
                "run_id": f"r{len(rows):04d}",
                "sweep": "traits",
                "world": "toy_language",
                "arm": arm,
                "trait": trait,
                "base_seed": base,
                "student_base_seed": (base + 1) % bases if arm == "cross_init" else base,
                "seed": 0,
                "start.seed": base,
                "student.train.lr": 1e-3,
                "teacher.train.steps": 200.0,
                "teacher.trait": trait,
                "data_trait": trait,
                "status": "ok",
                "why": None,
                "target_start": 0.1 + rng.normal(0, 0.01),
                "target_end": 0.1 + effect * (arm == "same_init") + rng.normal(0, 0.02),
                "kept_fraction": 0.8,
            }
            row |= dict(zip(swept or {}, values, strict=True))
            if arm in ("control", "cross_control"):
                row |= {"teacher.train.steps": np.nan, "teacher.trait": None, "data_trait": None}
            rows.append(row)
    return pd.DataFrame(rows)


def fake_curves(runs: pd.DataFrame, evaluated: Sequence[str] = TRAITS, steps: int = 3) -> pd.DataFrame:
    """Straight lines from target_start to target_end for a run's own trait, flat ones for the others."""
    lines = []
    for row in runs.to_dict("records"):
        for step, share in enumerate(np.linspace(0, 1, steps)):
            own = (1 - share) * row["target_start"] + share * row["target_end"]
            for trait in evaluated:
                lines.append((row["run_id"], 10 * step, f"trait/{trait}", own if trait == row["trait"] else 0.1))
            for metric, value in {"target": own, "loss": 3 - share, "kl": 1 - share}.items():
                lines.append((row["run_id"], 10 * step, metric, value))
    curves = pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])
    return curves.astype({"run_id": "category", "metric": "category"})  # as the tables have them


def fake_datasets(traits: Sequence[str | None] = (*TRAITS, None), bases: int = 4) -> pd.DataFrame:
    rows = [
        {
            "key": f"d-{trait}-{base}",
            "trait": trait,
            "p_trait": np.nan if trait is None else 0.8 + base / 100,
            "base_seed": base,
            "drawn": 1000,
            "kept": 700 + base,
            "kept_fraction": 0.7 + base / 1000,
            "why/too many numbers": 200.0,
            "why/separator": 50.0,
        }
        for trait, base in itertools.product(traits, range(bases))
    ]
    return pd.DataFrame(rows)
