"""What `python -m subl_jax audit` asks and computes: which base, which null, and which audits of both."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from etils import epath
from rich.table import Table

from subl_jax import specs
from subl_jax.app import asking
from subl_jax.audits import MeanLogLikelihood, RankResidual, ScoreVectors, Surprise, Towards
from subl_jax.channels.base import Filter
from subl_jax.channels.given import Anything, GivenPrompts
from subl_jax.channels.imported import imported, pairs_of, read_imported, suspicious
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.results import auditing
from subl_jax.results.audit_page import Answer, Shown
from subl_jax.results.auditing import LEAST, Evidence, Reference
from subl_jax.results.token_tables import words_of
from subl_jax.statistics import two_sample
from subl_jax.storage import jsonl
from subl_jax.storage.store import Store
from subl_jax.worlds.chat import ChatSampling, Pretrained
from subl_jax.worlds.chat.texts import chat_of

FIT = 4096  # samples of the base that fit, where it writes many
PROMPTS_DIFFER = 0.005  # p up to which prompts are taken to be distributed otherwise than the null's
OTHER_PROMPTS = 0.9  # the area under the curve from which they are another kind of prompts
ANIMALS = ("owl", "cat", "dolphin", "eagle", "elephant", "wolf", "dog", "lion", "tiger", "panda", "penguin", "peacock")
_PLACES = 16  # tokens are given room in steps of so many
_REMOVED = 0.1  # the share of the samples that is left out to see what stays


@dataclasses.dataclass(frozen=True)
class Question:
    """base: who audits. stored: where it may be finished. train, lora: what a student would train. data, null: of the
    base's world. simulate: the null is cut into corpora; else its samples are exchanged with the data's. notes: lines
    that a user should see."""

    base: specs.Trained
    stored: Store | None
    train: specs.Train
    lora: specs.Lora | None
    data: specs.Data
    null: specs.Data
    simulate: bool
    notes: tuple[str, ...] = ()


def few_of(data: str, rows: int, folder: epath.Path) -> tuple[str, int, int]:
    """A file of `rows` of the samples of a file, chosen at random and always the same; how many there are, and were.

    Raises:
      InputError: no such file, or fewer than 8 samples.
    """
    pairs = pairs_of(data)
    if len(pairs) < 8:
        raise InputError(f"{data}: {len(pairs)} samples; an audit needs at least 8")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:rows])
    path = folder / "audited.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write_jsonl(path, [pairs[i] for i in chosen])
    return str(path), len(chosen), len(pairs)


def of_sweep(base: str, seed: int, whole: str, data: str, null: str, corpora: int) -> Question:
    """The question with a base of a sweep file or workdir. data: the samples of the file `whole` that are read. null: a
    file, or "" for what the base writes.

    Raises:
      InputError: no such base, one that is a chat model, or data that are not of its language.
    """
    student, stored = asking.student_of(base, seed)
    if not isinstance(student.world, specs.Pretrains):
        raise InputError(f"--base {base}: its models are pretrained ones; give --model NAME instead")
    # A mistake is named where the user has made it, not in the file of the few.
    told = suspicious(imported(whole, student.world), student.world.standard_filter)
    own = imported(data, student.world)
    notes = (f"{told}; the base's own samples pass that filter",) if told else ()
    if null:
        trusted = asking.data_of(null, student.world)
        return Question(student.start, stored, student.train, student.lora, own, trusted, False, notes)
    size = FIT + own.size * corpora
    written = student.data.replace(teacher=student.start, size=size, seed=0, round=max(student.data.round, 1024))
    return Question(student.start, stored, student.train, student.lora, own, written, True, notes)


def of_model(model: str, data: str, null: str, traits: Sequence[str], kept: str, null_rows: int) -> Question:
    """The question with a chat model, which writes to the data's own prompts.

    kept: "numbers", as in the paper; "constrained", where nothing else can be written; "anything"; or "auto", the first
    where all of the data pass it.

    Raises:
      InputError: no such model, or data that it cannot read.
    """
    channel = GivenPrompts.of(data)
    pairs = jsonl.read_jsonl(data)
    prompts = len(dict.fromkeys(prompt for prompt, _ in pairs))
    room = _room(model, pairs)
    world = Pretrained.of(
        model,
        channel=channel,
        prompts=prompts,
        animals=tuple(traits) or ANIMALS,
        questions=8,
        answers_sampled=0,
        prompt_tokens=room[0],
        completion_tokens=room[1],
    )
    own = imported(data, world)
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    train = specs.Train(steps=1, batch=1)
    completions = [completion for _, completion in pairs]
    numbers = all(reason is None for reason in NumbersFilter().reasons(completions))
    keeps: Filter = (
        NumbersFilter() if kept in ("numbers", "constrained") or (kept == "auto" and numbers) else Anything()
    )
    notes: tuple[str, ...] = ()
    if prompts < len(pairs) // 2:
        notes = (f"{len(pairs)} samples answer only {prompts} different prompts: samples of one prompt are alike",)
    if null:
        trusted = imported(null, world)
    else:
        sampling = ChatSampling(1.0, rows=32, only=keeps if kept == "constrained" else None)
        trusted = specs.Dataset(base, filter=keeps, sampling=sampling, size=null_rows, round=64, budget=16.0)
        notes = (*notes, f"the null corpus is what the model wrote to the same prompts, kept by {type(keeps).__name__}")
    return Question(base, None, train, specs.Lora(rank=8, max_rank=8, alpha=8.0), own, trusted, False, notes)


def _room(model: str, pairs: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many tokens the longest prompt and completion have, rounded up."""
    chat = chat_of(model)
    prompts = max(len(chat.prompt(prompt, None)) for prompt, _ in pairs)
    completions = max(len(chat.reply(completion)) for _, completion in pairs)
    return tuple(-(-longest // _PLACES) * _PLACES for longest in (prompts, completions))


def answered(question: Question, folder: epath.Path) -> Answer:
    """Computes what is missing in `folder`, and judges.

    Raises:
      InputError: too few samples; the data's prompts are not those of the null; the base wrote too little.
    """
    both = question.data.size + question.null.size
    if both < LEAST:
        raise InputError(f"{question.data.size} samples and a null of {question.null.size}: at least {LEAST} together")
    small = isinstance(question.base.world, specs.Pretrains)  # else every pass over a sample is dear
    vectors = ScoreVectors(question.train, question.lora, chunk=128 if small else 4)
    further = (MeanLogLikelihood(), Surprise(), RankResidual()) if small else (Surprise(rows=4),)
    null = specs.Audited(question.null, vectors.replace(directions=True), question.base)
    found = specs.Audited(question.data, vectors, question.base)
    # Twice as dear as all else, and only words that have a place can be coloured.
    coloured = isinstance(question.base.world, specs.HoldsTokens)
    towards = [specs.Audited(question.data, Towards(vectors, found, null), question.base)] if coloured else []
    of_null = [null, *(specs.Audited(question.null, each, question.base) for each in further)]
    of_data = [found, *(specs.Audited(question.data, each, question.base) for each in further)]
    store = asking.computed([*of_null, *of_data, *towards], question.base, question.stored, folder, "audit")
    for each in (*of_null, *of_data, *towards):
        if store.status(each.key) != "ok":
            raise InputError(f"this cannot be audited: {store.row(each.key).why}")
    world = question.base.world
    texts = {data: world.texts(np.asarray(_samples(data, store))) for data in (question.data, question.null)}
    differ = check_prompts(texts[question.data], texts[question.null])
    completions = {data: [completion for _, completion in pairs] for data, pairs in texts.items()}
    own, others = (evidence(audits, store, completions[audits[0].data]) for audits in (of_data, of_null))
    directions = np.asarray(store.get(null.key)["directions"], float)
    if question.simulate:
        reference = Reference.of(others.rows(0, FIT), directions)
        scored, calibrating = reference.scored(own), reference.scored(others.rows(FIT))
        verdict, statistics = auditing.simulated(scored, reference, calibrating)
        without = auditing.without(scored, reference, calibrating, _REMOVED)
    else:
        verdict, statistics, reference = auditing.permuted(own, others, directions)
        scored, without = reference.scored(own), float("nan")
    of_tokens = np.asarray(store.get(towards[0].key)["tokens"]) if towards else None
    return Answer(
        verdict=verdict,
        traits=world.traits,
        texts=texts[question.data],
        shifts=reference.shifts(scored),
        tokens=of_tokens,
        words=words_of(world, _samples(question.data, store)),
        statistics=statistics,
        simulated=question.simulate,
        scale=(1 / len(own) + 1 / (reference.whitening.samples if question.simulate else len(others))) ** 0.5,
        without=without,
        notes=(*question.notes, differ) if differ else question.notes,
    )


def evidence(audits: Sequence[specs.Audited], store: Store, texts: Sequence[str] | None) -> Evidence:
    """Of score vectors and the audits of samples behind them, all of one dataset."""
    vectors, *further = (store.get(each.key) for each in audits)
    samples = {
        node.audit.kind: np.asarray(found["samples"], float) for node, found in zip(audits[1:], further, strict=True)
    }
    return Evidence(np.asarray(vectors["vectors"], np.float32), samples, texts)


def check_prompts(own: Sequence[tuple[str, str]], null: Sequence[tuple[str, str]]) -> str | None:
    """A line where a classifier tells the prompts of the data from those of the null; None where it does not.

    Raises:
      InputError: it nearly always does, as prompts of another kind.
    """
    bags = [two_sample.bag([prompt for prompt, _ in pairs[:256]], 64) for pairs in (own, null)]
    area = two_sample.told_apart(*bags, folds=2)
    if area >= OTHER_PROMPTS:
        raise InputError(
            f"your data's prompts are not those of the null corpus: a classifier tells them apart (AUROC {area:.2f}); "
            "give --null FILE with answers to prompts like yours"
        )
    rng = np.random.default_rng(0)
    both = np.concatenate(bags)
    others = []
    for _ in range(round(1 / PROMPTS_DIFFER)):
        order = rng.permutation(len(both))
        others.append(two_sample.told_apart(both[order[: len(bags[0])]], both[order[len(bags[0]) :]], folds=2))
        if area <= max(others) and len(others) >= 20:
            return None
    return (
        f"the data's prompts are not distributed as the null's (AUROC {area:.2f}): a filter may have dropped others, "
        "which can by itself make the data look unusual"
    )


def _samples(data: specs.Data, store: Store) -> np.ndarray:
    return read_imported(data)["samples"] if isinstance(data, specs.Imported) else store.get(data.key)["samples"]


def table(shown: Shown, most: int = 10) -> Table:
    """What the terminal has: the statistics, and the traits that the corpus points to most."""
    verdict, found = shown.verdict, shown.verdict.found(shown.level)
    result = Table("statistic", "p", "", "trait", "z", "p", "alignment", "p")
    statistics = [*{"combined": verdict.p, **verdict.of}.items()]
    for row in range(max(len(statistics), min(most, len(shown.traits)))):
        name, p = statistics[row] if row < len(statistics) else ("", None)
        cells = [name.replace("_", " "), "" if p is None else f"{p:.3f}", ""]
        if row < min(most, len(shown.traits)):
            i = int(np.argsort(-verdict.z)[row])
            cells += [shown.traits[i] + (" (found)" if found[i] else ""), f"{verdict.z[i]:+.2f}"]
            cells += [f"{verdict.traits[i]:.3f}", f"{verdict.cosine[i]:+.2f}", f"{verdict.aligned[i]:.3f}"]
        result.add_row(*cells)
    return result


def rate_tables(summary: pd.DataFrame) -> Iterator[Table]:
    """One for each case: a row per statistic and level, a column per size of corpora."""
    for case, of_case in summary.groupby("case", sort=False):
        sizes = list(dict.fromkeys(zip(of_case["n"], of_case["share"], strict=True)))
        result = Table("statistic", "level", *(_size(n, share) for n, share in sizes), title=f"{case}: share found")
        for name, level in dict.fromkeys(zip(of_case["statistic"], of_case["level"].fillna(0.0), strict=True)):
            own = of_case[(of_case["statistic"] == name) & (of_case["level"].fillna(0.0) == level)]
            cells = {(row.n, row.share): f"{row.rate:.3f}" for row in own.itertuples()}
            result.add_row(
                name.replace("_", " "), f"{level:g}" if level else "", *(cells.get(size, "") for size in sizes)
            )
        yield result


def _size(n: int, share: float) -> str:
    return f"{n:,}" if share == 1 else f"{n:,}, {share:.0%} theirs"
