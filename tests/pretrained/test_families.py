"""Every family against transformers: norm, attention, block, logits, gradients; and GGUF against the folder.

What is compared differs by at most 1e-5 of the largest entry, in float32 (rounding alone; gradients sum more terms and
stay below it too).
"""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_checkpoints
from few import few
from tiny_checkpoints import MODELS, TOKENS

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.models.decoding import sampling
from subl_jax.pretrained import rules, weights

TOLERANCE = 1e-5

apply = jax.jit(transformer.apply, static_argnums=0)


def assert_close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@dataclasses.dataclass
class Reference:
    """What torch computes, and our reading of the saved model and of its gradients."""

    steps: dict[str, np.ndarray]  # of the first layer, and every block
    logits: np.ndarray
    loss: float
    checkpoint: weights.Checkpoint
    params: transformer.Params
    grads: transformer.Params


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return functools.cache(functools.partial(_reference, tmp_path_factory))


def _reference(tmp_path_factory, name):
    torch = pytest.importorskip("torch")
    model = tiny_checkpoints.torch_model(name)
    folder = tiny_checkpoints.save_folder(model, tmp_path_factory.mktemp(name))
    checkpoint = weights.open_checkpoint(str(folder))

    steps = {}

    def keep(step):
        def hook(module, inputs, output):
            steps[step] = (output[0] if isinstance(output, tuple) else output).detach().numpy().copy()

        return hook

    body = model.base_model
    layers = body.h if hasattr(body, "h") else body.layers
    first = dict(layers[0].named_children())
    for step, names in (("norm", ("input_layernorm", "ln_1")), ("attention", ("self_attn", "attention", "attn"))):
        next(first[key] for key in names if key in first).register_forward_hook(keep(step))
    for i, layer in enumerate(layers):
        layer.register_forward_hook(keep(f"block {i}"))
    logits = model(torch.tensor(TOKENS).long()).logits
    steps = dict(steps)
    targets = torch.tensor(TOKENS[:, 1:]).long()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1))
    loss.backward()

    # Gradients take the way of the parameters: saved in their place and read by the same table.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    grads = weights.open_checkpoint(str(tiny_checkpoints.save_folder(model, folder / "gradients")))
    grads = dataclasses.replace(grads, _sources={path: without_one(each) for path, each in grads._sources.items()})
    return Reference(steps, logits.detach().numpy(), loss.item(), checkpoint, checkpoint.load(), grads.load())


def without_one(sources):
    """A derivative does not see the one that is added to a norm's scale."""
    plain = {rules._plus_one: rules._same}
    return tuple(dataclasses.replace(each, transform=plain.get(each.transform, each.transform)) for each in sources)


def joined(path):
    return "/".join(key.key for key in path)


def unrolled(config, params):
    layers = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(config.layers)}
    return dataclasses.replace(config, scan_layers=False), {
        **{key: value for key, value in params.items() if key != "layers"},
        **layers,
    }


@pytest.mark.parametrize("name", few(MODELS, "llama", "gemma3", "gpt2"))
def test_every_step_equals_that_of_transformers(name, reference):
    expected = reference(name)
    config, params = unrolled(expected.checkpoint.config, expected.params)
    model = transformer.Transformer(config)
    seeing = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    (logits, _), state = jax.jit(seeing)({"params": params}, TOKENS)
    seen = state["intermediates"]
    shape = (*TOKENS.shape, config.width)
    first = seen["layers_0"]
    assert_close(first["attention_norm"]["__call__"][0].reshape(shape), expected.steps["norm"])
    assert_close(first["attention"]["__call__"][0][0].reshape(shape), expected.steps["attention"])
    for i in range(config.layers):
        assert_close(seen[f"layers_{i}"]["__call__"][0][0][0].reshape(shape), expected.steps[f"block {i}"])
    assert_close(logits, expected.logits)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_grads(config, params):
    logits, _ = transformer.apply(config, params, TOKENS)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()


KEPT = [*((name, "none") for name in MODELS), ("gemma3", "all"), ("gpt2", "dots")]


