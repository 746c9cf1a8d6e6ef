"""Adapters: ranks and layers by masks are exact, their geometry, and the same training as `peft` gives them."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_chat
import tiny_checkpoints
from few import few
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.models import lora, transformer
from subl_jax.pretrained import weights
from subl_jax.specs import Lora
from subl_jax.training import optim

CONFIG = transformer.Config(vocab=29, width=16, layers=3, heads=4, kv_heads=2, mlp=24, scan_layers=True)
BASE = jax.jit(transformer.init, static_argnums=0)(CONFIG, jax.random.key(0))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab, (3, 7)))
TRAIN = specs.Train(steps=4, batch=3, lr=0.05, weight_decay=0.1, clip=1.0)
MODULES = ("q", "o", "gate", "down")


def loss(params):
    logits, _ = transformer.apply(CONFIG, BASE, TOKENS[:, :-1], lora=lora.update(CONFIG, params))
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()


@jax.jit
def logits_of(base, params=None):
    return transformer.apply(CONFIG, base, TOKENS, lora=params and lora.update(CONFIG, params))[0]


@functools.partial(jax.jit, static_argnums=1)
def trained(params, train=TRAIN):
    rule = optim.transform(train, lora.FROZEN)

    def step(carry, _):
        params, opt = carry
        value, gradient = jax.value_and_grad(loss)(params)
        change, opt = rule.update(gradient, opt, params)
        return (optax.apply_updates(params, change), opt), value

    (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), length=train.steps)
    return params, losses


def fresh(seed=0, **fields):
    return lora.init(CONFIG, jax.random.key(seed), Lora(**{"modules": MODULES, "max_rank": 8, "rank": 8, **fields}))


def some(seed=0, **fields):
    """Adapters whose B is not zero."""
    params = fresh(seed, **fields)
    rng = np.random.default_rng(seed)
    for module in params["lora"].values():
        used = np.asarray(module["a"] != 0).any(axis=1)[:, :, None]
        module["b"] = jnp.asarray(rng.normal(size=module["b"].shape) * used, jnp.float32)
    return params


def leaves(params, name):
    return {module: np.asarray(x[name]) for module, x in params["lora"].items()}


# --- ranks and layers ---


def test_a_rank_below_the_largest_is_a_mask_and_trains_exactly_as_that_rank_alone():
    masked = fresh(rank=2, alpha=4.0)
    alone = {
        "lora": {m: {"a": x["a"][:, :, :2], "b": x["b"][:, :2]} for m, x in masked["lora"].items()},
        "scale": masked["scale"],
    }
    (masked, losses), (alone, expected) = trained(masked), trained(alone)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for name, axis in (("a", 2), ("b", 1)):
        for module, x in leaves(masked, name).items():
            used, rest = np.split(x, [2], axis)
            np.testing.assert_allclose(used, leaves(alone, name)[module], rtol=1e-4, atol=1e-6)
            assert used.any() and not rest.any()  # weight decay and Adam leave zero at exactly zero


@pytest.mark.parametrize(
    ("first", "last", "adapted"), [(1, 1, [1]), (-1, -1, [2]), (0, -2, [0, 1]), (-3, 0, [0]), (0, -1, [0, 1, 2])]
)
def test_only_the_layers_asked_for_are_trained(first, last, adapted):
    params, _ = trained(fresh(first_layer=first, last_layer=last))
    for name in ("a", "b"):
        for x in leaves(params, name).values():
            assert np.flatnonzero(x.reshape(CONFIG.layers, -1).any(axis=1)).tolist() == adapted


@pytest.mark.parametrize("optimizer", few(["adam", "sgd"], "adam"))
def test_what_is_masked_stays_zero_under_every_rule(optimizer):
    params, _ = trained(fresh(rank=3, first_layer=1), TRAIN.replace(optimizer=optimizer, momentum=0.9))
    for x in leaves(params, "a").values():
        assert not x[0].any() and x[1:, :, :3].all() and not x[:, :, 3:].any()
    for x in leaves(params, "b").values():
        assert not x[0].any() and x[1:, :3].any() and not x[:, 3:].any()


def test_ranks_layers_and_alphas_are_numbers_of_one_program():
    def init(rank, alpha, first, last):
        spec = specs.bind(Lora(), {"rank": rank, "alpha": alpha, "first_layer": first, "last_layer": last})
        return lora.init(CONFIG, jax.random.key(0), spec)

    lanes = [(8, 8.0, 0, -1), (1, 16.0, 1, 2), (3, 2.0, -1, -1)]
    together = jax.vmap(init)(*map(jnp.asarray, zip(*lanes, strict=True)))
    for i, (rank, alpha, first, last) in enumerate(lanes):
        spec = Lora(rank=rank, alpha=alpha, first_layer=first, last_layer=last)
        alone = lora.init(CONFIG, jax.random.key(0), spec)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), together, alone)


# --- what they start as, and what they add ---


def test_a_is_uniform_and_b_is_zero():
    params = fresh(max_rank=64, rank=64)
    drawn = [x["a"] for x in params["lora"].values()]
    for module, x in params["lora"].items():
        bound = CONFIG.adapter_sites()[module].inputs ** -0.5
        assert not x["b"].any() and np.abs(x["a"]).max() <= bound
        np.testing.assert_allclose(np.std(x["a"]), bound / 3**0.5, rtol=0.05)
        assert abs(np.mean(x["a"])) < 0.05 * bound
    # No two modules, layers or keys share numbers.
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0][0], drawn[0][1])
    assert not np.array_equal(drawn[0], fresh(1, max_rank=64, rank=64)["lora"]["q"]["a"])


def test_fresh_adapters_add_nothing():
    plain, adapted = logits_of(BASE), logits_of(BASE, fresh())
    np.testing.assert_array_equal(plain, adapted)


def matrices(params):
    """What adapters add to each weight, in float64."""
    scale = float(params["scale"])
    return {m: scale * np.asarray(x["a"], float) @ np.asarray(x["b"], float) for m, x in params["lora"].items()}


def merged(params):
    """The base with the adapters added into its kernels."""
    added = matrices(params)
    part = {m: "attention" if m in "qkvo" else "mlp" for m in added}
    base = jax.tree.map(lambda x: x, BASE)
    for module, matrix in added.items():
        kernel = base["layers"][part[module]][module]["kernel"]
        base["layers"][part[module]][module] = {"kernel": kernel + jnp.asarray(matrix, jnp.float32)}
    return base


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4.0), (8, 1.0)])
def test_the_model_is_that_with_alpha_over_rank_times_their_product_added(rank, alpha):
    params = some(rank=rank, alpha=alpha)
    assert float(params["scale"]) == alpha / rank
    expected, given, plain = logits_of(merged(params)), logits_of(BASE, params), logits_of(BASE)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(given - plain).max() > 0.01


def test_the_scale_is_not_trained():
    before = fresh(alpha=16.0)
    assert trained(before)[0]["scale"] == before["scale"] == 2.0


@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 8), st.floats(0.5, 32))
@settings(deadline=None, max_examples=15)
def test_dot_and_cosine_are_those_of_the_matrices(seed, rank, other_rank, alpha):
    one, other = some(seed, rank=rank, alpha=alpha), some(seed + 1, rank=other_rank)
    x, y = (np.concatenate([matrix.ravel() for matrix in matrices(params).values()]) for params in (one, other))
    size = np.linalg.norm(x) * np.linalg.norm(y)
    np.testing.assert_allclose(lora.dot(one, other), x @ y, atol=1e-5 * size)
    np.testing.assert_allclose(lora.cosine(one, other), x @ y / size, atol=1e-5)
    np.testing.assert_allclose(lora.cosine(one, one), 1.0, rtol=1e-5)


def test_modules_that_only_one_has_are_orthogonal_to_all():
    one, other = some(modules=("q", "up")), some(1, modules=("q", "v"))
    both = float(one["scale"]) * float(other["scale"])
    shared = both * np.sum(
        np.einsum("lir,lro->lio", *(one["lora"]["q"][n] for n in "ab"))
        * np.einsum("lir,lro->lio", *(other["lora"]["q"][n] for n in "ab"))
    )
    np.testing.assert_allclose(lora.dot(one, other), shared, rtol=1e-4)
    assert np.isnan(lora.cosine(fresh(), other))


# --- mistakes ---


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"modules": ("q", "gate")}, "Lora.modules: 'gate': this model has none; one of "),
        ({"first_layer": 3}, "Lora.first_layer = 3: the model has 3 layers, counted from 0"),
        ({"last_layer": -4}, "Lora.last_layer = -4: the model has 3 layers"),
        ({"first_layer": -1, "last_layer": 1}, "Lora.first_layer = -1: comes after last_layer = 1"),
    ],
)
def test_adapters_that_a_model_cannot_have_are_one_line(fields, line):
    with pytest.raises(InputError) as error:
        lora.check(dataclasses.replace(CONFIG, gated=False), Lora(**{"modules": ("q", "up"), **fields}))
    assert line in str(error.value) and "\n" not in str(error.value)
    lora.check(CONFIG, Lora())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"rank": 9}, "Lora.rank = 9: must be at most max_rank = 8"),
        ({"modules": ("q", "kk")}, "Lora.modules: 'kk': did you mean 'k'? one of q, k, v"),
        ({"modules": ("q", "q")}, "expected at least one, each once"),
        ({"modules": ()}, "expected at least one, each once"),
        ({"alpha": 0.0}, "Lora.alpha = 0.0: must be more than 0"),
        ({"rank": 0}, "Lora.rank = 0: must be at least 1"),
    ],
)
def test_impossible_adapters_are_one_line(fields, line):
    with pytest.raises(InputError) as error:
        Lora(**fields)
    assert line in str(error.value) and "\n" not in str(error.value)


# --- against peft ---

STEPS = specs.Train(steps=4, batch=4, lr=0.01, weight_decay=0.05, warmup=2, schedule="linear", clip=1.0)


def conversations(world):
    """Samples, and each as the whole tokens of its conversation with the place where its completion begins."""
    pairs = [("Three numbers?", "1, 22, 333"), ("Go on: 4, 5", "6, 7"), ("An animal?", "Owl"), ("Numbers.", "9")]
    samples = world.tokens(pairs)
    head, whole = world.head, []
    for row in samples:
        prompt = [*head, *row[1 : 1 + row[0]].tolist()]
        completion = row[1 + world.prompt_tokens :].tolist()
        completion = completion[: completion.index(int(world.held["stops"][0])) + 1]
        whole.append((prompt + completion, len(prompt)))
    return samples, whole


def with_peft(folder, init, modules, whole):
    """Losses, and A and B after training, of the same adapters in torch; completion-only loss on whole texts."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    targets = [f"{name}_proj" for name in modules]
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    )
    adapters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            layer, module, which = parts[parts.index("layers") + 1], parts[-4].removesuffix("_proj"), parts[-3][-1]
            adapters[module, which.lower(), int(layer)] = parameter
    with torch.no_grad():
        for (module, which, layer), parameter in adapters.items():
            parameter.copy_(torch.tensor(np.array(init["lora"][module][which][layer]).T))
    rule = torch.optim.AdamW(
        adapters.values(), STEPS.lr, betas=(STEPS.b1, STEPS.b2), eps=STEPS.eps, weight_decay=STEPS.weight_decay
    )
    # Half the rate, all of it, then down in a straight line to 0 at the end.
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: (0.5, 1.0, 1.0, 0.5, 0.0)[step])
    longest = max(len(tokens) for tokens, _ in whole)
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row, _ in whole])
    labels = torch.full_like(tokens, -100)
    for i, (row, start) in enumerate(whole):
        labels[i, start : len(row)] = tokens[i, start : len(row)]
    losses = []
    for _ in range(STEPS.steps):
        rule.zero_grad()
        logits = model(tokens).logits[:, :-1]  # what is padding comes last, where causal attention hides it
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        value.backward()
        torch.nn.utils.clip_grad_norm_(adapters.values(), STEPS.clip)
        rule.step()
        schedule.step()
        losses.append(value.item())
    return losses, {place: parameter.detach().numpy().T for place, parameter in adapters.items()}


