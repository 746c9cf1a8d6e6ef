"""Specs: equality is identity is the key, mistakes are one line, and programs see what they may see and no more."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import TRAIN, WORLD, base, dataset, plain, student, teacher
from tiny_world import LORA, READ
from tiny_world import base as tiny_base

from subl_jax import specs
from subl_jax.audits import MeanLogLikelihood
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.objectives import Soft
from subl_jax.probes import Theorem
from subl_jax.specs import Train
from subl_jax.transforms import Pool, ShuffleNumbers, SortNumbers
from subl_jax.worlds.toy_language import ToyLanguage

STREAM = specs.Stream(teacher(), NumbersFilter())
IMPORTED = specs.Imported(of=WORLD, sha256="ab", size=8, path="numbers.jsonl")
CHAIN = student(data=dataset(teacher(student(base(1)), "oak")))
TUNED = student(READ, dataset(teacher(READ, lora=LORA)), lora=LORA)
TOLD = student(READ, dataset(specs.Prompted(READ, "cat")), lora=LORA)
EXAMPLES = {
    "base": base(),
    "teacher": teacher(),
    "dataset": dataset(),
    "student": student(),
    "stream": student(data=STREAM),
    "imported": student(data=IMPORTED, trait="owl"),
    "control": student(data=plain(), arm="control", trait="owl"),
    "chain": CHAIN,
    "world": WORLD,
    "train": TRAIN,
    "sampling": specs.Sampling(),
    "filter": NumbersFilter(),
    "lora": LORA,
    "prompted": specs.Prompted(READ, "owl"),
    "prompted without a trait": specs.Prompted(READ, None),
    "by adapters": TUNED,
    "of a told teacher": TOLD,
}
TINY = tiny_base()
# Another value of every field, so that each is seen to count; a new field without one fails a test below.
OTHER = {
    Train: {
        **{"steps": 8, "batch": 3, "optimizer": "sgd", "schedule": "cosine", "evals": 4, "lr": 0.5, "clip": 1.0},
        **{"weight_decay": 0.1, "warmup": 1, "b1": 0.8, "b2": 0.99, "eps": 1e-6, "momentum": 0.9},
        **{"trainable": ("embed/*",), "accumulate": 2, "first_layer": 1, "last_layer": 0, "by_layer": True},
        "hold": 5,
    },
    specs.Lora: {
        **{"modules": ("q", "v"), "max_rank": 16, "rank": 4, "alpha": 16.0, "first_layer": 1, "last_layer": 3},
    },
    specs.Base: {"of": ToyLanguage(), "train": TRAIN.replace(lr=0.1), "seed": 1},
    specs.Teacher: {
        **{"start": READ.replace(seed=1), "trait": "oak", "train": TRAIN.replace(lr=0.1), "until": 0.5, "seed": 1},
        **{"lora": LORA},
    },
    specs.Prompted: {"start": READ.replace(seed=1), "trait": "oak"},
    specs.Sampling: {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "cut": True},
    specs.Dataset: {
        **{"teacher": base(), "size": 9, "filter": NumbersFilter(max_count=3), "round": 9, "budget": 2.0, "seed": 1},
        **{"sampling": specs.Sampling(0.5)},
    },
    specs.Imported: {"of": ToyLanguage(), "sha256": "cd", "size": 9, "path": "other.jsonl"},
    specs.Stream: {
        **{"teacher": base(), "filter": NumbersFilter(max_count=3), "sampling": specs.Sampling(0.5), "distinct": 9},
    },
    specs.Mix: {"start": base(1), "other": base(2), "keep": ("embed/*",), "sigma": 0.5, "seed": 1},
    specs.Student: {
        **{"start": READ.replace(seed=1), "data": dataset(teacher(READ), seed=1), "train": TRAIN.replace(lr=0.1)},
        **{"targets": "hard", "lora": LORA},
        **{"samples": 4, "seed": 1, "arm": "mine", "trait": "oak", "theory": "oak"},
        **{"objective": None, "probes": (Theorem("oak"),)},
    },
    specs.Transformed: {"sources": (dataset(seed=1),), "transform": SortNumbers(), "size": 4, "seed": 1},
    specs.Audited: {
        **{"data": dataset(seed=1), "audit": MeanLogLikelihood("likely"), "by": teacher()},
        **{"null": (dataset(seed=2),), "seed": 1},
    },
}
# An objective is what `targets` says in another way, so the two are tried together (test_objectives.py).
FIELDS = [(cls, name) for cls, fields in OTHER.items() for name in fields if name != "objective"]
BEGIN = {
    **{Train: TRAIN, specs.Base: base(), specs.Teacher: teacher(READ), specs.Sampling: specs.Sampling()},
    **{specs.Lora: specs.Lora(), specs.Prompted: specs.Prompted(READ, "owl")},
    **{
        specs.Dataset: dataset(),
        specs.Imported: IMPORTED,
        specs.Stream: STREAM,
        specs.Student: student(READ, dataset(teacher(READ)), targets="soft"),
        specs.Transformed: specs.Transformed((dataset(),), ShuffleNumbers()),
        specs.Audited: specs.Audited(dataset(), MeanLogLikelihood(), base()),
    },
    specs.Mix: specs.Mix(base()),
}


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# --- identity ---


def test_every_field_of_the_shared_specs_has_a_role_and_is_tried_here():
    for cls, fields in OTHER.items():
        assert fields.keys() == specs.roles(cls).keys()
        assert set(specs.roles(cls).values()) <= {"static", "traced", "host", "label"}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_field_but_a_label_is_part_of_the_identity(cls, name):
    before = BEGIN[cls]
    after = before.replace(**{name: OTHER[cls][name]})
    label = specs.roles(cls)[name] == "label"
    assert (before == after) is label
    assert (before.key == after.key) is label
    assert (hash(before) == hash(after)) is label


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_json_gives_the_same_spec_back(example):
    form = json.loads(json.dumps(specs.to_json(example)))
    back = specs.from_json(form)
    assert back == example and back.key == example.key
    assert specs.to_json(back) == specs.to_json(example)  # labels too


trains = st.builds(
    Train,
    steps=st.sampled_from([0, 4, 8]),
    batch=st.sampled_from([1, 2, np.int64(2)]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    evals=st.sampled_from([1, 2]),
    lr=st.sampled_from([0, 0.0, -0.0, 1, 1.0, np.float32(1), 1e-3]),
    warmup=st.sampled_from([0, 1]),
)


@given(trains, trains)
@settings(deadline=None, max_examples=200)
def test_equal_specs_and_only_they_have_one_key(a, b):
    assert (a == b) == (a.key == b.key)
    assert a != b or hash(a) == hash(b)
    nested = [student(train=train) for train in (a, b)]
    assert (nested[0] == nested[1]) == (nested[0].key == nested[1].key) == (a == b)


@given(st.integers(2, 2000), st.lists(st.integers(0, 99), max_size=5))
@settings(deadline=None, max_examples=30)
def test_how_a_value_is_written_makes_no_difference(size, banned):
    one = dataset(size=size, budget=2, filter=NumbersFilter(banned=banned))
    other = dataset(size=np.int32(size), budget=np.float64(2.0), filter=NumbersFilter(banned=tuple(banned[::-1])))
    assert one == other and one.key == other.key
    assert type(one.budget) is float and type(other.size) is int
    assert TRAIN.replace(lr=0).key == TRAIN.replace(lr=-0.0).key == TRAIN.replace(lr=np.float32(0)).key


def test_a_version_is_part_of_the_keys_of_all_that_builds_on_it(monkeypatch):
    fresh = [specs.from_json(specs.to_json(spec)) for spec in (student(), dataset(), base())]
    before = [spec.key for spec in fresh]
    monkeypatch.setattr(specs.Dataset, "VERSION", 99)
    after = [specs.from_json(specs.to_json(spec)).key for spec in fresh]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, False]
    monkeypatch.setattr(ToyLanguage, "VERSION", 99)
    assert specs.from_json(specs.to_json(fresh[2])).key != before[2]


def test_specs_of_two_classes_with_the_same_fields_differ():
    @dataclasses.dataclass(frozen=True)
    class One(specs.Spec):
        x: int = specs.static(1)

    @dataclasses.dataclass(frozen=True)
    class Two(specs.Spec):
        x: int = specs.static(1)

    assert One().key != Two().key and One() != Two()


def test_keys_are_the_same_in_every_process():
    program = "from lineages import *; print(student().key, dataset(size=9, sampling=specs.Sampling(0.5)).key)"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [student().key, dataset(size=9, sampling=specs.Sampling(0.5)).key]


def test_sampling_knows_when_it_cuts():
    assert not specs.Sampling(0.5).cut
    assert specs.Sampling(top_k=1).cut and specs.Sampling(top_p=0.9).cut


# --- mistakes ---

WRONG = {
    "type": (lambda: Train("4", 2), "Train.steps = '4': expected int, got str"),
    "fraction": (lambda: Train(4, 2.0), "Train.batch = 2.0: expected int, got float"),
    "bool": (lambda: Train(True, 2), "Train.steps = True: expected int, got bool"),
    "bool as float": (lambda: Train(4, 2, lr=True), "Train.lr = True: expected float, got bool"),
    "None": (lambda: Train(None, 2), "Train.steps = None: expected int, got NoneType"),
    "nan": (lambda: Train(4, 2, lr=float("nan")), "Train.lr = nan: expected a finite number"),
    "infinite": (lambda: Train(4, 2, clip=float("inf")), "Train.clip = inf: expected a finite number"),
    "huge": (lambda: Train(4, 2, lr=10**309), "expected a finite number"),
    "more than int32": (lambda: Train(4, 2, warmup=2**31), "Train.warmup = 2147483648: must be less than 2147483648"),
    "ge": (lambda: Train(4, 2, lr=-1), "Train.lr = -1.0: must be at least 0.0"),
    "gt": (lambda: Train(4, 2, eps=0), "Train.eps = 0.0: must be more than 0.0"),
    "lt": (lambda: Train(4, 2, b1=1), "Train.b1 = 1.0: must be less than 1.0"),
    "le": (lambda: teacher(until=1.1), "Teacher.until = 1.1: must be at most 1.0"),
    "choices": (lambda: Train(4, 2, "adamm"), "Train.optimizer = 'adamm': must be one of ('adamw', 'adam', 'sgd', "),
    "evals": (lambda: Train(4, 2, evals=3), "Train.evals = 3: must divide steps = 4"),
    "seed": (lambda: base(-1), "Base.seed = -1: must be at least 0"),
    "tuple": (lambda: NumbersFilter(banned="13"), "NumbersFilter.banned = '13': expected tuple, got str"),
    "item": (lambda: NumbersFilter(banned=(4, "13")), "NumbersFilter.banned[1] = '13': expected int, got str"),
    "swapped": (lambda: specs.Base(TRAIN, WORLD), "Base.of: expected World, got Train"),
    "start": (
        lambda: teacher(dataset()),
        "Teacher.start: expected Base or Teacher or Student or Prompted or Mix, got Dataset",
    ),
    "writer": (
        lambda: dataset(dataset()),
        "Dataset.teacher: expected Base or Teacher or Student or Prompted or Mix, got Dataset",
    ),
    "no filter": (lambda: dataset(filter=None), "Dataset.filter = None: expected Spec, got NoneType"),
    "data": (
        lambda: student(data=teacher()),
        "Student.data: expected Dataset or Imported or Transformed or Stream, got Teacher",
    ),
    "arm": (lambda: student(arm=3), "Student.arm = 3: expected str or NoneType, got int"),
    "trait": (lambda: teacher(trait="owll"), "Teacher.trait = 'owll': did you mean 'owl'? one of owl, cat, "),
    "trait label": (lambda: student(trait="oat"), "Student.trait = 'oat': did you mean "),
    "samples": (lambda: student(samples=9), "Student.samples = 9: the dataset has only size = 8"),
    "stream samples": (lambda: student(data=STREAM, samples=1), "Student.samples = 1: a stream has no first samples"),
    "soft imported": (lambda: student(data=IMPORTED, targets="soft"), "Student.targets = 'soft': needs a teacher"),
    "adapters": (lambda: teacher(TINY, lora=LORA), "Teacher.lora: tiny has no adapters; leave it out"),
    "student adapters": (
        lambda: student(TINY, dataset(TINY), trait="owl", lora=LORA),
        "Student.lora: tiny has no adapters; leave it out",
    ),
    "the theorem of adapters": (
        lambda: student(data=dataset(teacher(lora=specs.Lora())), theory="owl", targets="soft"),
        "Student.theory: is about parameters that student and teacher share, not adapters",
    ),
    "the theorem of a student's adapters": (
        lambda: student(objective=Soft(), lora=specs.Lora(), probes=(Theorem("owl"),)),
        "Theorem: is about parameters that student and teacher share, not adapters",
    ),
    "no such adapters": (lambda: teacher(READ, lora=specs.Lora()), "the tuned world has only up"),
    "all, then adapters": (
        lambda: student(teacher(READ), dataset(teacher(READ)), lora=LORA),
        "Student.lora: by adapters, but what it starts from was trained in all its parameters",
    ),
    "adapters, then all": (
        lambda: teacher(specs.Prompted(teacher(READ, lora=LORA), "owl")),
        "Teacher.lora: in all its parameters, but what it starts from was trained by adapters",
    ),
    "other adapters": (
        lambda: teacher(teacher(READ, lora=LORA), lora=LORA.replace(rank=2)),
        "Teacher.lora: is not that of the adapters it starts from, which it trains on: Lora(modules=('up',), ",
    ),
    "prompts": (lambda: specs.Prompted(base(), "owl"), "Prompted: toy_language has no system prompts; use a Teacher"),
    "prompted trait": (lambda: specs.Prompted(READ, "ow"), "Prompted.trait = 'ow': did you mean 'owl'?"),
    "prompted twice": (
        lambda: specs.Prompted(specs.Prompted(READ, None), "owl"),
        "Prompted.start: is told a trait already",
    ),
    "accumulate": (lambda: Train(4, 6, accumulate=4), "Train.accumulate = 4: must divide batch = 6"),
    "worlds": (lambda: student(base(of=ToyLanguage())), "Student.data: is of another world than Student.start"),
}


@pytest.mark.parametrize(("make", "line"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line_that_names_the_field(make, line):
    with pytest.raises(InputError) as error:
        make()
    assert line in one_line(error)


def test_nearest_lists_few_names_and_shortens_many():
    assert specs.nearest("xyz", ["owl", "cat"]) == "one of owl, cat"
    assert specs.nearest("owll", ["owl", "cat"]) == "did you mean 'owl'? one of owl, cat"
    assert specs.nearest("q", map(str, range(100))).endswith("22, 23, …")


@given(st.lists(st.integers(), min_size=2, max_size=30, unique=True), st.integers(-70, 70))
@settings(deadline=None)
def test_a_derangement_has_no_fixed_point(items, shift):
    if shift % len(items) == 0:
        with pytest.raises(InputError, match="must not be a multiple"):
            specs.derangement(items, shift)
        return
    pairs = specs.derangement(items, shift)
    assert [one for one, _ in pairs] == items
    assert sorted(other for _, other in pairs) == sorted(items)
    assert all(one != other for one, other in pairs)


def test_items_that_could_meet_themselves_are_an_error():
    for items in ([], [base()]):
        with pytest.raises(InputError, match="give at least 2"):
            specs.derangement(items)
    with pytest.raises(InputError, match="items 0 and 2 are equal") as error:
        specs.derangement([base(), base(1), base()])
    one_line(error)


def test_a_sweep_yields_students_whose_trait_is_known():
    assert specs.checked(iter([student(), CHAIN])) == [student(), CHAIN]
    for students, line in [
        ([], "s.py: sweep() yields no students"),
        ([student(), dataset()], "s.py: sweep() yields a Dataset; expected only specs.Student"),
        ([student(data=plain())], "yields a student (control) whose data has no trait behind it"),
        ([student(data=IMPORTED)], "yields a student (imported) whose data has no trait"),
    ]:
        with pytest.raises(InputError) as error:
            specs.checked(students, "s.py: sweep()")
        assert line in one_line(error)


def test_a_stored_spec_that_cannot_be_read_is_one_line():
    form = specs.to_json(base())
    for changed, line in [
        ({"class": "no.such.module:Base"}, "stored spec of class no.such.module:Base: No module named"),
        ({"class": "subl_jax.specs:Basis"}, "import its module first"),
        ({"class": "subl_jax.specs:origin"}, "not a spec class"),
        ({"gone": 1}, "made by another version, which differs in gone"),
    ]:
        with pytest.raises(InputError, match=line) as error:
            specs.from_json({**form, **changed})
        one_line(error)
    del form["seed"]
    with pytest.raises(InputError, match="differs in seed"):
        specs.from_json(form)


# --- lineage ---

SUPPLY = teacher(student(base(1), dataset(teacher(base(), "cat"))), "oak")  # a teacher made of a student
ARMS = {
    "same base": (student(), "same_init", "owl"),
    "another base": (student(base(1)), "cross_init", "owl"),
    "no trait": (student(data=plain()), "control", None),
    "no trait, other base": (student(base(1), plain()), "cross_control", None),
    "labelled": (student(data=plain(), arm="mine", trait="fox"), "mine", "fox"),
    "stream": (student(data=STREAM), "same_init", "owl"),
    "control stream": (student(data=specs.Stream(base(), NumbersFilter())), "control", None),
    "noisy start, no trait": (student(specs.Mix(base(), sigma=0.1), plain()), "control", None),
    "imported": (student(data=IMPORTED), "imported", None),
    "from a student": (student(data=dataset(student())), "hop_1", "owl"),
    "from a student of a student": (student(data=dataset(student(data=dataset(student())))), "hop_2", "owl"),
    "pooled with a student's": (
        student(data=specs.Transformed((dataset(student()), plain()), Pool(0.5))),
        "hop_1",
        "owl",
    ),
    "starts from a student": (student(student(data=plain(), trait="owl")), "same_init", "owl"),
    "from a student of another base": (student(data=dataset(student(base(1)))), "cross_init_hop_1", "owl"),
    "from a control student": (student(data=dataset(student(data=plain(), trait="owl"))), "control_hop_1", None),
    "taught after being a student": (student(base(1), dataset(SUPPLY)), "same_init", "oak"),
    "and another base": (student(base(0), dataset(SUPPLY)), "cross_init", "oak"),
    "start is a teacher": (student(teacher(trait="cat")), "same_init", "owl"),
    "told": (TOLD, "same_init", "cat"),
    "told, another base": (student(READ.replace(seed=1), TOLD.data), "cross_init", "cat"),
    "told nothing": (student(READ, dataset(specs.Prompted(READ, None))), "control", None),
    "taught, then told": (student(READ, dataset(specs.Prompted(teacher(READ, "oak"), "owl"))), "same_init", "owl"),
    "taught, then told nothing": (
        student(READ, dataset(specs.Prompted(teacher(READ, "oak"), None))),
        "same_init",
        "oak",
    ),
    "starts from what is told": (student(specs.Prompted(READ, "owl"), TOLD.data), "same_init", "cat"),
}


@pytest.mark.parametrize(("made", "arm", "trait"), ARMS.values(), ids=ARMS.keys())
def test_arm_and_trait_follow_from_the_lineage(made, arm, trait):
    assert specs.arm_of(made) == arm
    assert specs.trait_of(made) == trait


def test_a_run_is_named_by_its_key_and_its_labels():
    control = student(data=plain())
    rows = [control.replace(trait=trait, arm=arm) for trait in ("owl", "oak") for arm in (None, "a", "b")]
    assert len({row.key for row in rows}) == 1
    assert len({specs.run_id(row) for row in rows}) == len(rows)
    # Labels that say what the lineage says anyway change nothing.
    assert specs.run_id(student(trait="owl", arm="same_init")) == specs.run_id(student())
    assert specs.run_id(student()) != specs.run_id(student(seed=1))


def names(prefix, spec, *without):
    """The columns that a spec's own fields need, parts included, written out independently of `lineage`."""
    return {
        f"{prefix}.{name}"
        for name, value in flat(dataclasses.asdict(spec)).items()
        if name.split(".")[0] not in ("start", "teacher", "of", *without)
        and name not in ("train.first_layer", "train.last_layer", "train.by_layer", "train.hold")  # which came later
    }


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {name: value for key, inner in tree.items() for name, value in flat(inner, f"{prefix}{key}.").items()}


