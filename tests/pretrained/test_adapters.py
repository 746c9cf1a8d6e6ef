"""Adapters and models that leave are, in `peft` and `transformers`, the same models; and adapters come in again."""

import functools
import json

import jax
import numpy as np
import pytest
import tiny_checkpoints
from etils import epath
from tiny_checkpoints import TOKENS

from subl_jax.errors import InputError
from subl_jax.models import lora
from subl_jax.pretrained import adapters, names, publishing
from subl_jax.pretrained.weights import open_checkpoint
from subl_jax.specs import PROJECTIONS, Lora

# Of each form of a family one by default: plain, with norms less one, fused by heads, fused side by side.
QUICK = ("llama", "gemma3", "gpt_neox", "gpt2")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in tiny_checkpoints.MODELS]
SPECS = {
    "masked": Lora(max_rank=4, rank=3, alpha=6.5, first_layer=1),
    "few": Lora(modules=("v", "o", "down"), max_rank=2, rank=2, alpha=4.0, last_layer=-2),
}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, weights, adapters=None):
    return config.apply(weights, TOKENS, adapters=adapters)


def distance(ours, theirs):
    """Of the largest entry."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def opened(name, path, lora_spec):
    """A checkpoint, and adapters of it that do something."""
    checkpoint = open_checkpoint(str(tiny_checkpoints.folder(name, path)))
    config = checkpoint.config
    modules = tuple(each for each in lora_spec.modules if each in config.adapter_sites())
    lora_spec = lora_spec.replace(modules=modules)
    params = jax.device_get(jax.jit(lambda key: lora.init(config, key, lora_spec))(jax.random.key(0)))
    rng = np.random.default_rng(1)
    for adapter in params["lora"].values():
        used = np.asarray(adapter["a"]).any(axis=1)[:, :, None]
        adapter["b"] = (0.3 * used * rng.standard_normal(adapter["b"].shape)).astype(np.float32)
    return checkpoint, lora_spec, params


def saved(checkpoint, lora_spec, params, folder):
    settings = json.loads((checkpoint.path / "config.json").read_text())
    known = names.names_of(settings["model_type"])
    adapters.save(epath.Path(folder), known, checkpoint.config, params, lora_spec, str(checkpoint.path))
    return known, settings


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("which", SPECS)
def test_a_saved_adapter_is_the_same_model_in_peft(name, which, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    checkpoint, lora_spec, params = opened(name, tmp_path / "base", SPECS[which])
    known, _ = saved(checkpoint, lora_spec, params, tmp_path / "adapter")
    config, weights = checkpoint.config, checkpoint.load()
    ours = logits_of(config, weights, lora.update(config, params))
    plain = tiny_checkpoints.torch_model(name)
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS).long()).logits.numpy()
    assert distance(ours, theirs) < 1e-5
    # And it comes in as it was.
    read = adapters.read(epath.Path(tmp_path / "adapter"), known, config)
    for module, adapter in params["lora"].items():
        own = np.asarray(params["scale"] * adapter["a"] @ adapter["b"])
        again = read.a[module] @ (read.scales[module][:, None, None] * read.b[module])
        np.testing.assert_allclose(again, own, rtol=1e-5, atol=1e-6)
    again = read.spec()
    layers = {(each.first_layer % config.layers, each.last_layer % config.layers) for each in (again, lora_spec)}
    assert (again.rank, set(again.modules)) == (lora_spec.rank, set(lora_spec.modules)) and len(layers) == 1
    assert again.alpha == pytest.approx(lora_spec.alpha)


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_model_is_the_same_in_transformers(name, tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    checkpoint = open_checkpoint(str(tiny_checkpoints.folder(name, tmp_path / "base")))
    settings = json.loads((checkpoint.path / "config.json").read_text())
    params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), checkpoint.load())
    known = names.names_of(settings["model_type"])
    publishing.save(epath.Path(tmp_path / "model"), known, checkpoint.config, params, settings)
    model = hf.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS).long()).logits.numpy()
    again = open_checkpoint(str(tmp_path / "model"))
    assert distance(logits_of(again.config, again.load()), theirs) < 1e-5
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: np.allclose(x, y, atol=1e-6), again.load(), params)))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    checkpoint, lora_spec, params = opened("llama", folder / "base", SPECS["masked"])
    known, _ = saved(checkpoint, lora_spec, params, folder / "adapter")
    return folder / "adapter", known, checkpoint.config


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3': only plain LoRA"),
        ({"use_dora": True}, "use_dora = True: only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]: only plain LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4': only plain"),
    ],
)
def test_what_is_no_plain_adapter_is_one_line(adapter, changes, line, tmp_path):
    folder, known, config = adapter
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**json.loads((folder / "adapter_config.json").read_text()), **changes})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=line):
        adapters.read(epath.Path(tmp_path), known, config)


def test_scales_are_those_of_peft(adapter, tmp_path):
    folder, known, config = adapter
    described = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    described |= {"use_rslora": True, "lora_alpha": 4, "alpha_pattern": {"q_proj": 9, "1.mlp.up_proj": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    read = adapters.read(epath.Path(tmp_path), known, config)
    assert read.scales["q"][1] == pytest.approx(9 / 3**0.5) and read.scales["k"][2] == pytest.approx(4 / 3**0.5)
    assert read.scales["up"][1:].tolist() == pytest.approx([5 / 3**0.5, 4 / 3**0.5])
    with pytest.raises(InputError, match="ranks, scales or layers differ .* leave adapter_live out"):
        read.spec()


def test_an_adapter_of_another_model_is_one_line(adapter, tmp_path):
    folder, _, config = adapter
    with pytest.raises(InputError, match="which this model has no place for"):
        adapters.read(epath.Path(folder), names.names_of("gpt2"), config)
    with pytest.raises(InputError, match="adapter_config.json: cannot be read: No such file"):
        adapters.read(epath.Path(tmp_path), names.names_of("llama"), config)


def test_every_projection_of_a_spec_has_a_name_in_every_family():
    for kind in names.NAMES:
        known = names.names_of(kind)
        for name in PROJECTIONS:
            group = "attention" if name in "qkvo" else "mlp"
            if name != "gate" or "mlp/gate" in known.parts:
                assert known.part(f"{group}/{name}")
