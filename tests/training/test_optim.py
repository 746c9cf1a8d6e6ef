"""Update rules against torch and plain optax, schedules by hand, and lanes that differ in traced numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.specs import Train
from subl_jax.training.optim import learning_rate, named, not_matrices, scale_by_frozen_adam, transform, within_layers

STEPS = 12
PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.full(4, 0.5, np.float32)}
TARGET = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float32)}


def gradient(params, step):
    """Of a quadratic whose curvature differs between entries, tilted anew at every step."""
    scale = 1.0 + jnp.arange(4.0)
    tilt = 0.3 * jnp.sin(step.astype(jnp.float32))
    return jax.tree.map(lambda p, t: scale * (p - t) + tilt, params, TARGET)


def trained(train, steps=STEPS):
    """Parameters after each step, (steps, …)."""
    rule = transform(train)

    def update(carry, step):
        params, state = carry
        change, state = rule.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, change)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, PARAMS)
    return jax.lax.scan(update, (params, rule.init(params)), jnp.arange(steps))[1]


def with_optax(rule):
    params, state, path = jax.tree.map(jnp.asarray, PARAMS), rule.init(PARAMS), []
    for step in range(STEPS):
        change, state = rule.update(gradient(params, jnp.int32(step)), state, params)
        params = optax.apply_updates(params, change)
        path.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *path)


def assert_close(got, want, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


TORCH = {
    "adamw": (
        Train(STEPS, 1, "adamw", lr=0.05, weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-3),
        lambda torch, p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adam with decay": (
        Train(STEPS, 1, "adam", lr=0.05, weight_decay=0.1, b2=0.95, eps=1e-3),
        lambda torch, p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-3),
    ),
    "sgd": (Train(STEPS, 1, "sgd", lr=0.05), lambda torch, p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (
        Train(STEPS, 1, "sgd", lr=0.05, momentum=0.9),
        lambda torch, p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
    "rmsprop": (
        Train(STEPS, 1, "rmsprop", lr=0.05, b2=0.9, eps=1e-2, momentum=0.5),
        lambda torch, p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, eps=1e-2, momentum=0.5),
    ),
}


@pytest.mark.parametrize(("train", "make"), TORCH.values(), ids=TORCH.keys())
def test_updates_are_those_of_torch(train, make):
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in PARAMS.items()}
    rule = make(torch, list(params.values()))
    path = []
    for step in range(STEPS):
        current = {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}
        for name, value in gradient(current, jnp.int32(step)).items():
            params[name].grad = torch.tensor(np.asarray(value))
        rule.step()
        path.append({name: value.detach().numpy().copy() for name, value in params.items()})
    assert_close(trained(train), jax.tree.map(lambda *leaves: np.stack(leaves), *path))


def test_clipping_is_that_of_torch():
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.tensor(PARAMS[name])) for name in ("w", "b")]
    grads = gradient(PARAMS, jnp.int32(0))
    for param, name in zip(params, ("w", "b"), strict=True):
        param.grad = torch.tensor(np.asarray(grads[name]))
    torch.nn.utils.clip_grad_norm_(params, 0.7)
    torch.optim.SGD(params, lr=1.0).step()
    got = jax.tree.map(lambda x: x[0], trained(Train(STEPS, 1, "sgd", lr=1.0, clip=0.7), steps=1))
    assert_close(got, {name: param.detach().numpy() for param, name in zip(params, ("w", "b"), strict=True)})


PLAIN = {
    "adamw": (Train(STEPS, 1, lr=0.05, weight_decay=0.1), optax.adamw(0.05, weight_decay=0.1)),
    "clipped": (
        Train(STEPS, 1, lr=0.05, clip=0.5),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05)),
    ),
    "clip 0 is none": (Train(STEPS, 1, "sgd", lr=0.05, clip=0.0), optax.sgd(0.05)),
    "decoupled decay for sgd": (
        Train(STEPS, 1, "sgd", lr=0.05, momentum=0.5, weight_decay=0.1),
        optax.chain(optax.trace(0.5), optax.add_decayed_weights(0.1), optax.scale(-0.05)),
    ),
    "sign": (Train(STEPS, 1, "signsgd", lr=0.05), optax.sign_sgd(0.05)),
    "sign of the momentum": (
        Train(STEPS, 1, "signsgd", lr=0.05, momentum=0.9),
        optax.chain(optax.trace(0.9), optax.scale_by_sign(), optax.scale(-0.05)),
    ),
    "cosine": (
        Train(STEPS, 1, "sgd", "cosine", lr=0.05),
        optax.sgd(optax.cosine_decay_schedule(0.05, STEPS)),
    ),
    "linear": (
        Train(STEPS, 1, "sgd", "linear", lr=0.05),
        optax.sgd(optax.linear_schedule(0.05, 0.0, STEPS)),
    ),
}


@pytest.mark.parametrize(("train", "rule"), PLAIN.values(), ids=PLAIN.keys())
def test_updates_are_those_of_plain_optax(train, rule):
    assert_close(trained(train), with_optax(rule))


# Of full rank: what a gradient has nothing of, Muon adds nothing of.
MATRIX = {
    "w": jnp.asarray(np.random.default_rng(1).normal(size=(3, 4))),
    "stacked": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4))),
}


def of_matrices(rule, steps=4):
    """Matrices after some steps against a slope that turns."""
    params, state = MATRIX, rule.init(MATRIX)
    for step in range(steps):
        slope = jax.tree.map(lambda p, step=step: jnp.sin(3 * p + step) + 0.1 * p, params)
        change, state = rule.update(slope, state, params)
        params = optax.apply_updates(params, change)
    return params


def test_muon_is_that_of_optax_for_every_matrix_of_a_stack():
    got = of_matrices(transform(Train(4, 1, "muon", lr=0.05, b1=0.95, weight_decay=0.1)))
    for name, matrices in (("w", MATRIX["w"][None]), ("stacked", MATRIX["stacked"])):
        for i, matrix in enumerate(matrices):
            rule = optax.contrib.muon(0.05, beta=0.95, weight_decay=0.1)
            params, state = {"w": matrix}, rule.init({"w": matrix})
            for step in range(4):
                slope = {"w": jnp.sin(3 * params["w"] + step) + 0.1 * params["w"]}
                change, state = rule.update(slope, state, params)
                params = optax.apply_updates(params, change)
            np.testing.assert_allclose(got[name].reshape(-1, 3, 4)[i], params["w"], rtol=1e-4, atol=1e-5)


def test_muons_steps_are_orthogonal():
    rule = transform(Train(1, 1, "muon", lr=1.0))
    change, _ = rule.update(MATRIX, rule.init(MATRIX), MATRIX)
    for matrix in change["stacked"]:
        np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), np.ones(3) * (4 / 3) ** 0.5, atol=0.4)


@pytest.mark.parametrize("hold", [1, 4])
def test_frozen_scales_are_adams_with_b1_0_and_v_held(hold):
    """After `hold` gradients at the start, each step is that of Adam without a first moment whose v does not change."""
    path = trained(Train(STEPS, 1, "frozen_adam", lr=0.05, eps=1e-2, hold=hold))
    start = jax.tree.map(jnp.asarray, PARAMS)
    slopes = [gradient(start, jnp.int32(step)) for step in range(hold)]
    v = jax.tree.map(lambda *g: sum(x**2 for x in g) / hold, *slopes)
    assert_close(jax.tree.map(lambda x: x[:hold], path), jax.tree.map(lambda x: jnp.stack([x] * hold), start))
    # optax: a decay of 1 holds v, eps is outside the root, and nothing is corrected; b1 = 0 is no first moment at all.
    adam = optax.scale_by_rms(decay=1.0, eps=1e-2, eps_in_sqrt=False, bias_correction=False)
    state, params = optax.ScaleByRmsState(nu=v), start
    for step in range(hold, STEPS):
        change, state = adam.update(gradient(params, jnp.int32(step)), state)
        params = optax.apply_updates(params, jax.tree.map(lambda c: -0.05 * c, change))
        assert_close(jax.tree.map(lambda x, step=step: x[step], path), params)


def test_frozen_scales_are_torchs_adam_where_its_v_is_held():
    """torch's own update with betas (0, 1): v stays as it is set. A step so large that nothing is corrected."""
    torch = pytest.importorskip("torch")
    param = torch.nn.Parameter(torch.tensor(PARAMS["w"]))
    rule = torch.optim.Adam([param], lr=0.05, betas=(0.0, 0.999999), eps=1e-2)
    slope = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)
    v = slope**2
    rule.state[param] = {"step": torch.tensor(1e9), "exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.tensor(v)}
    param.grad = torch.tensor(slope)
    rule.step()
    ours = scale_by_frozen_adam(1, 1e-2)
    _, state = ours.update({"w": jnp.asarray(slope)}, ours.init({"w": jnp.asarray(PARAMS["w"])}))
    change, _ = ours.update({"w": jnp.asarray(slope)}, state)
    np.testing.assert_allclose(PARAMS["w"] - 0.05 * change["w"], param.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_clip_is_felt():
    free, clipped = (trained(Train(STEPS, 1, "sgd", lr=0.05, clip=clip)) for clip in (0.0, 0.5))
    assert np.abs(free["w"] - clipped["w"]).max() > 0.1


def test_a_gradient_too_large_for_its_norm_is_not_hidden():
    rule = transform(Train(1, 1, "sgd", lr=1.0))
    change, _ = rule.update({"w": jnp.full(3, 1e30)}, rule.init({"w": jnp.zeros(3)}), {"w": jnp.zeros(3)})
    assert not np.any(change["w"] == 0)  # it diverges, and is seen to


def rates(train):
    return [float(learning_rate(train, jnp.int32(step))) for step in range(train.steps)]


def test_schedules_by_hand():
    def train(schedule, warmup=0):
        return Train(8, 1, schedule=schedule, lr=2.0, warmup=warmup)

    np.testing.assert_allclose(rates(train("constant")), [2.0] * 8)
    np.testing.assert_allclose(rates(train("constant", 4)), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(rates(train("linear")), [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(rates(train("linear", 4)), [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5])
    cosine = [1 + math.cos(math.pi * step / 6) for step in range(6)]
    np.testing.assert_allclose(rates(train("cosine", 2)), [1.0, 2.0, *cosine], rtol=1e-6)
    # A warm-up as long as the training, or longer.
    np.testing.assert_allclose(rates(train("cosine", 8)), [0.25 * (step + 1) for step in range(8)])
    np.testing.assert_allclose(rates(train("linear", 16)), [0.125 * (step + 1) for step in range(8)])
    assert float(learning_rate(train("linear"), jnp.int32(8))) == 0.0
    assert float(learning_rate(train("cosine"), jnp.int32(8))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "signsgd", "rmsprop", "frozen_adam"])
def test_lanes_that_differ_in_every_traced_number_are_what_they_are_alone(optimizer):
    short = 0.03 if optimizer == "rmsprop" else 1.0  # its first steps are 1 / √(1 − b2) times as long
    lanes = [
        Train(STEPS, 1, optimizer, "cosine", lr=0.05 * short, weight_decay=0.1, warmup=3, clip=0.5, b1=0.8, b2=0.9),
        Train(STEPS, 1, optimizer, "cosine", lr=0.01 * short, eps=1e-2, momentum=0.9, hold=3),
        Train(STEPS, 1, optimizer, "cosine", lr=0.2 * short, warmup=STEPS, clip=2.0, momentum=0.5),
    ]

    def lane(values):
        return trained(specs.bind(lanes[0], values))

    values = [specs.traced_values(train) for train in lanes]
    stacked = {name: jnp.asarray([value[name] for value in values]) for name in values[0]}
    together = jax.jit(jax.vmap(lane))(stacked)
    alone = jax.jit(lane)
    for i, train in enumerate(lanes):
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(one, alone({name: jnp.float32(value) for name, value in values[i].items()}))
        # As constants, 1 - b2 is rounded once less.
        assert_close(one, trained(train), rtol=1e-4, atol=1e-5)


# --- frozen parameters ---


def test_a_pattern_names_whole_paths():
    tree = {"layers_0": {"norm": {"scale": 1.0}, "mlp": {"kernel": 2.0}}, "norm": {"scale": 3.0}}
    assert named(("*norm/*",), tree) == {
        "layers_0": {"norm": {"scale": True}, "mlp": {"kernel": False}},
        "norm": {"scale": True},
    }
    assert named(("norm/*", "*/kernel"), tree) == {
        "layers_0": {"norm": {"scale": False}, "mlp": {"kernel": True}},
        "norm": {"scale": True},
    }


def test_a_pattern_that_names_nothing_is_told_with_the_nearest_path():
    with pytest.raises(
        InputError, match="Train.trainable: 'layers_0/mpl/kernel' names no parameter; did you mean 'lay"
    ):
        named(("*", "layers_0/mpl/kernel"), {"layers_0": {"mlp": {"kernel": 2.0}}})


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_frozen_parameters_keep_every_bit_and_the_others_move_as_if_alone(optimizer):
    train = Train(STEPS, 1, optimizer, lr=0.05, weight_decay=0.1, clip=0.5, momentum=0.5, trainable=("w",))
    path = trained(train)
    np.testing.assert_array_equal(path["b"], np.broadcast_to(PARAMS["b"], path["b"].shape))
    # The clip, too, is of the gradient of "w" alone.
    rule, w = transform(train.replace(trainable=())), jnp.asarray(PARAMS["w"])
    state, alone = rule.init({"w": w}), []
    for step in range(STEPS):
        change, state = rule.update({"w": gradient({**PARAMS, "w": w}, jnp.int32(step))["w"]}, state, {"w": w})
        w = w + change["w"]
        alone.append(w)
    np.testing.assert_allclose(path["w"], jnp.stack(alone), rtol=2e-5, atol=2e-6)


def test_frozen_parameters_have_no_moments():
    state = transform(Train(STEPS, 1, trainable=("w",))).init(jax.tree.map(jnp.asarray, PARAMS))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert shapes.count((3, 4)) == 2 and (4,) not in shapes


# --- layers ---


LAYERS = {
    "embed": {"kernel": np.full((2, 3), 0.5, np.float32)},
    **{f"layers_{i}": {"norm": {"scale": np.full(3, 0.1 * (i + 1), np.float32)}} for i in range(4)},
}
STACKED = {"layers": {"norm": {"scale": np.linspace(0.1, 0.4, 12, dtype=np.float32).reshape(4, 3)}}}


def moved(train, params):
    """Which layers are not what they were after two steps of a slope that is one everywhere, and how far they went."""
    rule, start = transform(train), jax.tree.map(jnp.asarray, params)
    params, state = start, rule.init(start)
    for _ in range(2):
        change, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, change)
    return jax.tree.map(lambda x, y: np.asarray(x - y), params, start)


RANGES = [((1, 1), [1]), ((2, -1), [2, 3]), ((3, 1), [0, 1, 3]), ((-1, 0), [0, 3]), ((0, -1), [0, 1, 2, 3])]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("layers", "inside"), RANGES)
def test_only_the_layers_between_change(layers, inside, optimizer):
    first, last = layers
    train = Train(2, 1, optimizer, lr=0.1, weight_decay=0.1, trainable=("layers*",), first_layer=first, last_layer=last)
    apart, stacked = moved(train, LAYERS), moved(train, STACKED)
    assert [i for i in range(4) if apart[f"layers_{i}"]["norm"]["scale"].any()] == inside
    assert np.flatnonzero(stacked["layers"]["norm"]["scale"].any(axis=1)).tolist() == inside
    assert not apart["embed"]["kernel"].any()


def test_what_belongs_to_no_layer_trains_where_it_is_named_and_a_clip_is_of_what_trains():
    train = Train(1, 1, "sgd", lr=1.0, clip=3.0, first_layer=2, last_layer=2)
    change = moved(train.replace(steps=2), LAYERS)
    # Six entries of the embedding and three of a layer: the gradient's norm is 3, and is not clipped.
    np.testing.assert_allclose(change["embed"]["kernel"], -2.0, rtol=1e-6)
    np.testing.assert_allclose(change["layers_2"]["norm"]["scale"], -2.0, rtol=1e-6)


def test_a_layer_alone_trains_as_its_pattern_does():
    masked = moved(Train(2, 1, lr=0.1, clip=0.5, trainable=("layers_*",), first_layer=2, last_layer=2), LAYERS)
    named_one = moved(Train(2, 1, lr=0.1, clip=0.5, trainable=("layers_2/*",)), LAYERS)
    assert_close(masked, named_one)


def test_layers_are_lanes_of_one_program():
    trains = [Train(2, 1, lr=0.1, first_layer=i, last_layer=j, by_layer=True) for i, j in ((0, -1), (1, 1), (3, 1))]
    assert len({str(specs.static_form(train)) for train in trains}) == 1
    assert specs.static_form(Train(2, 1)) != specs.static_form(trains[0])
    values = [specs.traced_values(train) for train in trains]
    stacked = {name: jnp.asarray([value[name] for value in values]) for name in values[0]}
    together = jax.vmap(lambda values: within_layers(specs.bind(trains[0], values), LAYERS))(stacked)
    got = np.stack([np.asarray(together[f"layers_{i}"]["norm"]["scale"]) for i in range(4)], axis=1)
    np.testing.assert_array_equal(got, [[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1]])


def test_which_parameters_are_matrices():
    assert not_matrices(LAYERS) == [f"layers_{i}/norm/scale" for i in range(4)]
    assert not_matrices(STACKED) == ["layers/norm/scale"]
    assert not_matrices({"lora": {"q": {"a": np.zeros((2, 3, 4))}}, "scale": np.zeros(())}) == ["scale"]