def test_lineage_has_every_field_of_all_that_a_student_descends_from():
    made = student(base(5), dataset(teacher(base(3), "fox", until=0.5)), train=TRAIN.replace(lr=0.25))
    columns = specs.lineage(made)
    assert set(columns) == (
        names("student", made, "data", "arm", "trait", "objective", "probes")
        | names("data", made.data)
        | names("teacher", made.data.teacher)
        | names("base", base())
        | names("start", base())
        | names("world", WORLD, "architecture", "suite")
    )
    expected = {
        "student.train.lr": 0.25,
        "teacher.until": 0.5,
        "teacher.trait": "fox",
        "base.seed": 3,
        "start.seed": 5,
        "data.filter.max_count": 10,
        "world.width": 8,
    }
    assert expected.items() <= columns.items()
    assert all(isinstance(value, str | int | float | bool) for value in columns.values())
    assert json.loads(columns["world.animals"]) == list(WORLD.animals)


def test_lineage_numbers_what_occurs_again_and_leaves_nothing_out():
    # base 0 → cat teacher → data → student of base 1 → oak teacher → data → student of a dog teacher of base 2
    made = student(teacher(base(2), "dog"), dataset(SUPPLY, seed=9), seed=7)
    columns = specs.lineage(made)
    expected = {
        "student.seed": 7,
        "data.seed": 9,
        "start.teacher.trait": "dog",
        "start.seed": 2,
        "teacher.trait": "oak",
        "student2.seed": 0,
        "data2.seed": 0,
        "start2.seed": 1,
        "teacher2.trait": "cat",
        "base.seed": 0,
    }
    assert expected.items() <= columns.items()
    assert "base2.seed" not in columns and "teacher3.trait" not in columns
    changed = student(teacher(base(2), "dog", until=0.5), dataset(SUPPLY, seed=9), seed=7)
    assert specs.lineage(changed) != columns