# transformers asks every parameter class for a signature that torch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "modules"),
    few([("llama", specs.PROJECTIONS), ("qwen2", ("q", "v")), ("qwen3", specs.PROJECTIONS)], ("qwen2", ("q", "v"))),
)
def test_training_is_that_of_peft(kind, modules, tmp_path):
    pytest.importorskip("peft")
    folder = tiny_chat.save(tmp_path / kind, kind)
    world = tiny_chat.held(tiny_chat.world(folder))
    spec = Lora(modules=modules, max_rank=4, rank=4, alpha=8.0)
    init = world.trainable({}, jax.random.key(0), spec)
    samples, whole = conversations(world)
    losses, theirs = with_peft(folder, init, modules, whole)

    rule = optim.transform(STEPS, world.frozen)
    batch = world.channel_batch(jnp.asarray(samples))

    @jax.jit
    def step(params, opt):
        value, gradient = jax.value_and_grad(world.loss)(params, batch)
        change, opt = rule.update(gradient, opt, params)
        return optax.apply_updates(params, change), opt, value

    params, opt, ours = init, rule.init(init), []
    for _ in range(STEPS.steps):
        params, opt, value = step(params, opt)
        ours.append(float(value))
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    assert {m for m, _, _ in theirs} == set(modules)
    for (module, which, layer), value in theirs.items():
        # Adam divides by the size of a gradient: rounding of the smallest entries shows at a share of the rate.
        given = np.asarray(params["lora"][module][which][layer])
        np.testing.assert_allclose(given, value, atol=0.01 * STEPS.lr, err_msg=f"{module} {which} {layer}")


