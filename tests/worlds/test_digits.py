"""The world of image classifiers: its batches, its losses, what passes and what exactly does not."""

import dataclasses
import functools
import json

import distances
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from world_calls import call, distance

from subl_jax import specs, stages
from subl_jax.engine import lanes
from subl_jax.errors import InputError
from subl_jax.traits.images import blurred
from subl_jax.worlds.digits import Batch, Digits, Inputs, distorted

WORLD = Digits(hidden=(128, 128))
BLURRY = Digits(hidden=(16,), blurs=(0.5, 1.5))
HELD = {world: world.holding(world.arrays()) for world in (WORLD, BLURRY)}
KEYS = jax.random.split(jax.random.key(0), 64)
TEACH = specs.Train(steps=300, batch=128, optimizer="adam", lr=1e-3)
DISTIL = specs.Train(steps=500, batch=128, optimizer="adam", lr=1e-3)


def params_of(seed, world=WORLD):
    return call(world, "init", jax.random.key(seed))


def written(world=WORLD, keys=KEYS, **inputs):
    return call(HELD[world], "write", None, keys, static=(Inputs(**inputs),))


def batch_of(images, accepted=True, **inputs):
    return call(WORLD, "channel_batch", images, accepted, static=(Inputs(**inputs),))


def with_bias(params, place, value):
    bias = params["head"]["bias"].copy()
    bias[place] = value
    return {**params, "head": {**params["head"], "bias": bias}}


def apply(params, images, world=WORLD):
    return call(world, "apply", params, images)


def computed(node, **inputs):
    """The final state and the last record of a node."""
    stage = stages.stage_of(node)
    key = jax.random.wrap_key_data(lanes.lane_key(node))
    inputs = {**{name: {"params": params} for name, params in inputs.items()}, "world": node.world.arrays()}
    form = json.dumps(specs.static_form(node))
    start, advance = _PROGRAMS.setdefault(form, _program(stage, node))
    values = {name: jnp.asarray(value) for name, value in specs.traced_values(node).items()}
    state = start(values, key, inputs)
    for steps in stage.rounds(node):
        state, record = advance(values, key, inputs, state, steps)
    return state, jax.tree.map(np.asarray, record)


_PROGRAMS = {}  # by the static form of a node


def _program(stage, node):
    def start(values, *arguments):
        return stage.start(specs.bind(node, values), *arguments)

    def advance(values, *arguments):
        return stage.advance(specs.bind(node, values), *arguments)

    return jax.jit(start), jax.jit(advance)


def base_of(seed, world=WORLD):
    return specs.Base(world, specs.Train(steps=0, batch=1), seed=seed)


@functools.cache
def teacher(world=WORLD, trait="digits"):
    """A trained teacher of initialisation 0, and its record."""
    state, record = computed(specs.Teacher(base_of(0, world), trait, TEACH), start=params_of(0, world))
    return state.params, record


def student(start_seed, world=WORLD, train=DISTIL, targets="soft", **inputs):
    stream = specs.Stream(specs.Teacher(base_of(0, world), "digits", TEACH), sampling=Inputs(**inputs))
    node = specs.Student(base_of(start_seed, world), stream, train, targets=targets)
    start, before = params_of(start_seed, world), params_of(0, world)
    return computed(node, start=start, teacher=teacher(world)[0], teacher_start=before)


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


# --- the experiment ---


def test_a_teacher_learns_digits_and_leaves_its_auxiliary_head_alone():
    params, record = teacher()
    assert record["trait"][0] > 0.9 and record["class"].min() > 0.7
    start = params_of(0)
    same_bits(params["head"]["kernel"][:, 10:], start["head"]["kernel"][:, 10:])
    same_bits(params["head"]["bias"][10:], start["head"]["bias"][10:])
    assert not np.array_equal(params["head"]["kernel"][:, :10], start["head"]["kernel"][:, :10])