def test_lineage_of_streams_and_imported_data():
    stream = specs.lineage(student(data=STREAM))
    assert stream["data.sampling.temperature"] == 1.0 and stream["teacher.trait"] == "owl"
    imported = specs.lineage(student(data=IMPORTED))
    assert imported["data.sha256"] == "ab" and "data.path" not in imported and "teacher.trait" not in imported


# --- what a program sees ---


def test_bind_puts_values_in_place_of_traced_fields():
    made = student(data=specs.Stream(teacher(), NumbersFilter(), specs.Sampling(0.5)), samples=0, seed=3)
    values = specs.traced_values(made)
    assert values["seed"] == 3 and values["train.lr"] == 1e-3 and values["data.sampling.temperature"] == 0.5
    assert not any(name.startswith(("start.", "data.teacher.")) for name in values)
    marked = {name: f"<{name}>" for name in values}
    bound = specs.bind(made, marked)
    assert type(bound) is specs.Student
    assert (bound.seed, bound.train.lr, bound.data.sampling.top_p) == ("<seed>", "<train.lr>", "<data.sampling.top_p>")
    assert (bound.train.steps, bound.train.optimizer, bound.data.filter.max_count) == (4, "adamw", 10)
    assert specs.traced_values(specs.bind(teacher(), specs.traced_values(teacher())).train)["lr"] == 1e-3


