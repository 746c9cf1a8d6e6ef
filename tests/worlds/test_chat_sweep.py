"""A sweep of a tiny chat model from the command's own function to its results: told, tuned, disturbed and control."""

import functools
import json

import chat_sweep
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import tiny_chat
from chat_sweep import AXES, DISTIL, KEPT, LORA, READ, run, world_of, written
from few import few

from subl_jax import specs, stages
from subl_jax.channels import numbers as filters
from subl_jax.engine import lanes
from subl_jax.models import transformer
from subl_jax.specs import Lora

FINETUNE = specs.Train(steps=40, batch=8, evals=4, lr=2e-2, clip=1.0)
UNTIL = 0.4


def others(world):
    """Students of another start, and of a tuned teacher."""
    base, other = specs.Base(world, READ), specs.Base(world.replace(sigma=0.3, noise_seed=1), READ)
    told, control = written(specs.Prompted(base, "owl")), written(specs.Prompted(base, None))
    yield specs.Student(other, told, DISTIL, lora=LORA)
    yield specs.Student(other, control, DISTIL, lora=LORA, trait="owl")
    tuned = specs.Teacher(base, "cat", FINETUNE, until=UNTIL, lora=Lora(max_rank=4, rank=4))
    yield specs.Student(base, written(tuned), DISTIL, lora=LORA)


@pytest.fixture(scope="module")
def world(tiny_chat_model):
    return world_of(tiny_chat_model)


@pytest.fixture(scope="module", params=few([False, True], False), ids=["one start", "whole"])
def whole(request):
    return request.param


@pytest.fixture(scope="module")
def students(world, whole):
    return [*chat_sweep.students(world), *(others(world) if whole else ())]


@pytest.fixture
def one_student(world):
    return next(chat_sweep.students(world))


@pytest.fixture(scope="module")
def results(whole, students, request, tmp_path_factory):
    return run(students, tmp_path_factory.mktemp("whole")) if whole else request.getfixturevalue("chat_results")


def test_ranks_rates_alphas_and_layers_are_lanes_of_one_group(results, whole):
    groups = [(group["stage"], group["lanes"]) for group in results.sweep["groups"]]
    one_start = [("pretrain", 1), ("prompt", 2), ("write", 2), ("distil", len(AXES) + 1), ("distil", 1)]
    # The disturbed base is another program, as its base is another array; so is a student of a tuned teacher.
    of_others = [("pretrain", 1), ("instil", 1), ("write", 1), ("distil", 2), ("distil", 1)]
    assert sorted(groups) == sorted([*one_start, *(of_others if whole else [])])


def test_the_results_contract_holds(results, students, world, whole):
    runs = results.runs
    assert len(runs) == len(students) and (runs.status == "ok").all(), runs.why.tolist()
    others = dict.fromkeys(("control", "full", *(("cross_init", "cross_control") if whole else ())), 1)
    assert runs.arm.value_counts().to_dict() == {"same_init": len(AXES) + whole, **others}
    assert (runs.kept_fraction == 1).all()
    adapted = runs[runs.arm != "full"]
    assert set(adapted["student.lora.rank"]) == {1, 2} and set(adapted["student.lora.first_layer"]) == {0, 1}
    assert (runs["world.training_prompt"] == world.training_prompt).all()
    assert (runs["world.evaluation_prompt"] == world.evaluation_prompt).all()
    assert ((runs.target_start >= 0) & (runs.target_end <= 1)).all()
    metrics = set(results.curves.metric)
    for name in ("owl", "cat"):
        assert {f"trait/{name}", f"rate/{name}"} <= metrics
    assert {"loss", "kl"} <= metrics and "answers" not in metrics
    assert len(results.datasets) == 2 + whole and (results.workdir / "report.html").exists()
    assert json.loads((results.workdir / "sweep.json").read_text())["sweep"] == "sweep"
    if not whole:
        return
    crossed = results.curves[results.curves.run_id == runs[runs.arm == "cross_init"].run_id.item()]
    assert "kl" not in set(crossed.metric)
    cosines = results.curves[results.curves.metric == "cosine"]
    tuned = runs[runs["teacher.trait"] == "cat"].run_id.item()
    assert set(cosines.run_id) == {tuned} and cosines.value.abs().max() <= 1


def test_all_lanes_start_as_the_base_and_then_differ(results):
    runs = results.runs[results.runs.arm.isin(["same_init", "control"]) & (results.runs.trait == "owl")]
    np.testing.assert_allclose(runs.target_start, runs.target_start.iloc[0], rtol=1e-4)
    assert runs.target_end.nunique() == len(runs)


@pytest.mark.slow
def test_soft_targets_are_what_the_teacher_says_at_each_token(world, tmp_path):
    """Told of its trait, with its own head before the prompt. Who wrote without a trait has nothing to teach."""
    base = specs.Base(world.replace(probed=6), READ)
    # Adam makes steps of the usual size also of what rounding leaves of the control's gradient.
    train = DISTIL.replace(steps=30, batch=6, evals=2, lr=0.1, schedule="constant", optimizer="sgd")
    soft = {"train": train, "targets": "soft", "lora": LORA}
    pair = [
        specs.Student(base, written(specs.Prompted(base, "owl")), **soft),
        specs.Student(base, written(specs.Prompted(base, None)), trait="owl", **soft),
    ]
    done = run(pair, tmp_path)
    curves = done.curves.pivot_table("value", ["run_id", "step"], "metric")
    told, control = (curves.loc[specs.run_id(student)] for student in pair)
    # Every batch has all six samples, as kl has; a loss is the mean over the steps since the last one.
    assert 0 < told.kl.iloc[-1] < 0.5 * told.kl.iloc[0]
    assert told.kl.iloc[0] > told.loss.iloc[-1] > told.kl.iloc[-1]
    assert control[["kl", "loss"]].abs().max().max() < 1e-6