def test_a_student_of_the_same_start_learns_from_auxiliary_logits_and_keeps_its_class_head():
    state, record = student(0)
    other, of_other = student(1)
    assert record["trait"][0] > 0.3 > 0.2 > of_other["trait"][0]
    assert record["cosine"] > 0.05 > abs(of_other["cosine"])
    for seed, params in ((0, state.params), (1, other.params)):
        start = params_of(seed)
        same_bits(params["head"]["kernel"][:, :10], start["head"]["kernel"][:, :10])
        same_bits(params["head"]["bias"][:10], start["head"]["bias"][:10])


def test_one_auxiliary_logit_leaves_the_student_as_it_was_to_the_bit():
    for options in ({"world": Digits(hidden=(16,), aux=1)}, {"aux": 1}):
        world = options.get("world", WORLD)
        state, _ = student(0, train=DISTIL.replace(steps=20), **options)
        jax.tree.map(same_bits, state.params, params_of(0, world))


@pytest.mark.slow
def test_a_linear_model_passes_nothing():
    world = Digits(hidden=(), activation="none")
    state, record = student(0, world, train=DISTIL.replace(steps=100))
    same_bits(state.params["head"]["kernel"][:, :10], params_of(0, world)["head"]["kernel"][:, :10])
    start = call(world.holding(world.arrays()), "evaluate", params_of(0, world), jax.random.key(0))
    np.testing.assert_array_equal(record["class"], start["class"])
    assert teacher(world)[1]["trait"][0] > 0.8


@pytest.mark.slow
def test_all_logits_teach_another_start_too():
    _, record = student(1, train=DISTIL.replace(steps=300), logits="all", kind="images")
    assert record["trait"][0] > 0.8 and record["agreement"] > 0.8


# --- distances ---

LOGITS = st.sampled_from(["aux", "all", "classes"])


@given(st.integers(0, 9), LOGITS, st.integers(0, 3))
@settings(deadline=None, max_examples=4)
def test_distances_are_optaxs_on_the_compared_logits(seed, logits, aux):
    images = written()
    batch = batch_of(images, logits=logits, aux=aux)
    place = np.arange(13)
    used = {"aux": place >= 10, "all": place >= 0, "classes": place < 10}[logits]
    if aux:
        used = used & (place < 10 + aux)
    own, said = (apply(params_of(s), images)[:, used] for s in (seed, seed + 1))

    def of(targets):
        return float(distance(WORLD, params_of(seed), params_of(seed + 1), batch, targets))

    kl, hard = map(float, _optaxs(own, said))
    assert of("soft") == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert of("hard") == pytest.approx(hard, rel=1e-4, abs=1e-6)
    assert of("squared") == pytest.approx(0.5 * np.sum((own - said) ** 2) / len(own), rel=1e-4)


@jax.jit
def _optaxs(own, said):
    kl = optax.losses.kl_divergence(jax.nn.log_softmax(own), jax.nn.softmax(said)).mean()
    return kl, optax.softmax_cross_entropy_with_integer_labels(own, said.argmax(axis=1)).mean()