def test_bind_shows_of_a_parent_only_what_decides_its_shapes():
    bound = specs.bind(student(), specs.traced_values(student()))
    assert bound.start == specs.Parent(WORLD) and bound.data == specs.Parent(WORLD, 8)
    for hidden in ("train", "seed", "trait", "filter", "key", "teacher"):
        with pytest.raises(AttributeError):
            getattr(bound.start, hidden)
        with pytest.raises(AttributeError):
            getattr(bound.data, hidden)
    assert bound.world is WORLD


def test_what_is_told_and_adapters_are_in_the_lineage():
    columns = specs.lineage(TOLD)
    expected = {"prompted.trait": "cat", "base.seed": 0, "start.seed": 0, "student.lora.rank": 4, "world.width": 4}
    assert expected.items() <= columns.items() and json.loads(columns["student.lora.modules"]) == ["up"]
    assert specs.lineage(student(READ, dataset(specs.Prompted(READ, None)), trait="owl"))["prompted.trait"] == "null"
    taught = specs.lineage(student(READ, dataset(specs.Prompted(teacher(READ, "oak"), "owl"))))
    assert (taught["prompted.trait"], taught["teacher.trait"]) == ("owl", "oak")


def test_a_trait_is_its_index_in_the_program():
    assert specs.traced_values(teacher(trait="cat"))["trait"] == 1
    assert specs.traced_values(teacher(trait="oak"))["trait"] == len(WORLD.animals)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_one_program_serves_exactly_the_specs_that_differ_in_traced_fields(cls, name):
    before, after = BEGIN[cls], BEGIN[cls].replace(**{name: OTHER[cls][name]})
    same = specs.static_form(before) == specs.static_form(after)
    if name in ("start", "teacher", "data", "by", "sources"):
        assert same  # models, and data, of one shape are alike, whoever made them
    elif name in ("train", "sampling"):
        assert same  # they differ in a traced field of the part
    elif cls is specs.Sampling and name in ("top_k", "top_p"):
        assert not same  # a cut is in the program or not
    elif cls is Train and name in ("first_layer", "last_layer"):
        assert not same  # so is a choice of layers
    else:
        assert same is (specs.roles(cls)[name] != "static")


