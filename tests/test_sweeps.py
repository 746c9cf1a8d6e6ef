"""Every sweep file that comes with the package makes specs that can be planned, whatever its argument.

So do the commands of the pages, in the same process: of what was planned once, no program is tried again.
"""

import collections
import importlib
import pathlib
import re
import subprocess
import types

import numpy as np
import pages
import pandas as pd
import pytest
import tiny_chat
from image_files import folder
from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.__main__ import COMMANDS
from subl_jax.app import cli
from subl_jax.app.cli import load_sweep
from subl_jax.engine.plan import make_plan
from subl_jax.errors import InputError

SWEEPS = pathlib.Path(__file__).parents[1] / "sweeps"
MODULES = {path.stem: load_sweep(str(path)) for path in SWEEPS.glob("*.py")}
AXES = list(MODULES["digits_axes"].AXES)
CASES = [
    *(("traits", size) for size in ("full", "smoke", "strong")),
    *(("digits", size) for size in ("8x8", "mnist")),
    *(("digits_axes", axis) for axis in AXES),
    *(("blurry_seven", size) for size in ("8x8", "mnist")),
    *(("predict", size) for size in ("full", "smoke")),
    *(("theorem", world) for world in ("digits", "language")),
    *(("tokens", size) for size in ("full", "detectors", "shares", "edits", "all", "banned", "smoke")),
    *(("layers", kind) for kind in MODULES["layers"].TRAINS),
    *(("arbitration", kind) for kind in MODULES["arbitration"].KINDS),
    *(("audit", kind) for kind in MODULES["audit"].KINDS),
    *(("chat", size) for size in ("small", "smoke", "doses", "paper")),
]

# For a tiny model: as many prompts as one waits for, and room for its short tokens; and the arm that only `paper` has.
CHAT = {"world": {"prompts": 24, "prompt_tokens": 144}, "cross_sigma": (0.5,)}


# What a sweep compares with instead of another initialisation.
OTHER_ARM = {"tokens": "control", "predict": "control"}

# A sweep that audits has arms in one of its kinds only, and names of its own for them.
ARMS = {"audit": set()}


def students(name, argument, **changes):
    config = MODULES[name].get_config(argument)
    assert isinstance(config, ConfigDict)
    config.seeds = 2
    config.update(changes)
    return specs.checked(MODULES[name].sweep(config))


def test_every_sweep_file_is_tried_here():
    assert {name for name, _ in CASES} == MODULES.keys()


@pytest.mark.parametrize(("name", "argument"), CASES, ids=lambda x: x)
def test_a_sweep_can_be_planned(name, argument, tmp_path, request):
    changes = {"data_dir": folder(tmp_path)} if argument == "mnist" else {}
    if name == "chat":
        changes = {**CHAT, "model": request.getfixturevalue("tiny_chat_model")}
    if name == "audit":
        changes = {"teachers": 1, "traits": 1}
    made = students(name, argument, **changes)
    plan = make_plan(made, ())
    arms = {specs.arm_of(student) for student in made if student.row == "runs"}
    assert plan.pending and arms >= ARMS.get(name, {"same_init", OTHER_ARM.get(name, "cross_init")})
    assert make_plan(made, {node.key for group in plan.groups for node in group.nodes}).pending == 0


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_varies_something_in_every_arm(axis):
    made = students("digits_axes", axis)
    values = len(MODULES["digits_axes"].AXES[axis][0])
    for arm in ("same_init", "cross_init"):
        of_arm = {specs.run_id(student) for student in made if specs.arm_of(student) == arm}
        # A start of its own is the same init's alone.
        assert len(of_arm) == 2 * (1 if arm == "cross_init" and axis in ("sigma", "shared_layers") else values)


def test_layers_are_lanes_and_all_pairs_of_them_are_crossed():
    made = students("layers", "map", layers=3)
    groups = sorted((group.stage.name, len(group.nodes)) for group in make_plan(made, ()).groups)
    # Two bases: a teacher of each layer and one of all, 5 datasets, 4 × 4 students, 4 of another base and 4 controls.
    assert groups == [("distil", 48), ("instil", 8), ("pretrain", 2), ("write", 10)]
    assert layers_trained(made) == {(t, s) for t in LAYER_PARTS for s in LAYER_PARTS}
    of_all = students("layers", "norms", layers=3, teachers="all")
    assert layers_trained(of_all) == {((0, 2), s) for s in LAYER_PARTS}
    assert sum(specs.arm_of(s) == "control" for s in of_all) == 2 * 4
    with pytest.raises(InputError, match="config.teachers = 'none'"):
        students("layers", "map", teachers="none")
    with pytest.raises(InputError, match="config.teachers = 'all': each; in map, norms"):
        students("layers", "ranges", teachers="all")