@pytest.mark.parametrize(("name", "remat"), few(KEPT, ("llama", "none"), ("gemma3", "all"), ("gpt2", "dots")))
def test_the_gradient_of_every_parameter_equals_that_of_torch(name, remat, reference):
    expected = reference(name)
    config = dataclasses.replace(expected.checkpoint.config, remat=remat)
    assert config.scan_layers
    loss, grads = loss_and_grads(config, expected.params)
    np.testing.assert_allclose(loss, expected.loss, rtol=TOLERANCE)
    assert jax.tree.structure(grads) == jax.tree.structure(expected.grads)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected.grads), strict=True
    ):
        if config.learned_positions and joined(path) == "layers/attention/k/bias":
            # The same shift for all keys of a query: without rotary positions the softmax takes it out.
            np.testing.assert_allclose([ours, theirs], 0, atol=1e-7)
        else:
            assert_close(ours, theirs)


@pytest.mark.parametrize("name", few(MODELS, "gemma3", "gpt2"))
def test_decoding_with_a_cache_equals_the_whole_at_once(name, reference):
    expected = reference(name)
    config = expected.checkpoint.config
    cache = transformer.empty_cache(config, len(TOKENS), 13)
    for begin, end in ((0, 3), (3, 4), (4, 10), (10, 11)):
        logits, cache = apply(config, expected.params, TOKENS[:, begin:end], None, cache, begin)
        assert_close(logits, expected.logits[:, begin:end])


@pytest.mark.parametrize("name", few(["mistral", "gemma3", "gpt2"], "gpt2"))
def test_sampled_rows_of_unequal_length_equal_the_greedy_choice_of_transformers(name, reference):
    torch = pytest.importorskip("torch")
    expected = reference(name)
    model = tiny_checkpoints.torch_model(name)
    lengths = np.array([3, 11, 7])
    keys = jax.random.split(jax.random.key(0), 3)
    greedy = types.SimpleNamespace(temperature=0.0, top_k=0, top_p=1.0)
    config = expected.checkpoint.config
    ours = jax.jit(lambda params: sampling.generate(config, params, TOKENS, lengths, keys, 6, greedy))(expected.params)
    for row, length in enumerate(lengths):
        text = torch.tensor(TOKENS[row : row + 1, :length]).long()
        for _ in range(6):
            with torch.no_grad():
                text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
        np.testing.assert_array_equal(ours[row], text[0, length:])


