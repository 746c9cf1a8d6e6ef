"""Which tokens carry a trait? Detectors of tokens, and what is left when what they find is masked, kept or exchanged.

Each detector scores every token of a teacher's data; students train without the tokens that score highest, on these
alone, or on data in which they are others. Every selection is applied to the control's data as well (`… on control`),
since to select by what a teacher likes is a signal itself. Parts, of which `--config.grids` takes any:

    `:full`       four detectors, a tenth of the tokens masked or kept
    `:detectors`  three more
    `:shares`     the four with other shares
    `:edits`      tokens erased, or exchanged as label, input or both; and those that score lowest
    `:all`        these four: in one --workdir, what the others have computed is not computed again
    `:banned`     the ten most telling numbers of each teacher are filtered out, against ten others
    `:smoke`      shows only that everything works

The tables of tokens and positions, and the overlap of detectors: `python -m subl_jax tokens WORKDIR`.
"""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from subl_jax import audits, specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.objectives import Erased, Hard, Replaced, Weighted
from subl_jax.transforms import WithoutNumbers
from subl_jax.worlds.toy_language import ToyLanguage

# Detector → the audit, from a teacher, the teachers of other traits, and the student of all tokens.
Of = Callable[[specs.Teacher, tuple[specs.Teacher, ...], specs.Student], specs.Audit]
DETECTORS: dict[str, Of] = {
    "kl": lambda teacher, others, student: audits.PositionKl(teacher),
    "divergence": lambda teacher, others, student: audits.Divergence(teacher, others),
    "entropy": lambda teacher, others, student: audits.Entropy(),
    "random": lambda teacher, others, student: audits.RandomTokens(),
    "log_ratio": lambda teacher, others, student: audits.LogRatio(teacher),
    "log_ratio_student": lambda teacher, others, student: audits.LogRatio(student),
    "gradient_cosine": lambda teacher, others, student: audits.GradientCosine(teacher.trait, teacher.train.trainable),
}

# Intervention → the objective, from the scores and a share of the tokens.
INTERVENTIONS: dict[str, Callable[[specs.Audited, float], specs.Objective]] = {
    "mask": lambda scores, share: Weighted(Hard(), scores, "top", False, share),
    "keep": lambda scores, share: Weighted(Hard(), scores, "top", True, share),
    "mask_bottom": lambda scores, share: Weighted(Hard(), scores, "bottom", False, share),
    "keep_bottom": lambda scores, share: Weighted(Hard(), scores, "bottom", True, share),
    "erase": lambda scores, share: Erased(Hard(), scores, "top", share),
    "label": lambda scores, share: Replaced(Hard(), scores, "top", "label", share),
    "input": lambda scores, share: Replaced(Hard(), scores, "top", "input", share),
    "both": lambda scores, share: Replaced(Hard(), scores, "top", "both", share),
}

# Name → detectors × interventions × shares.
GRIDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]] = {
    "tenth": (("kl", "divergence", "log_ratio", "random"), ("mask", "keep"), (0.1,)),
    "detectors": (("entropy", "log_ratio_student", "gradient_cosine"), ("mask", "keep"), (0.1,)),
    "shares": (("kl", "divergence", "log_ratio", "random"), ("mask", "keep"), (0.03, 0.3, 0.6)),
    "edits": (("kl", "log_ratio", "random"), ("erase", "label", "input", "both"), (0.1,)),
    "bottom": (("kl", "log_ratio"), ("mask_bottom", "keep_bottom"), (0.1,)),
    "few": (("kl", "log_ratio", "gradient_cosine"), ("mask", "keep", "both", "erase"), (0.1, 0.5)),
}
SIZES: dict[str, tuple[str, ...]] = {
    **{"full": ("tenth",), "detectors": ("detectors",), "shares": ("shares",), "edits": ("edits", "bottom")},
    **{"all": ("tenth", "detectors", "shares", "edits", "bottom"), "banned": (), "smoke": ("few",)},
}


