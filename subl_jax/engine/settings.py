"""How a sweep is run, as opposed to what it computes. Nothing here changes a result, but for rounding (`matmul`)."""

import dataclasses
from typing import Any

from subl_jax.specs import Spec, static


@dataclasses.dataclass(frozen=True)
class Settings(Spec):
    """`config.engine`, and the tracker, of every sweep.

    devices, width, lanes_a_batch: the layout of lanes; 0 means that the engine chooses. `measure_layout` times a few
    layouts for groups estimated to run longer than `measure_above` seconds, and keeps the answer for this machine.
    `tensor` or `fsdp` devices hold one copy of a checkpoint's weights between them, for models that one device has no
    room for: the former compute the same lanes together, the latter each its own and fetch a layer's weights for it.
    `matmul`: float32 matrices are multiplied in float32, or rounded to bfloat16 first and added up in float32; auto is
    the latter on accelerators. `checkpoint_seconds` is how often a running batch of lanes is saved, `stretch_seconds`
    how long training runs on before the host looks whether it is to stop. `keep` says whose parameters stay once
    nothing is left to compute from them: of all models, of those that others build on (`teachers`), or of none
    (`curves`). `project` is W&B's PROJECT or ENTITY/PROJECT; where it is empty, WANDB_PROJECT, or else subl_jax.
    """

    devices: int = static(0, ge=0)
    width: int = static(0, ge=0)
    lanes_a_batch: int = static(0, ge=0)
    tensor: int = static(1, ge=1)
    fsdp: int = static(1, ge=1)
    matmul: str = static("auto", choices=("auto", "float32", "bfloat16"))
    measure_layout: bool = static(True)
    measure_above: float = static(600.0, ge=0.0)
    checkpoint_seconds: float = static(120.0, gt=0.0)
    stretch_seconds: float = static(4.0, gt=0.0)
    keep: str = static("all", choices=("all", "teachers", "curves"))
    tracker: str = static("wandb", choices=("wandb", "none"))
    project: str = static("")


def defaults() -> dict[str, Any]:
    """The settings as plain values, for a sweep file's config."""
    return dataclasses.asdict(Settings())