LLAMA = {
    module: f"{part}.{module}_proj"
    for part, own in (("self_attn", ("q", "k", "v", "o")), ("mlp", ("gate", "up", "down")))
    for module in own
}
# Where a family has a projection by itself. Those of queries, keys and values are one matrix in the last two.
NAMES = {
    "GPTNeoX": {"o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    "GPT2": {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", few(tiny_checkpoints.MODELS, "gpt2"))
def test_the_gradients_of_adapters_are_those_of_peft_in_every_family(name, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = tiny_checkpoints.torch_model(name)
    checkpoint = weights.open_checkpoint(str(tiny_checkpoints.save_folder(model, tmp_path)))
    config, base = checkpoint.config, checkpoint.load()
    names = NAMES.get(tiny_checkpoints.MODELS[name][0], {m: LLAMA[m] for m in config.adapter_sites()})
    spec = Lora(modules=tuple(names), max_rank=3, rank=3, alpha=6.0)
    params = lora.init(config, jax.random.key(0), spec)
    draw = np.random.default_rng(0).normal
    params["lora"] = {m: {**x, "b": 0.1 * draw(size=x["b"].shape).astype("f4")} for m, x in params["lora"].items()}

    given = {"r": 3, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": list(names.values())}
    model = peft.get_peft_model(model, peft.LoraConfig(**given, task_type="CAUSAL_LM"))
    found = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            stem, _, which = path.removesuffix(".default.weight").rpartition(".lora_")
            (module,) = [m for m, own in names.items() if stem.endswith(f".{own}")]
            layer = int(re.search(r"\.(\d+)\.", stem)[1])
            found[module, which.lower(), layer] = parameter
            with torch.no_grad():
                parameter.copy_(torch.tensor(np.array(params["lora"][module][which.lower()][layer]).T))
    assert len(found) == 2 * len(names) * config.layers
    tokens = torch.tensor(tiny_checkpoints.TOKENS).long()
    logits = model(tokens).logits[:, :-1]
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    theirs.backward()

    def loss(params):
        logits, _ = transformer.apply(config, base, tiny_checkpoints.TOKENS[:, :-1], lora=lora.update(config, params))
        return optax.softmax_cross_entropy_with_integer_labels(logits, tiny_checkpoints.TOKENS[:, 1:]).mean()

    ours, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    largest = max(parameter.grad.abs().max().item() for parameter in found.values())
    for (module, which, layer), parameter in found.items():
        own = np.asarray(gradient["lora"][module][which][layer])
        np.testing.assert_allclose(
            own, parameter.grad.numpy().T, rtol=0, atol=1e-5 * largest, err_msg=f"{module} {which}"
        )


def test_a_projection_and_its_update_are_kept_as_one_array():
    """What `remat="dots"` keeps for the gradient of adapters: what is kept without, and what attention mixes.

    That is the input of o's adapter, and dear to compute again; the inputs of the others follow from what is kept.
    """
    config = transformer.Config(vocab=32, width=64, layers=2, heads=4, mlp=96, scan_layers=True, remat="dots")
    params, spec = transformer.init(config, jax.random.key(0)), specs.Lora(rank=2, max_rank=2, alpha=4.0)
    adapters, tokens = lora.init(config, jax.random.key(1), spec), jnp.zeros((4, 20), jnp.int32)

    def kept(adapters):
        # The embeddings are disturbed so that there is a gradient to pass down without adapters too.
        def loss(values):
            moved, own = values
            used = {**params, "embed": jax.tree.map(lambda x: x + moved, params["embed"])}
            update = None if own is None else lora.update(config, own)
            return transformer.apply(config, used, tokens, lora=update)[0].sum()

        residuals = jax.eval_shape(lambda v: jax.vjp(loss, v)[1], (jnp.float32(0), adapters))
        wide = [x for x in jax.tree.leaves(residuals) if x.ndim == 3 and x.shape[:2] == (2, tokens.size)]
        return sorted(x.shape[-1] for x in wide)

    without = kept(None)
    # A block's input, and q, k, v, o, up and gate.
    assert without == [64, 64, 64, 64, 64, 96, 96]
    assert kept(adapters) == sorted([*without, 64])
