"""What `transformers` calls the parameters of each family: the way out, where rules.py is the way in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from subl_jax.models import transformer

# Kernels (inputs, outputs) of query, key and value → one weight as the family has it.
Fuse = Callable[[list[np.ndarray], transformer.Config], np.ndarray]

_QKV = ("attention/q", "attention/k", "attention/v")


@dataclasses.dataclass(frozen=True)
class Names:
    """model, layer: what comes before the names of the parts, `{i}` the layer. parts, ends: ours → theirs.

    fused: the name of query, key and value in one, and how they are put together. transposed: weights are (outputs,
    inputs). shift: what a norm's scale is less than ours.
    """

    architecture: str
    layer: str
    parts: Mapping[str, str]
    ends: Mapping[str, str]
    fused: tuple[str, Fuse] | None = None
    transposed: bool = True
    shift: float = 0.0

    def part(self, module: str) -> str | None:
        """What a projection is called within a layer; None where the family has no such one."""
        return self.fused[0] if self.fused and module in _QKV else self.parts.get(module)

    @property
    def beside_others(self) -> bool:
        """Whether the checkpoint holds another model besides, such as a vision tower."""
        return "language_model" in self.layer

    def apart(self, config: transformer.Config) -> list[np.ndarray]:
        """Of the outputs of the fused weight, which are query's, key's and value's, in their own order."""
        inner = config.heads * config.head_dim
        marks = [np.arange(i * inner, (i + 1) * inner)[None] for i in range(3)]
        together = self.fused[1](marks, config)
        place = np.argsort((together if self.transposed else together.T)[:, 0])
        return [place[i * inner : (i + 1) * inner] for i in range(3)]

    def layers_pattern(self) -> str:
        """What the list of layers is called, as `peft` asks."""
        return self.layer.split(".{i}")[0].rpartition(".")[2]


def _each_head(kernels: list[np.ndarray], config: transformer.Config) -> np.ndarray:
    """Every head has its query, key and value together: (outputs, inputs), or (outputs,) of biases."""
    rows = [each.T.reshape(config.heads, 1, -1, *each.T.shape[1:]) for each in kernels]
    together = np.concatenate(rows, axis=1)
    return together.reshape(-1, *together.shape[3:])


def _side_by_side(kernels: list[np.ndarray], config: transformer.Config) -> np.ndarray:
    return np.concatenate(kernels, axis=-1)


_ATTENTION = {f"attention/{name}": f"self_attn.{name}_proj" for name in "qkvo"}
_NORMS = {f"attention/{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")}
_MLP = {f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
_ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "unembed": "lm_head"}
_LLAMA = {**_ATTENTION, **_NORMS, **_MLP, "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GEMMA = {
    **_LLAMA,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_NEOX = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention/o": "attention.dense",
    "mlp/up": "mlp.dense_h_to_4h",
    "mlp/down": "mlp.dense_4h_to_h",
}
_GPT2 = {
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "attention/o": "attn.c_proj",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}


def _llama_like(architecture: str) -> Names:
    return Names(architecture, "model.layers.{i}.", _LLAMA, _ENDS)


NAMES: dict[str, Names] = {
    "llama": _llama_like("LlamaForCausalLM"),
    "mistral": _llama_like("MistralForCausalLM"),
    "qwen2": _llama_like("Qwen2ForCausalLM"),
    "qwen3": _llama_like("Qwen3ForCausalLM"),
    "gemma2": Names("Gemma2ForCausalLM", "model.layers.{i}.", _GEMMA, _ENDS, shift=1.0),
    "gemma3_text": Names("Gemma3ForCausalLM", "model.layers.{i}.", _GEMMA, _ENDS, shift=1.0),
    "gpt_neox": Names(
        "GPTNeoXForCausalLM",
        "gpt_neox.layers.{i}.",
        _NEOX,
        {"embed": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "unembed": "embed_out"},
        ("attention.query_key_value", _each_head),
    ),
    "gpt2": Names(
        "GPT2LMHeadModel",
        "transformer.h.{i}.",
        _GPT2,
        {
            "embed": "transformer.wte",
            "position_embed": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            "unembed": "lm_head",
        },
        ("attn.c_attn", _side_by_side),
        transposed=False,
    ),
}
# What GGUF files call a family otherwise.
_GGUF = {"gptneox": "gpt_neox", "gemma3": "gemma3_text"}


def of_gguf(architecture: str) -> str:
    """The `model_type` of a GGUF file's architecture."""
    return _GGUF.get(architecture, architecture)


def names_of(kind: str) -> Names:
    """The names of a family, by `model_type`. `gemma3` is the one with a vision tower, whose text model lies deeper."""
    if kind == "gemma3":
        return dataclasses.replace(NAMES["gemma3_text"], layer="model.language_model.layers.{i}.")
    return NAMES[kind]


def tensors_of(names: Names, config: transformer.Config, params: Any) -> dict[str, np.ndarray]:
    """A model's parameters, stacked over layers or one by one, as the family's tensors, float32."""
    found: dict[str, np.ndarray] = {}
    apart: dict[tuple[str, str], list[np.ndarray]] = {}  # (layer, kind) → query, key and value
    for path, array in sorted(_by_layer(config, params).items()):
        place, _, kind = path.rpartition("/")
        layer, _, module = place.partition("/") if place.startswith("layers_") else ("", "", place)
        stem = names.layer.format(i=layer.removeprefix("layers_")) if layer else ""
        array = np.asarray(array, np.float32)
        if names.fused and module in _QKV:
            apart.setdefault((stem, kind), [None] * 3)[_QKV.index(module)] = array
            continue
        theirs = names.parts[module] if layer else names.ends[module]
        turned = kind == "kernel" and (names.transposed or not layer)
        array = array.T if turned else array - (names.shift if kind == "scale" else 0)
        found[f"{stem}{theirs}.{'bias' if kind == 'bias' else 'weight'}"] = np.ascontiguousarray(array)
    for (stem, kind), three in apart.items():
        name, fuse = names.fused
        found[f"{stem}{name}.{'bias' if kind == 'bias' else 'weight'}"] = np.ascontiguousarray(fuse(three, config))
    return found


def _by_layer(config: transformer.Config, params: Any) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(params, sep="/")
    apart = {}
    for path, array in flat.items():
        if not path.startswith("layers/"):
            apart[path] = array
            continue
        for i in range(config.layers):
            apart[f"layers_{i}/{path.removeprefix('layers/')}"] = array[i]
    return apart