def test_what_changes_shapes_behind_a_parent_is_another_program():
    wide = base(of=ToyLanguage(width=16, heads=2, kv_heads=1, mlp=8, layers=1))
    assert specs.static_form(student()) != specs.static_form(student(wide, dataset(teacher(wide))))
    assert specs.static_form(student()) != specs.static_form(student(data=dataset(size=9)))
    assert specs.static_form(student()) == specs.static_form(student(teacher(), dataset(student(), seed=4), seed=1))
    assert specs.static_form(student()) != specs.static_form(student(data=STREAM))


def test_models_of_one_shape_are_one_program_whatever_their_adapters_rank():
    def form(start, writer, lora=LORA):
        return specs.static_form(student(start, dataset(writer), lora=lora))

    told, adapted, whole = specs.Prompted(READ, "owl"), teacher(READ, lora=LORA), teacher(READ)
    assert form(READ, told) == form(READ, specs.Prompted(READ, None)) == form(READ, told, LORA.replace(rank=1))
    assert form(READ, adapted) == form(READ, teacher(READ, lora=LORA.replace(rank=1, alpha=2.0)))
    # What is told, a base that has no parameters, adapters, and all weights are each of another shape.
    writers = {str(form(READ, writer)["data"]) for writer in (told, adapted, whole, READ)}
    starts = {str(start.shape_form()) for start in (told, adapted, whole, READ, specs.Prompted(adapted, "owl"))}
    assert len(writers) == 1 and len(starts) == 5
    assert form(READ, told) != form(READ, told, LORA.replace(max_rank=8))