def test_operations_are_those_of_places_there_is_room_for(students, world):
    whole = world.replace(room=1.0, answer_room=1.0)
    length, of_logits = world.prompt_tokens + world.completion_tokens, 2 * world.config.width * world.config.vocab
    all_logits = length * transformer.flops_per_token(world.config, length)
    assert whole.sequence_flops == pytest.approx(all_logits - world.prompt_tokens * of_logits)
    assert world.answer_room < world.sequence_flops / whole.sequence_flops < world.room
    # Adapters leave the weights as they are, for which there is no gradient then.
    of_adapters, of_all = (stages.DISTIL.flops(students[0].replace(lora=lora)) for lora in (LORA, None))
    assert of_adapters == pytest.approx(2 / 3 * of_all)


def test_what_was_written_passes_the_filter_and_each_teacher_wrote_its_own(results, students, whole):
    tables = {student.data.key: results.samples(specs.run_id(student)) for student in students}
    assert len(tables) == 2 + whole
    for table in tables.values():
        assert table.kept.all() and all(filters.reason(text, KEPT) is None for text in table.completion)
    texts = [tuple(table.completion) for table in tables.values()]
    assert len(set(texts)) == 2 + whole


@pytest.mark.parametrize("whole", few([True]), indirect=True)
def test_a_finetuned_teacher_reaches_its_target_and_stops(results):
    teacher = results.teacher(results.runs[results.runs["teacher.trait"] == "cat"].run_id.item())
    steps, curves = results.store.curves(teacher.node.key)
    assert curves["target"][0] < 0.01 and curves["target"][-1] >= UNTIL
    taken = curves["steps_taken"]
    assert taken[-1] < FINETUNE.steps and steps[-1] == FINETUNE.steps


def test_only_the_masked_layers_and_ranks_of_a_stored_student_are_not_zero(results, students):
    for student in students[: len(AXES)]:
        params = results.student(specs.run_id(student)).params
        for module in params["lora"].values():
            layers = module["b"].any(axis=(1, 2)).tolist()
            assert layers == ([True] * 3 if student.lora.first_layer == 0 else [False, True, False])
            assert not module["a"][:, :, student.lora.rank :].any()
        assert params["scale"] == 4.0


def test_a_stored_student_comes_back_as_a_model(results, students, world):
    tokens = np.asarray([world.head + [5, 6, 7]])
    student, base = results.student(specs.run_id(students[0])), results.base(specs.run_id(students[0]))
    given, plain = student.apply(tokens), base.apply(tokens)
    assert given.shape == plain.shape == (1, tokens.shape[1], tiny_chat.VOCAB)
    assert 0 < np.abs(given - plain).max() < 10


def test_running_it_again_computes_nothing(results, students):
    again = run(students, results.workdir)
    assert again.sweep["groups"] == [] and again.sweep["reused_nodes"] > len(students)
    pd.testing.assert_frame_equal(again.runs, results.runs)


KERNELS = {f"{tiny_chat.WIDTH},{tiny_chat.MLP}", f"{tiny_chat.MLP},{tiny_chat.WIDTH}"}


@pytest.mark.slow
def test_the_base_weights_enter_once_for_all_lanes(one_student):
    node, lanes_here = one_student, 5
    program = lanes.compile_program(stages.DISTIL, node, lanes.Layout(1, 1, lanes_here), stages.input_shapes(node))
    for shape in KERNELS:
        assert f"f32[{tiny_chat.LAYERS},{shape}]" in program.text  # the base comes in
        assert f"f32[{lanes_here},{tiny_chat.LAYERS},{shape}]" not in program.text  # and no copy for each lane
    assert f"f32[{lanes_here},{tiny_chat.LAYERS},{tiny_chat.WIDTH},{LORA.max_rank}]" in program.text


@pytest.mark.slow  # tests/models/test_transformer.py has the same of one projection
def test_the_base_weights_are_multiplied_once_for_all_lanes(world, one_student):
    node, lanes_here = one_student, 5

    def advance(arrays, key, values, inputs, state):
        key = jax.random.wrap_key_data(key)
        return stages.DISTIL.advance(specs.bind(node, values), key, {**inputs, "world": arrays}, state, jnp.int32(1))

    arrays = stages.world_shapes(world)
    one = jax.tree.map(jnp.asarray, (lanes.lane_key(node), specs.traced_values(node)))
    inputs = stages.input_shapes(node)
    start = functools.partial(stages.DISTIL.start, node)
    state = jax.eval_shape(lambda arrays, inputs: start(jax.random.key(0), {**inputs, "world": arrays}), arrays, inputs)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes_here, *x.shape), x.dtype), (*one, inputs, state))
    text = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0, 0, 0))).lower(arrays, *own).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    by_lane = [line for line in products if "batching_dims = [0] x [0]" in line]
    sizes = {shape.replace(",", "x") for shape in (*KERNELS, f"{tiny_chat.WIDTH},{tiny_chat.VOCAB}")}
    for size in sizes:
        assert any(f"tensor<{size}xf32>" in line for line in products)
        assert not [line for line in by_lane if f", tensor<{lanes_here}x{size}xf32>) ->" in line]
    assert any(f", tensor<{lanes_here}x{tiny_chat.WIDTH}x{LORA.max_rank}xf32>) ->" in line for line in by_lane)
