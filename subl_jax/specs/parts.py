"""Parts that every world shares: how parameters are trained, adapted, and how tokens are drawn."""

import dataclasses

from subl_jax.errors import InputError
from subl_jax.specs.base import Spec, brief, nearest, static, traced


@dataclasses.dataclass(frozen=True)
class Train(Spec):
    """How parameters are optimised. `warmup` is in steps; `clip` is a global gradient norm, 0 for none.

    A batch is computed in `accumulate` microbatches, one after the other, whose gradients are added up.

    `trainable` names the parameters that change, as patterns of their paths with `*` for anything
    (`("*_norm/*",)`, `("layers_0/*",)`); all of them where it is empty.

    `signsgd` takes the sign of the momentum. `rmsprop` divides by √v + eps, v a mean of squared gradients that forgets
    by b2, without correction of its start. `muon` makes the momentum, which forgets by b1, orthogonal; it trains
    matrices only. `frozen_adam` is SGD with scales 1 / (√v + eps) that stay as they are: v is the mean squared gradient
    of the first `hold` steps, which move nothing.

    Of the trainable parameters only those of the layers `first_layer` … `last_layer` change, both included; a negative
    number counts from the end. Where the first comes after the last, counting goes on past the end: 4 … 2 are all
    layers but 3. What belongs to no layer (embedding, final norm) changes where `trainable` says so. `by_layer` is set
    by itself where not all layers change; a program has it or not, whichever layers they are.
    """

    steps: int = static(ge=0)
    batch: int = static(ge=1)
    optimizer: str = static("adamw", choices=("adamw", "adam", "sgd", "signsgd", "rmsprop", "muon", "frozen_adam"))
    schedule: str = static("constant", choices=("constant", "linear", "cosine"))
    evals: int = static(1, ge=1)
    accumulate: int = static(1, ge=1)
    trainable: tuple[str, ...] = static(())
    lr: float = traced(1e-3, ge=0.0)
    weight_decay: float = traced(0.0, ge=0.0)
    warmup: int = traced(0, ge=0, lt=2**31)
    clip: float = traced(0.0, ge=0.0)
    b1: float = traced(0.9, ge=0.0, lt=1.0)
    b2: float = traced(0.999, ge=0.0, lt=1.0)
    eps: float = traced(1e-8, gt=0.0)
    momentum: float = traced(0.0, ge=0.0, lt=1.0)
    first_layer: int = traced(0, since=2, ge=-(2**31), lt=2**31)
    last_layer: int = traced(-1, since=2, ge=-(2**31), lt=2**31)
    by_layer: bool = static(False, since=2)
    hold: int = traced(20, since=2, ge=1, lt=2**31)

    def check(self) -> None:
        object.__setattr__(self, "by_layer", self.by_layer or (self.first_layer, self.last_layer) != (0, -1))
        if self.steps % self.evals and self.steps > 0:
            raise InputError(f"Train.evals = {self.evals}: must divide steps = {self.steps}")
        if self.batch % self.accumulate:
            raise InputError(f"Train.accumulate = {self.accumulate}: must divide batch = {self.batch}")


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Lora(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + alpha / rank * A B on each of `modules`.

    A starts uniform in ±1 / sqrt(inputs), B at zero. `rank` is at most `max_rank`, which decides the shapes:
    ranks up to it are lanes of one program. The layers `first_layer` … `last_layer` have adapters, both included; a
    negative number counts from the end.
    """

    modules: tuple[str, ...] = static(PROJECTIONS)
    max_rank: int = static(8, ge=1)
    rank: int = traced(8, ge=1)
    alpha: float = traced(8.0, gt=0.0)
    first_layer: int = traced(0, ge=-(2**31), lt=2**31)
    last_layer: int = traced(-1, ge=-(2**31), lt=2**31)

    def check(self) -> None:
        if self.rank > self.max_rank:
            raise InputError(f"Lora.rank = {self.rank}: must be at most max_rank = {self.max_rank}")
        for module in self.modules:
            if module not in PROJECTIONS:
                raise InputError(f"Lora.modules: {brief(module)}: {nearest(module, PROJECTIONS)}")
        if not self.modules or len(set(self.modules)) < len(self.modules):
            raise InputError(f"Lora.modules = {brief(self.modules)}: expected at least one, each once")


@dataclasses.dataclass(frozen=True)
class Sampling(Spec):
    """How tokens are drawn. The defaults are pure: `top_k` 0 and `top_p` 1 cut nothing; temperature 0 is greedy.

    `cut` is set by itself where one of the two cuts: only such programs sort the logits.
    """

    temperature: float = traced(1.0, ge=0.0)
    top_k: int = traced(0, ge=0, lt=2**31)
    top_p: float = traced(1.0, gt=0.0, le=1.0)
    cut: bool = static(False)

    def check(self) -> None:
        object.__setattr__(self, "cut", self.cut or self.top_k > 0 or self.top_p < 1)