def test_every_set_of_parameters_trains_at_its_own_rate_in_teacher_and_student():
    sets = MODULES["layers"].SETS
    for student in students("layers", "sets", layers=1):
        assert student.train.lr == sets[student.train.trainable]
        if specs.arm_of(student) != "control":
            assert student.data.teacher.train.lr == sets[student.data.teacher.train.trainable]


LAYER_PARTS = [(0, 0), (1, 1), (2, 2), (0, 2)]


def layers_trained(made):
    """(first and last layer of the teacher, of the student), of the students of a trait."""
    return {
        tuple((node.train.first_layer, node.train.last_layer) for node in (s.data.teacher, s))
        for s in made
        if specs.arm_of(s) == "same_init"
    }


def test_ranks_of_teacher_and_student_are_crossed_and_are_lanes():
    made = students("arbitration", "adapters", ranks=(1, 2, 0))
    same = [s for s in made if specs.arm_of(s) == "same_init"]

    def rank(node):
        return node.lora.rank if node.lora else 0

    assert sorted((rank(s.data.teacher), rank(s)) for s in same) == sorted(
        2 * [(t, s) for t in (0, 1, 2) for s in (0, 1, 2)]
    )
    distil = [len(group.nodes) for group in make_plan(made, ()).groups if group.stage.name == "distil"]
    # What the teacher is and what the student trains decide a program: 3 are of a writer by adapters or not, for each.
    assert len(distil) == 4 and sum(distil) == len(made)
    assert {node.train.trainable for node in same if not node.lora} == {MODULES["arbitration"].MATRICES}


def test_rates_are_tuned_on_bases_that_the_comparison_never_uses(tmp_path):
    tuning = students("arbitration", "optimizer", tune=True, rules=("sgd", "muon"))
    used = students("arbitration", "optimizer", rules=("sgd", "muon"))
    assert not {s.start.seed for s in tuning} & {s.start.seed for s in used}
    assert len(tuning) == 2 * 2 * 2 * 5  # bases × rules × adapters or all × rates
    held = {s.probes[0].data for s in used}
    assert all(d.seed == 1 for d in held) and not held & {s.data for s in used}
    assert {s.train.lr for s in used} == {0.3, 1e-3}  # the middle of those tried, where none is said to be tuned
    with pytest.raises(InputError, match="config.rules: 'adams': did you mean 'adamw'"):
        students("arbitration", "optimizer", rules=("adams",))
    with pytest.raises(InputError, match="config.tune: data has rates of its own"):
        students("arbitration", "data", tune=True)


def test_the_tuned_rates_of_a_workdir_are_used(tmp_path, monkeypatch):
    module, rate = MODULES["arbitration"], 0.125
    cells = {s.role_in_sweep for s in students("arbitration", "optimizer", tune=True, rules=("sgd",))}
    runs = [
        {"run_id": f"{cell}{lr}", "arm": cell, "student.train.lr": lr, "status": "ok", "last": abs(lr - rate)}
        for cell in cells
        for lr in (0.1, rate, 0.5)
    ]
    curves = [{"run_id": run["run_id"], "step": 1, "metric": "kl_held_out", "value": run.pop("last")} for run in runs]
    runs = [{**run, "base_seed": base, "target_end": 0.1 * base} for run in runs for base in range(2)]
    found = types.SimpleNamespace(runs=pd.DataFrame(runs).assign(student_base_seed=0), curves=pd.DataFrame(curves))
    monkeypatch.setattr(module.subl_jax, "load", lambda workdir: found)
    made = students("arbitration", "optimizer", tuned="somewhere", rules=("sgd",))
    assert {s.train.lr for s in made} == {rate}
    with pytest.raises(InputError, match="somewhere has no rate of 'muon, rank 8 → rank 8'"):
        students("arbitration", "optimizer", tuned="somewhere", rules=("sgd", "muon"))