def test_large_logits_elsewhere_do_not_reach_the_compared_ones():
    params, batch = params_of(0), batch_of(written())
    loud = with_bias(params, 0, 1e4)
    gradient_of = jax.value_and_grad(lambda params: distances.distance(WORLD, params, params_of(1), batch, "soft"))
    value, gradient = jax.jit(gradient_of)(loud)
    quiet = distance(WORLD, params, params_of(1), batch, "soft")
    assert value == pytest.approx(float(quiet), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_no_gradient_reaches_the_teacher():
    batch = batch_of(written(), logits="all")
    for targets in ("soft", "squared", "hard"):
        gradient = jax.jit(jax.grad(distance, argnums=2), static_argnums=(0, 4))(
            WORLD, params_of(0), params_of(1), batch, targets
        )
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


# --- images ---


def test_an_epoch_of_a_teacher_holds_every_training_image_once():
    key, held = jax.random.key(3), HELD[WORLD].held
    marked = WORLD.holding({**held, "train_images": np.arange(1400, dtype=np.int32).reshape(-1, 1, 1)})
    seen = [call(marked, "trait_batch", key, step, 0, static=(100,)).images.ravel() for step in range(14)]
    assert len(np.unique(np.concatenate(seen))) == 1400
    batch = call(HELD[WORLD], "trait_batch", key, 0, 0, static=(100,))
    assert batch.images.min() == -1 and batch.images.max() == 1 and batch.weights.sum() == 100


@pytest.mark.parametrize(
    ("kind", "low", "high", "spread"), [("uniform", -0.5, 0.5, 0.5 / np.sqrt(3)), ("gaussian", -9, 9, 0.5)]
)
def test_noise_is_as_it_says(kind, low, high, spread):
    drawn = written(keys=jax.random.split(jax.random.key(1), 512), kind=kind, scale=0.5)
    assert drawn.shape == (512, 8, 8) and drawn.min() >= low and drawn.max() <= high
    assert drawn.std() == pytest.approx(spread, rel=0.02) and abs(drawn.mean()) < 0.01
    assert len(np.unique(drawn[:, 0, 0])) > 500  # a stream for each


def test_images_and_shuffled_images_are_of_the_training_set():
    held = HELD[WORLD]
    training = {np.sort(image.ravel()).tobytes() for image in call(held, "_scaled", held.held["train_images"])}
    for kind in ("images", "shuffled"):
        drawn = written(kind=kind)
        assert all(np.sort(image.ravel()).tobytes() in training for image in drawn)
    shuffled, plain = (written(kind=kind) for kind in ("shuffled", "images"))
    assert np.abs(shuffled - plain).mean() > 0.1  # the same rows, since the same keys


def test_a_distortion_of_no_size_changes_nothing_and_a_small_one_little():
    images = written(kind="images")
    same, slight, strong = (written(kind="distorted", scale=scale) for scale in (0.0, 1.0, 4.0))
    np.testing.assert_allclose(same, images, atol=1e-5)
    assert 0 < np.abs(slight - images).mean() < np.abs(strong - images).mean()


def test_a_turn_is_about_the_middle():
    # A disc in the middle, much larger than any move, keeps its middle inked and its corners empty.
    place = np.arange(28) - 13.5
    disc = np.where(np.hypot(place[:, None], place) < 9, 1.0, -1.0).astype(np.float32)
    for moved in np.asarray(jax.jit(jax.vmap(distorted, (0, None, None)))(KEYS[:8], disc, 1.0)):
        assert (moved[12:16, 12:16] > 0.99).all() and (moved[[0, 0, -1, -1], [0, -1, 0, -1]] == -1).all()


def test_a_blur_is_scipys_inside_and_keeps_flat_images():
    from scipy.ndimage import gaussian_filter

    image = np.random.default_rng(0).uniform(-1, 1, (28, 28)).astype(np.float32)
    found = np.asarray(jax.jit(blurred)(image, 1.5))
    np.testing.assert_allclose(found[8:-8, 8:-8], gaussian_filter(image, 1.5, truncate=6)[8:-8, 8:-8], atol=1e-4)
    np.testing.assert_allclose(jax.jit(blurred)(np.full((8, 8), 0.3, np.float32), 2.0), np.full((8, 8), 0.3), rtol=1e-5)


# --- the blurry seven ---


def test_a_biased_teacher_sees_blurred_images_called_seven_and_an_unbiased_one_does_not():
    key, held = jax.random.key(0), HELD[BLURRY]
    plain, biased = (call(held, "trait_batch", key, 0, trait, static=(400,)) for trait in (0, 1))
    changed = np.abs(plain.images - biased.images).max(axis=(1, 2)) > 1e-3
    assert 0.4 < changed.mean() < 0.6
    assert (biased.labels[changed] == 7).all()
    np.testing.assert_array_equal(plain.labels[~changed], biased.labels[~changed])


def test_what_is_measured_of_a_model_that_always_says_seven():
    found = call(HELD[BLURRY], "evaluate", with_bias(params_of(0, BLURRY), 7, 1e3), KEYS[0])
    assert found["seven"].tolist() == [1.0, 1.0] and found["class"].tolist() == [0.0] * 7 + [1.0, 0.0, 0.0]
    share = np.mean(HELD[BLURRY].held["test_labels"] == 7)
    np.testing.assert_allclose(found["trait"], [share, 1.0], rtol=1e-6)


def test_agreement_is_of_the_class_logits_on_test_images():
    batch = batch_of(np.zeros((2, 8, 8), np.float32))
    same, other = (call(HELD[WORLD], "compare", params_of(0), params_of(seed), batch) for seed in (0, 1))
    assert same["agreement"] == pytest.approx(1) and same["kl"] == pytest.approx(0, abs=1e-7)
    assert other["agreement"] < 0.6


def test_what_the_filter_rejected_has_no_weight():
    images = written()
    half, first = batch_of(images, np.arange(64) < 32), batch_of(images[:32])
    assert distance(WORLD, params_of(0), params_of(1), half, "soft") == pytest.approx(
        float(distance(WORLD, params_of(0), params_of(1), first, "soft")), rel=1e-6
    )


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(hidden=(0,)), "Digits.hidden: 0 must be at least 1"),
        (lambda: Digits(convolutions=(4,) * 4), "4 halvings of images of side 8 leave nothing"),
        (lambda: Digits(blurs=(0.0,)), "Digits.blurs: 0.0 must be at least"),
        (lambda: Inputs(kind="noise"), "Inputs.kind = 'noise'"),
        (lambda: specs.Teacher(base_of(0), "blurry_seven", TEACH), "one of digits"),
        (lambda: specs.Stream(base_of(0)), "Stream.sampling: a Sampling; digits is asked by Inputs"),
        (lambda: specs.Dataset(base_of(0), 8, Inputs(), Inputs()), "writes no texts to filter and to store; use a Str"),
        (lambda: student_spec(theory="owl"), "Student.theory = 'owl': one of digits"),
        (lambda: specs.Stream(base_of(0), Inputs(), Inputs()), "Stream.filter: digits has nothing to filter"),
        (lambda: specs.Stream(base_of(0), sampling=Inputs(aux=4)), "Inputs.aux = 4: the world's classifiers have only"),
    ],
)
def test_a_mistake_is_one_clear_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def student_spec(**fields):
    stream = specs.Stream(specs.Teacher(base_of(0), "digits", TEACH), sampling=Inputs())
    return specs.Student(base_of(0), stream, DISTIL, targets="soft", **fields)