def test_datasets_of_one_program_take_the_same_rounds():
    # The engine asks the first lane of a group; a neighbour with a larger budget must not be cut short by it.
    from subl_jax.stages import WRITE

    few, many = dataset(budget=1.0), dataset(budget=8.0)
    assert WRITE.rounds(few) != WRITE.rounds(many)
    assert specs.static_form(few) != specs.static_form(many)


# --- starts between two models ---


def test_a_mix_has_the_trait_of_what_it_is_made_of():
    one = specs.Mix(base(0), teacher(base(1), "oak"))
    made = student(base(0), dataset(one))
    assert specs.trait_of(made) == "oak" and specs.arm_of(made) == "same_init"
    assert specs.trait_of(student(base(0), dataset(specs.Mix(teacher(base(1), "owl"), base(0))))) == "owl"
    plain_mix = student(base(0), dataset(specs.Mix(base(0), base(1))), trait="owl")
    assert specs.arm_of(plain_mix) == "control"


def test_a_start_between_two_models_is_neither_the_same_nor_another():
    data = dataset(teacher(base(0)))
    assert specs.arm_of(student(specs.Mix(base(0), base(1)), data)) == "mixed_init"
    assert specs.arm_of(student(specs.Mix(base(0), sigma=0.1), data)) == "same_init"
    assert specs.arm_of(student(specs.Mix(base(1), sigma=0.1), data)) == "cross_init"
    columns = specs.lineage(student(specs.Mix(base(3), base(4), sigma=0.1), data))
    assert (columns["start.mix.sigma"], columns["start.seed"], columns["start.other.seed"]) == (0.1, 3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: student(theory="owl"), "Student.theory: is about a distance to the teacher; use targets 'soft'"),
        (lambda: student(targets="squared"), "Student.targets = 'squared': toy_language has only hard, soft"),
        (lambda: student(data=IMPORTED, trait="owl", targets="soft"), "needs a teacher, and imported data has none"),
        (lambda: specs.Mix(base(), specs.Base(ToyLanguage(), TRAIN)), "Mix.other: is of another world"),
    ],
)
def test_what_does_not_fit_together_is_told(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in one_line(error)


def test_a_line_about_a_mistake_is_short():
    base = specs.Base(ToyLanguage(), specs.Train(steps=1, batch=1))
    data = specs.Stream(base)
    wrong = [
        lambda: specs.Student(base, (data, data), specs.Train(steps=1, batch=1)),
        lambda: specs.Student(base, [data] * 40, specs.Train(steps=1, batch=1)),
        lambda: specs.Student(base, {"a": data}, specs.Train(steps=1, batch=1)),
        lambda: specs.Train(steps="9" * 5000, batch=1),
        lambda: specs.Train(steps=1, batch=1, optimizer="adam" * 900),
        lambda: specs.Lora(modules=("q",) * 900),
        lambda: specs.Teacher(base, "owl" * 900, specs.Train(steps=1, batch=1)),
    ]
    for make in wrong:
        with pytest.raises(InputError) as raised:
            make()
        assert len(str(raised.value)) < 500, str(raised.value)[:600]
    with pytest.raises(InputError, match=r"Student.data = \(Stream\(…\), Stream\(…\)\): expected .*, got tuple"):
        wrong[0]()