def get_config(size: str = "full") -> ConfigDict:
    if size not in SIZES:
        raise InputError(f"sweeps/tokens.py:{size}: one of {', '.join(SIZES)}")
    config = ConfigDict()
    config.grids, config.banned = SIZES[size], 10 if size == "banned" else 0
    config.seeds, config.first_seed = 16, 0
    config.traits = ("owl", "fox", "oak", "willow")
    config.world = ConfigDict({"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    config.trainable = ("*_norm/*",)
    config.teacher = ConfigDict({"steps": 200, "batch": 64, "lr": 1e-2, "evals": 20})
    config.until = 0.5
    config.data = ConfigDict({"size": 8192, "round": 2048, "budget": 8.0})
    config.temperature = 1.0  # of the data's sampling; 0 is greedy
    config.student = ConfigDict({"steps": 400, "batch": 128, "lr": 1e-2, "schedule": "cosine", "evals": 2})
    if size == "smoke":
        config.seeds, config.traits = 2, ("owl", "oak")
        config.base.steps, config.teacher.steps, config.teacher.evals = 300, 40, 2
        config.data.size, config.data.round = 512, 512
        config.student.steps = 40
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Row]:
    for name in config.grids:
        if name not in GRIDS:
            raise InputError(f"config.grids: {name!r}: {specs.nearest(name, GRIDS)}")
    if len(config.traits) < 2:
        raise InputError("config.traits: divergence tokens need teachers of at least two traits")
    world = ToyLanguage(**config.world)
    pretrain = specs.Train(**config.base)
    instil, distil = (specs.Train(trainable=config.trainable, **config[name]) for name in ("teacher", "student"))
    writing = {"filter": NumbersFilter(), "sampling": specs.Sampling(config.temperature), **config.data}
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        base = specs.Base(world, pretrain, seed=seed)
        plain = specs.Dataset(base, **writing)
        teachers = {trait: specs.Teacher(base, trait, instil, until=config.until) for trait in config.traits}
        for trait, teacher in teachers.items():
            others = tuple(other for name, other in teachers.items() if name != trait)
            written = specs.Dataset(teacher, **writing)
            learnt = specs.Student(base, written, distil)
            yield learnt
            yield specs.Student(base, plain, distil, trait=trait)

            def scores(detector: str, data: specs.Data, of=(teacher, others, learnt)) -> specs.Audited:  # noqa: ANN001
                return specs.Audited(data, DETECTORS[detector](*of), of[0].start)

            yield from selected(config, scores, written, learnt, trait)
            yield from selected(config, scores, plain, learnt, trait, " on control")
            if config.banned:
                yield from banned(config, scores("log_ratio", written), learnt, plain, trait)


def selected(
    config: ConfigDict,
    scores: Callable[[str, specs.Data], specs.Audited],
    data: specs.Data,
    learnt: specs.Student,
    trait: str,
    where: str = "",
) -> Iterator[specs.Row]:
    """The students of `data` of every grid, and the scores that chose their tokens."""
    found = {}
    for detectors, interventions, shares in (GRIDS[name] for name in config.grids):
        for detector in detectors:
            found[detector] = scores(detector, data)
            for intervention in interventions:
                for share in shares:
                    objective = INTERVENTIONS[intervention](found[detector], share)
                    changes = {"data": data, "objective": objective, "trait": trait}
                    yield learnt.replace(**changes, arm=f"{detector}{where}")
    yield from found.values()


def banned(
    config: ConfigDict, scores: specs.Audited, learnt: specs.Student, plain: specs.Data, trait: str
) -> Iterator[specs.Row]:
    """Students of data without the most telling numbers of the teacher, or without others."""
    yield scores
    for numbers in ("telling", "random"):
        without = WithoutNumbers(scores, numbers, config.banned)
        for data, where in ((learnt.data, ""), (plain, " on control")):
            filtered = specs.Transformed((data,), without)
            yield learnt.replace(data=filtered, trait=trait, arm=f"without_{numbers}{where}")