def test_bodies_and_heads_are_shared_apart():
    arms = collections.Counter(specs.arm_of(s) for s in students("arbitration", "heads"))
    apart = ("shares_all", "shares_body", "shares_head", "shares_layer_0", "shares_layer_1_head")
    assert arms == dict.fromkeys(("same_init", "cross_init", *apart), 3 * 2)


def test_the_six_bars_are_there():
    arms = [specs.arm_of(student) for student in students("digits", "8x8")]
    bars = ("reference", "teacher", "same_init", "cross_init", "same_init_all", "cross_init_all")
    assert sorted(arms) == sorted(2 * bars)


@pytest.mark.parametrize("name", MODULES)
def test_an_unknown_argument_is_told_with_the_right_ones(name):
    with pytest.raises(InputError, match=f"sweeps/{name}.py:nothing"):
        MODULES[name].get_config("nothing")


def test_a_mistyped_axis_and_values_of_ones_own():
    with pytest.raises(InputError, match="config.axis = 'lrr': did you mean 'lr'"):
        students("digits_axes", "lr", axis="lrr")
    rates = {student.train.lr for student in students("digits_axes", "lr", points=(0.5, 0.25))}
    assert rates == {0.5, 0.25}
    assert np.isclose(students("digits_axes", "width", sigma=0.1)[0].start.sigma, 0.1)


def test_the_papers_chat_sweep_shares_what_it_can(tiny_chat_model):
    made = students("chat", "paper", **CHAT, model=tiny_chat_model, seeds=5)
    arms = collections.Counter(specs.arm_of(student) for student in made)
    assert arms == dict.fromkeys(("same_init", "cross_init", "control", "cross_control"), 15 * 5)
    plan = make_plan(made, ())
    groups = sorted((group.stage.name, len(group.nodes)) for group in plan.groups)
    # 15 told teachers of every seed and one that is told nothing; a seed's controls are one student of either start.
    assert groups == sorted(
        [("pretrain", 5), ("pretrain", 5), ("prompt", 80), ("write", 80), ("distil", 80), ("distil", 80)]
    )
    student = made[0]
    assert (student.lora.rank, student.lora.alpha, student.train.lr, student.train.batch) == (8, 8.0, 2e-4, 66)
    assert (student.data.size, student.data.sampling.temperature, student.data.sampling.only) == (10_000, 1.0, None)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [({"teacher": "finetune"}, "instil"), ({"full": True}, "prompt"), ({"cross_model": "other"}, "prompt")],
)
def test_the_other_ways_of_the_chat_sweep_can_be_planned(changes, stage, tiny_chat_model, tmp_path):
    if "cross_model" in changes:
        changes = {"cross_model": tiny_chat.save(tmp_path / "other", seed=1)}
    made = students("chat", "smoke", **CHAT, model=tiny_chat_model, **changes)
    plan = make_plan(made, ())
    assert stage in {group.stage.name for group in plan.groups}
    assert {specs.arm_of(student) for student in made} == {"same_init", "cross_init", "control", "cross_control"}


def test_a_chat_student_may_learn_distributions(tiny_chat_model):
    settings = {**CHAT, "cross_sigma": ()}
    made = students("chat", "smoke", **settings, model=tiny_chat_model, targets="soft")
    assert {(specs.arm_of(student), student.targets) for student in made} == {
        ("same_init", "soft"),
        ("control", "soft"),
    }
    with pytest.raises(InputError, match="config.targets = 'soft': students of config.cross_sigma and cross_model"):
        students("chat", "smoke", **{**settings, "cross_sigma": (0.5,)}, model=tiny_chat_model, targets="soft")


def test_doses_are_lanes_of_the_same_groups(tiny_chat_model):
    settings = {**CHAT, "cross_sigma": (), "model": tiny_chat_model}
    plain, made = (students("chat", size, **settings) for size in ("small", "doses"))
    assert len(made) == 8 * len(plain) and {student.data for student in made} == {student.data for student in plain}
    doses = {(s.samples, s.train.lr, s.lora.rank, s.lora.alpha) for s in made}
    assert doses == {(n, lr, r, float(r)) for n in (16, 64) for lr in (2e-4, 1e-3) for r in (2, 8)}
    assert len(make_plan(made, ()).groups) == len(make_plan(plain, ()).groups)