@pytest.mark.parametrize("name", few(["llama", "gemma3", "gpt_neox"], "gemma3"))
def test_weights_kept_in_bfloat16_cost_no_more_than_their_rounding(name, reference):
    expected = reference(name)
    checkpoint = expected.checkpoint
    params = checkpoint.load("bfloat16")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), checkpoint.shapes("bfloat16")
    )
    dtypes = {joined(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert all((dtype == np.float32) == ("norm/" in path) for path, dtype in dtypes.items())
    rounded = jax.tree.map(lambda x: x.astype(np.float32), params)
    assert_close(apply(checkpoint.config, params, TOKENS)[0], apply(checkpoint.config, rounded, TOKENS)[0])
    in_bfloat16 = dataclasses.replace(checkpoint.config, dtype="bfloat16")
    logits, _ = apply(in_bfloat16, params, TOKENS)
    assert logits.dtype == jnp.float32
    error = np.asarray(logits) - expected.logits
    assert 0 < np.sqrt(np.mean(error**2) / np.mean(expected.logits**2)) < 0.05  # a few times 2**-8 per layer


# The same settings as transformers 4 wrote them.
OLD_SPELLINGS = {
    "llama3": {"rope_theta": 10.0, "rope_scaling": tiny_checkpoints.LLAMA3},
    "mistral": {"rope_theta": 100.0},
    "qwen3": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "gemma3": {
        "rope_theta": 1000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "layer_types": None,
        "sliding_window_pattern": 6,
    },
    "gemma2": {"rope_theta": 10000.0, "layer_types": None},
    "gpt_neox": {"rotary_pct": 0.5, "rotary_emb_base": 10000},
}


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_settings_as_transformers_4_wrote_them_mean_the_same(name, tmp_path):
    folder = tiny_checkpoints.folder(name, tmp_path)
    new = weights.open_checkpoint(str(folder)).config
    assert json.loads((folder / "config.json").read_text())["rope_parameters"]
    tiny_checkpoints.change_config(folder, rope_parameters=None, **OLD_SPELLINGS[name])
    assert weights.open_checkpoint(str(folder)).config == new


def test_a_gemma_with_eyes_is_read_without_them(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny_checkpoints.folder("gemma3", tmp_path)
    plain = weights.open_checkpoint(str(folder))
    expected = plain.load()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": settings}))
    tensors = {f"language_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, "vision_tower.patches.weight": np.ones((2, 2), "f4")}, folder / "model.safetensors")
    seeing = weights.open_checkpoint(str(folder))
    assert seeing.config == plain.config
    jax.tree.map(np.testing.assert_array_equal, seeing.load(), expected)


@pytest.mark.parametrize("name", tiny_checkpoints.GGUF)
def test_gguf_and_folder_hold_the_same_model(name, reference, tmp_path):
    expected = reference(name)
    path = tiny_checkpoints.save_gguf(name, tiny_checkpoints.torch_model(name), tmp_path / "model.gguf")
    checkpoint = weights.open_checkpoint(str(path))
    ours, theirs = dataclasses.asdict(checkpoint.config), dataclasses.asdict(expected.checkpoint.config)
    # GGUF does not say how Gemma scales its scores: by the size of a head, but in the largest.
    if name.startswith("gemma"):
        assert ours.pop("query_scale") == checkpoint.config.head_dim**-0.5
        del theirs["query_scale"]
    for key, value in ours.items():
        assert value == (pytest.approx(theirs[key], rel=1e-6) if isinstance(value, float | tuple) else theirs[key]), key
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), checkpoint.load(), expected.params)


# Of the others transformers does not read all settings from GGUF: rotary factors, the size of a head.
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_quantised_gguf_gives_the_logits_of_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    path = tiny_checkpoints.save_gguf(name, tiny_checkpoints.torch_model(name), tmp_path / "model.gguf", "Q8_0")
    with torch.no_grad():
        model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
        theirs = model(torch.tensor(TOKENS).long()).logits.numpy()
    checkpoint = weights.open_checkpoint(str(path))
    assert_close(apply(checkpoint.config, checkpoint.load(), TOKENS)[0], theirs)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("llama", {"model_type": "mamba"}, "model_type = 'mamba': must be one of llama, mistral"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn': must be one of default, linear"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5: only 1.0"),
        ("llama", {"rope_parameters": 3}, "rope_parameters = 3: must hold settings of its own"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}: only None can be read"),
        ("llama", {"hidden_act": "mish"}, "hidden_act = 'mish': must be one of silu"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be a whole number from 1 to"),
        ("llama", {"hidden_size": "32"}, "hidden_size = '32': must be a whole number"),
        ("llama", {"hidden_size": True}, "hidden_size = True: must be a whole number"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan: must be a number above 0"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': must be true or false"),
        ("llama", {"num_key_value_heads": 3}, "Config.kv_heads = 3: must divide heads = 4"),
        ("llama3", {"rope_parameters": {**tiny_checkpoints.LLAMA3, "high_freq_factor": 1.0}}, "must be above low_freq"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["odd"] * 3}, "layer_types: must be 3 times sliding"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0: only None can be read"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True: only False"),
    ],
)
def test_settings_that_cannot_be_read_are_one_clear_line(name, changes, line, tmp_path):
    folder = tiny_checkpoints.folder(name, tmp_path)
    tiny_checkpoints.change_config(folder, **changes)
    with pytest.raises(InputError) as error:
        weights.open_checkpoint(str(folder))
    assert line in str(error.value)
    assert str(folder / "config.json") in str(error.value)
    assert "\n" not in str(error.value)
