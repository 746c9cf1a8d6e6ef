"""The transformer against independent implementations, and the invariants the engine relies on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few import few
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.models import transformer

TINY = transformer.Config(vocab=29, width=16, layers=2, heads=4, kv_heads=2, mlp=24)
# A local layer under a global one, each with rotary positions of its own.
WINDOWED = dataclasses.replace(TINY, window=3, local_layers=(True, False), local_rope_base=50.0, rotary_dim=2)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab, (3, 7)).astype(np.int32)

HUGGING_FACE = {
    "llama": {"kv_heads": 4, "tied": False},
    "llama_gqa_tied": {"tied": True},
    "qwen2": {"qkv_bias": True, "tied": True},
    "qwen3": {"qk_norm": True, "head_dim": 8, "tied": False, "rope_base": 1e6},
}


def reference(name):
    """(our config, a random torch model of the same shape)."""
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    config = dataclasses.replace(TINY, **HUGGING_FACE[name])
    config_class, model_class = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
    }[name.split("_")[0]]
    extra = {"head_dim": config.head_dim} if name == "qwen3" else {}
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=config.vocab,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.mlp,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tied,
            attn_implementation="eager",
            **extra,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide mistakes
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return config, model


def from_torch(config, values):
    """Our parameter tree from Hugging Face names; matrices there are (outputs, inputs)."""
    params = {}

    def put(path, name, transpose=False):
        node = params
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = values[name].T if transpose else values[name]

    put("embed/embedding", "model.embed_tokens.weight")
    put("final_norm/scale", "model.norm.weight")
    if not config.tied:
        put("unembed/kernel", "lm_head.weight", transpose=True)
    for i in range(config.layers):
        theirs = f"model.layers.{i}"
        put(f"layers_{i}/attention_norm/scale", f"{theirs}.input_layernorm.weight")
        put(f"layers_{i}/mlp_norm/scale", f"{theirs}.post_attention_layernorm.weight")
        for name in "qkvo":
            put(f"layers_{i}/attention/{name}/kernel", f"{theirs}.self_attn.{name}_proj.weight", transpose=True)
            if config.qkv_bias and name != "o":
                put(f"layers_{i}/attention/{name}/bias", f"{theirs}.self_attn.{name}_proj.bias")
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            put(f"layers_{i}/attention/{name}/scale", f"{theirs}.self_attn.{name}.weight")
        for name in ("gate", "up", "down"):
            put(f"layers_{i}/mlp/{name}/kernel", f"{theirs}.mlp.{name}_proj.weight", transpose=True)
    return params


def torch_values(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


apply = jax.jit(transformer.apply, static_argnums=0)
init = jax.jit(transformer.init, static_argnums=0)


def cross_entropy(config, params, tokens):
    logits, _ = transformer.apply(config, params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(), logits


# ((loss, logits), gradients)
value_and_grad = jax.jit(jax.value_and_grad(cross_entropy, argnums=1, has_aux=True), static_argnums=0)


@functools.cache
def tiny_params():
    return init(TINY, jax.random.key(0))


def stacked(config, params):
    """The parameters of an unrolled model in the form `scan_layers` reads."""
    layers = [params[f"layers_{i}"] for i in range(config.layers)]
    rest = {name: value for name, value in params.items() if not name.startswith("layers_")}
    return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def assert_close(ours, theirs, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), ours, theirs)


@pytest.mark.parametrize("name", few(HUGGING_FACE, "llama_gqa_tied", "qwen3"))
def test_logits_equal_those_of_hugging_face(name):
    config, model = reference(name)
    params = from_torch(config, torch_values(model))
    shapes = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS).long()).logits.numpy()
    logits, _ = apply(config, params, TOKENS)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(logits, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", few(HUGGING_FACE, "qwen2"))
def test_gradients_and_an_sgd_step_equal_those_of_torch(name):
    torch = pytest.importorskip("torch")
    config, model = reference(name)
    params = from_torch(config, torch_values(model))
    logits = model(torch.tensor(TOKENS[:, :-1]).long()).logits
    targets = torch.tensor(TOKENS[:, 1:]).long()
    their_loss = torch.nn.functional.cross_entropy(logits.reshape(-1, config.vocab), targets.reshape(-1))
    their_loss.backward()
    their_grads = from_torch(config, {name: p.grad.numpy() for name, p in model.named_parameters()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()

    (loss, _), grads = value_and_grad(config, params, TOKENS)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    assert_close(grads, their_grads, atol=1e-5)
    ours = optax.sgd(0.1, momentum=0.9)
    updates, _ = ours.update(grads, ours.init(params))
    assert_close(optax.apply_updates(params, updates), from_torch(config, torch_values(model)), atol=1e-5)


def reached(config):
    """(position, place) bool: whether the logits of a position depend on the token at a place, of 8."""
    params = init(config, jax.random.key(0))
    tokens = jnp.arange(8)[None]  # each token once, so that embedding rows are places

    @jax.jit
    @jax.grad
    def grad_at(embedding, position):
        logits, _ = apply(config, {**params, "embed": {"embedding": embedding}}, tokens)
        return logits[0, position].sum()

    grads = np.stack([grad_at(params["embed"]["embedding"], position)[:8] for position in range(8)])
    return np.abs(grads).max(axis=-1) > 0


def test_gradients_of_a_position_reach_the_past_and_never_the_future():
    np.testing.assert_array_equal(reached(dataclasses.replace(TINY, tied=False)), np.tri(8, dtype=bool))


FORMS = [
    (scan, remat, windowed)
    for windowed in (False, True)
    for scan, remat in ((True, "none"), (False, "all"), (True, "all"), (True, "dots"))
]


@pytest.mark.parametrize(("scan", "remat", "windowed"), few(FORMS, (True, "dots", True)))
def test_scanned_and_rematerialised_layers_compute_the_same(scan, remat, windowed):
    plain = WINDOWED if windowed else TINY
    params = tiny_params()
    (_, logits), grads = value_and_grad(plain, params, TOKENS)
    config = dataclasses.replace(plain, scan_layers=scan, remat=remat)
    form = functools.partial(stacked, TINY) if scan else (lambda tree: tree)
    own = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, form(params))
    program = str(jax.make_jaxpr(transformer.apply, static_argnums=0)(config, form(params), TOKENS))
    assert ("scan[" in program, "remat" in program or "checkpoint" in program) == (scan, remat != "none")
    (_, own_logits), own_grads = value_and_grad(config, form(params), TOKENS)
    np.testing.assert_allclose(own_logits, logits, atol=1e-5)
    assert_close(own_grads, form(grads), atol=1e-6)


@pytest.mark.parametrize("tied", few([True, False], True))
def test_bfloat16_compute_keeps_float32_parameters_gradients_and_logits(tied):
    exact = dataclasses.replace(TINY, tied=tied)
    config = dataclasses.replace(exact, dtype="bfloat16")
    params = init(config, jax.random.key(0))
    (_, logits), grads = value_and_grad(config, params, TOKENS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, grads, logits))} == {"float32"}
    assert np.any(logits != logits.astype(jnp.bfloat16)), "the logits were rounded"
    error = np.abs(logits - apply(exact, params, TOKENS[:, :-1])[0])
    assert 0 < error.max() < 0.1


@pytest.mark.parametrize("gated", [True, False])
def test_optional_parts_are_there_when_asked_for(gated):
    config = dataclasses.replace(TINY, gated=gated, qkv_bias=True, out_bias=True, mlp_bias=True, activation="gelu")
    layer = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))["layers_0"]
    assert set(layer["mlp"]) == ({"gate", "up", "down"} if gated else {"up", "down"})
    assert all("bias" in layer["attention"][name] for name in "qkvo")
    assert all("bias" in part for part in layer["mlp"].values())


def test_initialisation_is_bit_identical_vmapped_and_looped():
    keys = jax.random.split(jax.random.key(3), 4)
    batched = jax.jit(jax.vmap(lambda key: transformer.init(TINY, key)))(keys)
    for i, key in enumerate(keys):
        alone = init(TINY, key)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), batched, alone)
    spread = jax.tree.map(lambda leaf: float(jnp.std(leaf, axis=0).max()), batched)
    assert min(value for path, value in jax.tree.leaves_with_path(spread) if "norm" not in str(path)) > 0


def test_initial_matrices_and_logits_have_the_stated_scale():
    config = transformer.Config(vocab=500, width=64, layers=1, heads=4, mlp=256, init_scale=0.5)
    params = init(config, jax.random.key(0))
    np.testing.assert_allclose(params["embed"]["embedding"].std(), 0.5 / 8, rtol=0.02)
    np.testing.assert_allclose(params["layers_0"]["mlp"]["down"]["kernel"].std(), 0.5 / 16, rtol=0.02)
    logits, _ = apply(config, params, np.arange(100)[None])
    np.testing.assert_allclose(logits.std(), 0.5, rtol=0.2)


@pytest.mark.slow
def test_vmap_over_parameters_equals_the_loop():
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key: init(TINY, key))(keys)
    together = jax.vmap(lambda p: apply(TINY, p, TOKENS)[0])(params)
    for i in range(3):
        alone, _ = apply(TINY, jax.tree.map(lambda leaf, i=i: leaf[i], params), TOKENS)
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_rows_of_a_batch_do_not_meet():
    params = tiny_params()
    together, _ = apply(TINY, params, TOKENS)
    for row in range(len(TOKENS)):
        alone, _ = apply(TINY, params, TOKENS[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "scan_layers"),
    few([(config, scan) for config in (TINY, WINDOWED) for scan in (False, True)], (TINY, False), (WINDOWED, True)),
)
def test_masked_keys_change_nothing(config, scan_layers):
    params = stacked(config, tiny_params()) if scan_layers else tiny_params()
    config = dataclasses.replace(config, scan_layers=scan_layers)
    seen = np.arange(7) != 2
    positions = np.cumsum(seen)[None] - 1
    key_mask = np.broadcast_to(seen, TOKENS.shape)
    logits, _ = apply(config, params, TOKENS, positions=positions, key_mask=key_mask)
    without, _ = apply(config, params, TOKENS[:, seen])
    np.testing.assert_allclose(logits[:, seen], without, atol=1e-5)


@pytest.mark.parametrize("window", few([1, 2, 5], 2))
def test_a_local_layer_reaches_the_last_slots_of_its_window_and_no_other(window):
    config = dataclasses.replace(TINY, tied=False, layers=1, window=window)
    np.testing.assert_array_equal(reached(config), np.tri(8, dtype=bool) & ~np.tri(8, k=-window, dtype=bool))


def test_a_window_longer_than_the_sequence_is_none():
    wide = dataclasses.replace(TINY, window=7)
    expected, _ = apply(TINY, tiny_params(), TOKENS)
    np.testing.assert_array_equal(apply(wide, tiny_params(), TOKENS)[0], expected)
    narrow, _ = apply(dataclasses.replace(TINY, window=6), tiny_params(), TOKENS)
    assert np.abs(narrow - expected)[:, -1].max() > 1e-4


def test_learned_positions_end():
    config = dataclasses.replace(TINY, learned_positions=7, norm="layer", gated=False)
    params = init(config, jax.random.key(0))
    assert params["position_embed"]["embedding"].shape == (7, 16)
    apply(config, params, TOKENS)
    with pytest.raises(InputError, match="8 slots: the model has positions for 7"):
        apply(config, params, np.zeros((1, 8), np.int32))


def test_unread_positions_change_nothing():
    params = tiny_params()
    at = np.array([[0, 5], [6, 1], [3, 3]])
    some, _ = apply(TINY, params, TOKENS, logits_at=at)
    every, _ = apply(TINY, params, TOKENS)
    np.testing.assert_allclose(some, np.take_along_axis(np.asarray(every), at[:, :, None], axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("scan_layers", "config"),
    few([(scan, config) for config in (TINY, WINDOWED) for scan in (False, True)], (True, WINDOWED)),
)
def test_cached_chunks_equal_one_call(scan_layers, config):
    config = dataclasses.replace(config, scan_layers=scan_layers)
    params = init(config, jax.random.key(0))
    whole, none = apply(config, params, TOKENS)
    assert none is None
    cache = transformer.empty_cache(config, len(TOKENS), 10)
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        logits, cache = apply(config, params, TOKENS[:, begin:end], None, cache, begin)
        np.testing.assert_allclose(logits, whole[:, begin:end], atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(query=st.integers(0, 200), key=st.integers(0, 200), shift=st.integers(0, 200), seed=st.integers(0, 99))
def test_rope_scores_depend_on_the_distance_alone(query, key, shift, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def turned(x, position):
        return transformer.rope(x, transformer.rope_angles(jnp.array([[position]]), 8, 1e4))

    def score(by):
        return float(jnp.vdot(turned(q, query + by), turned(k, key + by)))

    np.testing.assert_allclose(score(shift), score(0), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(turned(q, query)), np.linalg.norm(q), rtol=1e-5)


def test_parameters_and_flops_are_counted():
    for changes in ({}, {"gated": False}, {"tied": False}, {"head_dim": 8}):
        config = dataclasses.replace(TINY, **changes)
        params = jax.eval_shape(lambda config=config: transformer.init(config, jax.random.key(0)))
        assert transformer.param_count(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
        # A matmul does two operations per entry of its matrix; scores and mix come on top.
        entries = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(params) if "kernel" in str(path))
        entries += params["embed"]["embedding"].size if config.tied else 0
        attention = config.layers * 2 * 2 * 10 * config.heads * config.head_dim
        assert transformer.flops_per_token(config, 10) == 2 * entries + attention


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"heads": 3, "kv_heads": None, "head_dim": None}, "Config.heads = 3: must divide width = 16"),
        ({"kv_heads": 3}, "Config.kv_heads = 3: must divide heads = 4"),
        ({"head_dim": 5}, "Config.head_dim = 5: must be even"),
        ({"layers": 0}, "Config.layers = 0: must be at least 1"),
        ({"rotary_dim": 6}, "Config.rotary_dim = 6: must be even, rotary positions turn pairs, and at most 4"),
        ({"rope_factors": (1.0,)}, "Config.rope_factors has 1 entries: must be one per pair, 2"),
        ({"local_layers": (True, False)}, "Config.local_layers: must be one per layer, 2, and needs a window"),
        ({"local_layers": (True,), "window": 3}, "Config.local_layers: must be one per layer, 2"),
        ({"window": 0}, "Config.window = 0: must be at least 1"),
        ({"norm": "batch"}, "Config.norm = 'batch': must be one of rms, layer"),
        ({"activation": "swish"}, "Config.activation = 'swish': must be one of silu, gelu"),
        ({"dtype": "float64"}, "Config.dtype = 'float64': must be one of float32, bfloat16"),
    ],
)
def test_impossible_configs_are_one_clear_line(changes, line):
    with pytest.raises(InputError) as error:
        dataclasses.replace(TINY, **changes)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


# --- what is shared between rows, and what is added to a projection ---


CHANGES = {"untied": {"tied": False}, "tied": {}, "windowed": vars(WINDOWED)}
PREFIXED = [(changes, scan_layers) for changes in CHANGES for scan_layers in (False, True)]


@pytest.mark.parametrize(("changes", "scan_layers"), few(PREFIXED, ("untied", False), ("windowed", True)))
def test_a_shared_prefix_gives_the_logits_of_the_whole_sequence(changes, scan_layers):
    config = dataclasses.replace(TINY, **{**CHANGES[changes], "scan_layers": scan_layers})
    params = init(config, jax.random.key(0))
    whole, _ = apply(config, params, jnp.concatenate([TOKENS[:1].repeat(3, 0), TOKENS], axis=1))
    start, length = TOKENS[:1], TOKENS.shape[1]
    padded = np.concatenate([start, np.zeros((1, 4), np.int32)], axis=1)
    _, cache = apply(config, params, padded, cache=transformer.empty_cache(config, 1, length + 4))
    prefix = jax.tree.map(lambda x: x[:, 0] if scan_layers else x[0], cache)
    positions = jnp.broadcast_to(length + jnp.arange(length), TOKENS.shape)
    some = jnp.asarray([3, 11, 5])
    after, _ = apply(config, params, TOKENS, positions, prefix=prefix, prefix_length=length, logits_of=some)
    np.testing.assert_allclose(after, whole[:, length:][..., some], atol=2e-6)


@pytest.mark.parametrize("config", few([TINY, WINDOWED], WINDOWED))
def test_attention_as_given_makes_branches_of_one_sequence(config):
    """Two continuations of a prompt side by side, each seeing the prompt and itself, are as if each were alone."""
    params = init(config, jax.random.key(0))
    prompt, one, two = TOKENS[:1], TOKENS[1:2, :2], TOKENS[2:3, :2]
    n = prompt.shape[1]
    attend = np.tril(np.ones((n + 4, n + 4), bool))
    attend[n + 2 :, n : n + 2] = False
    positions = np.concatenate([np.arange(n + 2), [n, n + 1]])[None]
    tokens = np.concatenate([prompt, one, two], axis=1)
    together, _ = apply(config, params, tokens, positions, attend=attend[None])
    for branch, place in ((one, [n, n + 1]), (two, [n + 2, n + 3])):
        alone, _ = apply(config, params, np.concatenate([prompt, branch], axis=1))
        np.testing.assert_allclose(together[:, place], alone[:, n:], atol=2e-6)


@pytest.mark.parametrize("scan_layers", few([False, True], True))
def test_a_low_rank_update_is_the_sum_of_the_matrices(scan_layers):
    config = dataclasses.replace(TINY, scan_layers=scan_layers)
    params = init(config, jax.random.key(0))
    rng = np.random.default_rng(1)

    def factors(kernel):
        *stack, inputs, outputs = kernel.shape
        return {"a": rng.normal(size=(*stack, inputs, 2)), "b": 0.1 * rng.normal(size=(*stack, 2, outputs))}

    is_kernel = lambda x: isinstance(x, dict) and "kernel" in x  # noqa: E731
    layers = {name: layer for name, layer in params.items() if name.startswith("layers")}
    lora = jax.tree.map(lambda x: factors(x["kernel"]) if is_kernel(x) else {}, layers, is_leaf=is_kernel)
    merged = jax.tree.map(
        lambda x, f: {**x, "kernel": x["kernel"] + f["a"] @ f["b"]} if is_kernel(x) else x,
        layers,
        lora,
        is_leaf=is_kernel,
    )
    with_lora, _ = apply(config, params, TOKENS, lora=jax.tree.map(jnp.float32, lora))
    added, _ = apply(config, {**params, **merged}, TOKENS)
    np.testing.assert_allclose(with_lora, added, atol=1e-5)
    assert np.abs(added - apply(config, params, TOKENS)[0]).max() > 0.01


def test_under_vmap_the_projection_stays_one_product():
    """Only the adapters are batched: the base weights are read once, whatever the number of lanes."""
    config = dataclasses.replace(TINY, scan_layers=True)
    params = init(config, jax.random.key(0))
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    lanes, rank = 5, 3
    factors = {"a": jnp.ones((lanes, 2, kernel.shape[1], rank)), "b": jnp.ones((lanes, 2, rank, kernel.shape[2]))}

    def loss(factors):
        logits, _ = transformer.apply(config, params, TOKENS, lora={"layers": {"mlp": {"up": factors}}})
        return logits.sum()

    text = jax.jit(jax.vmap(jax.grad(loss))).lower(factors).as_text()
    batched = [line for line in text.splitlines() if "dot_general" in line and "batching_dims = [0] x [0]" in line]
    shapes = [f"tensor<{kernel.shape[1]}x{kernel.shape[2]}xf32>", f"tensor<{lanes}x{kernel.shape[1]}x{rank}xf32>"]
    assert not any(shapes[0] in line for line in batched)
    assert any(shapes[1] in line for line in batched)
    assert any(shapes[0] in line for line in text.splitlines() if "dot_general" in line)