def test_a_chat_teacher_is_told_or_tuned(tiny_chat_model):
    with pytest.raises(InputError, match="config.teacher = 'tell': one of prompt, finetune"):
        students("chat", "smoke", **CHAT, model=tiny_chat_model, teacher="tell")


def test_every_selection_of_tokens_is_made_of_the_controls_data_too():
    made = [row for row in students("tokens", "all") if isinstance(row, specs.Student) and row.objective]
    own, control = (
        {(specs.arm_of(row).removesuffix(" on control"), row.objective.kind, row.objective.share) for row in some}
        for some in ([r for r in made if r.given_trait], [r for r in made if not r.given_trait])
    )
    assert own == control and len(own) == 4 + 3 + 12 + 6
    stages = [(group.stage.name, len(group.nodes)) for group in make_plan(made, ()).groups]
    # Detectors, shares, masked and kept are lanes: one program for those at the top and one for those at the bottom.
    assert len([name for name, _ in stages if name == "distil"]) == 7


# --- the commands of the pages ---

# What a reader puts in place of such words.
PLACES = {
    "KIND": "smoke",
    "DIR": "runs/mine",
    "FILE": "sweeps/traits.py",
    "AXIS": "m",
    "N": "4",
    "HOST0:8476": "localhost:8476",
}
# Other people's programs: what these do with our files is not tried here.
FOREIGN = {"gcloud", "pip", "ray", "cd", "tee", "for", "done", "wait"}


@pytest.mark.parametrize("block", pages.blocks("bash"), ids=str)
def test_commands_are_taken(block, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    for name in ("sweeps", "launch", "bench"):
        pathlib.Path(name).symlink_to(pages.ROOT / name)
    for name in ("learning_rates", "my_sweep"):
        pathlib.Path(f"{name}.py").write_text(pages.FILES["learning_rates"].text)
    pathlib.Path("items.jsonl").write_text('{"question": "1 + 1?", "choices": ["1", "2"], "answer": 1}\n')
    monkeypatch.setenv("WANDB_API_KEY", "a-key")
    for words in pages.commands(block.text):
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        tried(words, request)


def tried(words, request):
    """One command of a page: refused where the program would refuse it."""
    for word in words:
        if re.match(r"(sweeps|launch|bench)/", word):
            assert (pages.ROOT / word.partition(":")[0]).exists(), word
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (pages.ROOT / "Makefile").read_text()
        assert all(re.search(f"^{target}:", makefile, re.M) for target in targets), words
    elif re.fullmatch(r"launch/.*run\.sh", words[0]):
        done = subprocess.run([*words[:1], "--dry_run", *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        planned(words[words.index("--") + 1 :], request)
    elif words[0] == "sbatch":
        planned(words[words.index("launch/slurm.sbatch") + 1 :], request)
    elif "launch/sweep.py" in words:
        planned(words[words.index("launch/sweep.py") + 1 :], request)
    elif words[:3] == ["python", "-m", "subl_jax"]:
        help = importlib.import_module(COMMANDS[words[3]]).__doc__
        assert all(each.partition("=")[0] in help for each in words[4:] if each.startswith("--")), words
    else:
        ours = words[0] == "python" or words[0].startswith("bench/")
        assert ours or words[0] in FOREIGN, f"what is {words[0]}? try it here, or say that it is foreign"


def planned(arguments, request):
    """Takes the arguments of `launch/sweep.py` as it does, up to the plan."""
    arguments = [re.sub(r"[A-Z][A-Z0-9:]*$", lambda word: PLACES.get(word[0], word[0]), each) for each in arguments]
    arguments = ["0" if each == "$i" else each for each in arguments]
    arguments = [
        f"--config.data_dir={folder(request.getfixturevalue('tmp_path'))}" if each.endswith("=FOLDER") else each
        for each in arguments
    ]
    file, rest = cli.split_config(arguments)
    # Which a reader has made by the command before.
    rest = [each for each in rest if not each.startswith("--config.tuned=")]
    if "chat.py" in file:
        rest = [each for each in rest if not each.startswith("--config.model=")]
        rest += [f"--config.model={request.getfixturevalue('tiny_chat_model')}", "--config.seeds=1"]
        rest += ["--config.world.prompts=24", "--config.world.prompt_tokens=144"]
    module = load_sweep(file)
    command = cli.command(file, module, rest)
    assert make_plan(command.students, ()).pending