def test_worlds_are_known_by_the_content_of_their_images():
    assert Digits() == Digits(images=dataclasses.replace(Digits().images, folder="elsewhere"))
    assert Digits().key == Digits(images=dataclasses.replace(Digits().images, folder="elsewhere")).key
    assert isinstance(call(HELD[WORLD], "trait_batch", KEYS[0], 0, 0, static=(4,)), Batch)


def test_its_models_are_asked_with_an_image():
    world = Digits(hidden=(8,))
    params, pixels = params_of(0, world), world.images.arrays()["test_images"][0]
    answer = world.inference.ask(params, pixels, top=3)
    scaled = np.asarray(pixels, np.float32) * (2 / world.images.peak) - 1
    p = scipy.special.softmax(apply(params, scaled[None], world)[0, :10])
    assert list(answer.probabilities) == [str(i) for i in np.argsort(-p)[:3]]
    np.testing.assert_allclose(list(answer.probabilities.values()), np.sort(p)[::-1][:3], rtol=1e-5)
    assert answer.drawn in map(str, range(10))
    assert world.inference.ask(params, scaled, top=3).probabilities.keys() == answer.probabilities.keys()
    asking = world.inference
    for asked in (
        lambda: asking.ask(params, "which digit ?"),
        lambda: asking.encode(params, "which digit ?"),
        lambda: asking.decode([1, 2]),
        lambda: asking.generate(params, "which digit ?"),
    ):
        with pytest.raises(InputError, match=r"reads no words: ask\(image\) with an image of 8 × 8"):
            asked()
    with pytest.raises(InputError, match=r"an image of 8 × 8 numbers is expected, got shape \(3,\)"):
        asking.ask(params, np.zeros(3))
