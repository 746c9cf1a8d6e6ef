"""Audits that look at the data with a second model, one that is suspected to be behind them."""

import dataclasses
from typing import Any

from subl_jax.errors import InputError
from subl_jax.specs import Audit, Node, Trained, static


@dataclasses.dataclass(frozen=True)
class OfSuspect(Audit):
    """An audit with `model`: the teacher, or a student, beside the model that they come from."""

    model: Trained = static()

    @property
    def suspect(self) -> Trained:
        return self.model

    def inputs(self, audited: Any) -> dict[str, Node]:
        return {"model": self.model}

    def check_audited(self, audited: Any) -> None:
        check_world(f"{type(self).__name__}.model", self.model, audited)


def check_world(where: str, model: Trained, audited: Any) -> None:
    """Raises InputError where a model is of another world than the auditing one."""
    if model.world != audited.world:
        raise InputError(f"{where}: is of another world than Audited.by; their tokens do not mean the same")
