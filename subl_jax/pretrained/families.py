"""Which checkpoints can be read: per family, its settings as a transformer.Config and the names of its tensors.

A family is a function from the settings in a file to our Config, and a table of rules. A rule says where a tensor of
the file goes in our parameter tree and what is done to it on the way. `#` stands for the number of a layer; one tensor
may go to several places (fused projections). Tensors that no rule knows are an error (weights.py).

Settings come from the `config.json` of a Hugging Face folder, as transformers 4 or 5 writes it, or from GGUF metadata.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained.gguf_file import Tensor

# (tensor of the file, our config) → the parameter; works on numpy and on abstract arrays alike.
Transform = Callable[[Any, transformer.Config], Any]

# More than any model has; a damaged file must not make us count for ever.
_MOST = 10**7
_MOST_LAYERS = 10**4
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors whose whole name matches `source` become the parameter `target`, or nothing where it is None."""

    source: re.Pattern
    target: str | None
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Family:
    """`config(fields, tensors)` reads the settings; tensors are those of the file, by name."""

    config: Callable[["Fields", Mapping[str, Tensor]], transformer.Config]
    rules: tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class Fields:
    """Settings of a file, read with a check of their type; `where` begins every complaint."""

    where: str
    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def fail(self, key: str, what: str) -> InputError:
        return InputError(f"{self.where}: {self.prefix}{key} = {self.values.get(self.prefix + key)!r}: {what}")

    def count(self, key: str, default: int | None = None, most: int = _MOST) -> int:
        """A whole number of at least 1."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.fail(key, f"must be a whole number from 1 to {most}")
        return value

    def count_or(self, key: str, default: int | None) -> int | None:
        return default if self.get(key) is None else self.count(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.fail(key, "must be a number above 0")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value

    def part(self, key: str) -> "Fields":
        """The settings nested under `key`, empty where there are none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, "must hold settings of its own")
        return Fields(f"{self.where}: {self.prefix}{key}", value)

    def refuse(self, **needed: Any) -> None:
        """Raises where a setting is there and is not what alone can be computed."""
        for key, value in needed.items():
            if self.get(key, value) != value:
                raise self.fail(key, f"only {value!r} can be read")


# ---- Tensors ----


def _same(x: Any, config: transformer.Config) -> Any:
    return x


def _transposed(x: Any, config: transformer.Config) -> Any:
    return x.T


def _plus_one(x: Any, config: transformer.Config) -> Any:
    return x.astype(np.float32) + 1


def _third_of_rows(i: int) -> Transform:
    """Query, key or value of a projection to all three, one after the other; kernels are (outputs, inputs)."""
    return lambda x, config: x.reshape(3, -1, *x.shape[1:])[i].T


def _third_of_columns(i: int) -> Transform:
    """The same where kernels are (inputs, outputs)."""
    return lambda x, config: x.reshape(*x.shape[:-1], 3, -1)[..., i, :]


def _third_of_each_head(i: int) -> Transform:
    """The same where every head has its query, key and value together."""

    def transform(x: Any, config: transformer.Config) -> Any:
        return x.reshape(config.heads, 3, -1, *x.shape[1:])[:, i].reshape(-1, *x.shape[1:]).T

    return transform


def _pairs_apart(heads: str) -> Transform:
    """Rows of a rotary projection whose pairs lie side by side, as llama.cpp keeps them, to pairs half a head apart."""

    def transform(x: Any, config: transformer.Config) -> Any:
        rows = x.reshape(getattr(config, heads), -1, 2, *x.shape[1:])
        return rows.swapaxes(1, 2).reshape(x.shape).T

    return transform


def _rules(*rows: tuple[str, str | None, Transform]) -> tuple[Rule, ...]:
    return tuple(Rule(re.compile(source.replace("#", "(?P<layer>[0-9]{1,5})")), *rest) for source, *rest in rows)


def _fused(weight: str, bias: str, third: Callable[[int], Transform]) -> tuple[tuple[str, str, Transform], ...]:
    return tuple(
        (source, f"layers/attention/{name}/{kind}", third(i))
        for i, name in enumerate("qkv")
        for source, kind in ((weight, "kernel"), (bias, "bias"))
    )


_LLAMA_LIKE = (
    (r"model\.embed_tokens\.weight", "embed/embedding", _same),
    (r"model\.layers\.#\.input_layernorm\.weight", "layers/attention_norm/scale", _same),
    (r"model\.layers\.#\.self_attn\.(?P<name>[qkvo])_proj\.weight", "layers/attention/{name}/kernel", _transposed),
    (r"model\.layers\.#\.self_attn\.(?P<name>[qkvo])_proj\.bias", "layers/attention/{name}/bias", _same),
    (r"model\.layers\.#\.self_attn\.(?P<name>[qk]_norm)\.weight", "layers/attention/{name}/scale", _same),
    (r"model\.layers\.#\.post_attention_layernorm\.weight", "layers/mlp_norm/scale", _same),
    (r"model\.layers\.#\.mlp\.(?P<name>gate|up|down)_proj\.weight", "layers/mlp/{name}/kernel", _transposed),
    (r"model\.layers\.#\.mlp\.(?P<name>gate|up|down)_proj\.bias", "layers/mlp/{name}/bias", _same),
    (r"model\.norm\.weight", "final_norm/scale", _same),
    (r"lm_head\.weight", "unembed/kernel", _transposed),
    (r"model\.layers\.#\.self_attn\.rotary_emb\.inv_freq", None, _same),
)

# Gemma stores a norm's scale less one. The larger models come with a vision tower, which reads no text.
_GEMMA_NAME = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_GEMMA_MODEL = r"(?:model|language_model\.model|model\.language_model)\."
_GEMMA_LAYER = _GEMMA_MODEL + r"layers\.#\."
_GEMMA = (
    (_GEMMA_MODEL + r"embed_tokens\.weight", "embed/embedding", _same),
    *((_GEMMA_LAYER + rf"{theirs}\.weight", f"layers/{ours}/scale", _plus_one) for theirs, ours in _GEMMA_NAME.items()),
    (_GEMMA_LAYER + r"self_attn\.(?P<name>[qkvo])_proj\.weight", "layers/attention/{name}/kernel", _transposed),
    (_GEMMA_LAYER + r"self_attn\.(?P<name>[qkvo])_proj\.bias", "layers/attention/{name}/bias", _same),
    (_GEMMA_LAYER + r"self_attn\.(?P<name>[qk]_norm)\.weight", "layers/attention/{name}/scale", _plus_one),
    (_GEMMA_LAYER + r"mlp\.(?P<name>gate|up|down)_proj\.weight", "layers/mlp/{name}/kernel", _transposed),
    (_GEMMA_MODEL + r"norm\.weight", "final_norm/scale", _plus_one),
    (r"(?:language_model\.)?lm_head\.weight", "unembed/kernel", _transposed),
    (r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..*", None, _same),
)

_PART = {"weight": "scale", "bias": "bias"}
_GPT_NEOX_LAYER = r"gpt_neox\.layers\.#\."
_GPT_NEOX_MLP = {"dense_h_to_4h": "up", "dense_4h_to_h": "down"}
_GPT_NEOX = (
    (r"gpt_neox\.embed_in\.weight", "embed/embedding", _same),
    *(
        row
        for theirs, ours in _PART.items()
        for row in (
            (_GPT_NEOX_LAYER + rf"input_layernorm\.{theirs}", f"layers/attention_norm/{ours}", _same),
            (_GPT_NEOX_LAYER + rf"post_attention_layernorm\.{theirs}", f"layers/mlp_norm/{ours}", _same),
            (rf"gpt_neox\.final_layer_norm\.{theirs}", f"final_norm/{ours}", _same),
        )
    ),
    *_fused(
        _GPT_NEOX_LAYER + r"attention\.query_key_value\.weight",
        _GPT_NEOX_LAYER + r"attention\.query_key_value\.bias",
        _third_of_each_head,
    ),
    (_GPT_NEOX_LAYER + r"attention\.dense\.weight", "layers/attention/o/kernel", _transposed),
    (_GPT_NEOX_LAYER + r"attention\.dense\.bias", "layers/attention/o/bias", _same),
    *(
        row
        for theirs, ours in _GPT_NEOX_MLP.items()
        for row in (
            (_GPT_NEOX_LAYER + rf"mlp\.{theirs}\.weight", f"layers/mlp/{ours}/kernel", _transposed),
            (_GPT_NEOX_LAYER + rf"mlp\.{theirs}\.bias", f"layers/mlp/{ours}/bias", _same),
        )
    ),
    (r"(?:embed_out|lm_head)\.weight", "unembed/kernel", _transposed),
    (_GPT_NEOX_LAYER + r"attention\.(?:bias|masked_bias|rotary_emb\.inv_freq)", None, _same),
)

_GPT2_LAYER = r"(?:transformer\.)?h\.#\."
_GPT2_DENSE = {"attn.c_proj": "attention/o", "mlp.c_fc": "mlp/up", "mlp.c_proj": "mlp/down"}
_GPT2 = (
    (r"(?:transformer\.)?wte\.weight", "embed/embedding", _same),
    (r"(?:transformer\.)?wpe\.weight", "position_embed/embedding", _same),
    *(
        row
        for theirs, ours in _PART.items()
        for row in (
            (_GPT2_LAYER + rf"ln_1\.{theirs}", f"layers/attention_norm/{ours}", _same),
            (_GPT2_LAYER + rf"ln_2\.{theirs}", f"layers/mlp_norm/{ours}", _same),
            (rf"(?:transformer\.)?ln_f\.{theirs}", f"final_norm/{ours}", _same),
        )
    ),
    *_fused(_GPT2_LAYER + r"attn\.c_attn\.weight", _GPT2_LAYER + r"attn\.c_attn\.bias", _third_of_columns),
    *(
        row
        for theirs, ours in _GPT2_DENSE.items()
        for row in (
            (_GPT2_LAYER + rf"{re.escape(theirs)}\.weight", f"layers/{ours}/kernel", _same),
            (_GPT2_LAYER + rf"{re.escape(theirs)}\.bias", f"layers/{ours}/bias", _same),
        )
    ),
    (r"lm_head\.weight", "unembed/kernel", _transposed),
    (_GPT2_LAYER + r"attn\.(?:bias|masked_bias)", None, _same),
)

_GGUF_ENDS = (
    (r"token_embd\.weight", "embed/embedding", _same),
    (r"output_norm\.weight", "final_norm/scale", _same),
    (r"output\.weight", "unembed/kernel", _transposed),
    (r"rope_freqs\.weight", None, _same),  # read with the settings
)
_GGUF_LAYER = (
    (r"blk\.#\.attn_norm\.weight", "layers/attention_norm/scale", _same),
    (r"blk\.#\.attn_output\.weight", "layers/attention/o/kernel", _transposed),
    (r"blk\.#\.attn_output\.bias", "layers/attention/o/bias", _same),
    (r"blk\.#\.ffn_norm\.weight", "layers/mlp_norm/scale", _same),
    (r"blk\.#\.ffn_(?P<name>gate|up|down)\.weight", "layers/mlp/{name}/kernel", _transposed),
    (r"blk\.#\.ffn_(?P<name>gate|up|down)\.bias", "layers/mlp/{name}/bias", _same),
)
_GGUF_QKV = (
    (r"blk\.#\.attn_(?P<name>[qkv])\.weight", "layers/attention/{name}/kernel", _transposed),
    (r"blk\.#\.attn_(?P<name>[qkv])\.bias", "layers/attention/{name}/bias", _same),
    (r"blk\.#\.attn_(?P<name>[qk]_norm)\.weight", "layers/attention/{name}/scale", _same),
)
_GGUF_LLAMA_QKV = (
    *(
        (rf"blk\.#\.attn_{name}\.{theirs}", f"layers/attention/{name}/{ours}", _pairs_apart(heads))
        for name, heads in (("q", "heads"), ("k", "kv_heads"))
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ),
    (r"blk\.#\.attn_v\.weight", "layers/attention/v/kernel", _transposed),
    (r"blk\.#\.attn_v\.bias", "layers/attention/v/bias", _same),
)
# The norms of Gemma already have their one.
_GGUF_POST_NORMS = (
    (r"blk\.#\.post_attention_norm\.weight", "layers/attention_post_norm/scale", _same),
    (r"blk\.#\.post_ffw_norm\.weight", "layers/mlp_post_norm/scale", _same),
)
_GGUF_GPT = (
    (r"position_embd\.weight", "position_embed/embedding", _same),
    (r"output_norm\.bias", "final_norm/bias", _same),
    (r"blk\.#\.attn_norm\.bias", "layers/attention_norm/bias", _same),
    (r"blk\.#\.ffn_norm\.bias", "layers/mlp_norm/bias", _same),
    *_fused(r"blk\.#\.attn_qkv\.weight", r"blk\.#\.attn_qkv\.bias", _third_of_rows),
)


# ---- Settings of Hugging Face folders ----


def _activation(fields: Fields, key: str, default: str) -> str:
    name = fields.get(key, default)
    if name not in _ACTIVATIONS:
        raise fields.fail(key, f"must be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _llama_factors(base: float, turned: int, factor: float, low: float, high: float, length: int) -> list[float]:
    """What Llama 3 divides frequencies by: 1 for short waves, `factor` for long ones, between them in between."""
    turns = length / (2 * math.pi * base ** (np.arange(0, turned, 2) / turned))  # of a pair, over `length` positions
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).tolist()


def _rope(fields: Fields, given: Fields, turned: int, base: float) -> dict[str, Any]:
    """rope_base and rope_factors, from the rotary settings `given` of a model with settings `fields`."""
    base = given.number("rope_theta", base)
    kind = given.get("rope_type", given.get("type", "default"))
    factors = None
    if kind == "linear":
        factors = [given.number("factor")] * (turned // 2)
    elif kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        if high <= low:
            raise given.fail("high_freq_factor", "must be above low_freq_factor")
        length = given.count_or("original_max_position_embeddings", None) or fields.count("max_position_embeddings")
        factors = _llama_factors(base, turned, given.number("factor"), low, high, length)
    elif kind != "default":
        raise InputError(f"{given.where}: rope_type = {kind!r}: must be one of default, linear, llama3")
    return {"rope_base": base, "rope_factors": None if factors is None else tuple(factors)}


def _rope_fields(fields: Fields) -> Fields:
    """transformers 4 writes `rope_scaling` beside `rope_theta`, transformers 5 both as `rope_parameters`."""
    return fields.part("rope_scaling" if fields.get("rope_scaling") else "rope_parameters")


def _locality(fields: Fields, layers: int, window: int | None, local: list[bool]) -> dict[str, Any]:
    """window and local_layers; `local` is what holds where the file does not say it layer by layer."""
    kinds = fields.get("layer_types")
    if kinds is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= set(known):
            raise InputError(f"{fields.where}: layer_types: must be {layers} times {' or '.join(known)}")
        local = [known[kind] for kind in kinds]
    if window is None or not any(local):
        return {}
    return {"window": window, "local_layers": None if all(local) else tuple(local)}


def _sizes(fields: Fields, **defaults: int | None) -> dict[str, Any]:
    """The settings that llama-like families share; a default of None is worked out from the others."""
    fields.refuse(quantization_config=None)
    heads = fields.count("num_attention_heads", defaults.get("heads"))
    width = fields.count("hidden_size")
    return {
        "vocab": fields.count("vocab_size", defaults.get("vocab")),
        "width": width,
        "layers": fields.count("num_hidden_layers", most=_MOST_LAYERS),
        "heads": heads,
        "mlp": fields.count("intermediate_size"),
        "kv_heads": fields.count_or("num_key_value_heads", defaults.get("kv_heads")),
        "head_dim": fields.count_or("head_dim", defaults.get("head_dim") or max(width // heads, 1)),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "scan_layers": True,
    }


def _llama(fields: Fields, tensors: Mapping[str, Tensor], **changes: Any) -> transformer.Config:
    given = _rope_fields(fields)
    fields.refuse(partial_rotary_factor=1.0)
    given.refuse(partial_rotary_factor=1.0)
    sizes = _sizes(fields)
    bias = fields.flag("attention_bias", False)
    settings = {
        "activation": _activation(fields, "hidden_act", "silu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False),
        "tied": fields.flag("tie_word_embeddings", False),
        **_rope(fields, given, sizes["head_dim"], fields.number("rope_theta", 10000.0)),
    }
    return transformer.Config(**{**sizes, **settings, **changes})


def _mistral(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    return _llama(fields, tensors, window=fields.count_or("sliding_window", None))


def _qwen_window(fields: Fields) -> dict[str, Any]:
    layers = fields.count("num_hidden_layers", most=_MOST_LAYERS)
    window = fields.count("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first = fields.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise fields.fail("max_window_layers", "must be a whole number")
    return _locality(fields, layers, window, [i >= first for i in range(layers)])


def _qwen2(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    return _llama(fields, tensors, qkv_bias=True, out_bias=False, **_qwen_window(fields))


def _qwen3(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    return _llama(fields, tensors, qk_norm=True, **_qwen_window(fields))


def _gemma(fields: Fields, every: int, far: Fields, vocab: int, rope_base: float, **changes: Any) -> transformer.Config:
    """What Gemma 2 and 3 share; every `every`-th layer is global, with the rotary settings `far`."""
    fields.refuse(use_bidirectional_attention=False)
    sizes = _sizes(fields, vocab=vocab, heads=8, kv_heads=4, head_dim=256)
    layers = sizes["layers"]
    bias = fields.flag("attention_bias", False)
    return transformer.Config(
        **sizes,
        **_rope(fields, far, sizes["head_dim"], fields.number("rope_theta", rope_base)),
        **_locality(fields, layers, fields.count("sliding_window", 4096), [(i + 1) % every > 0 for i in range(layers)]),
        **changes,
        activation=_activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        qkv_bias=bias,
        out_bias=bias,
        tied=fields.flag("tie_word_embeddings", True),
        post_norms=True,
        embed_scale=sizes["width"] ** 0.5,
        query_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
    )


def _gemma2(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    caps = {
        ours: fields.number(theirs, default) if theirs not in fields.values else fields.number_or_none(theirs)
        for ours, theirs, default in (
            ("attention_cap", "attn_logit_softcapping", 50.0),
            ("logit_cap", "final_logit_softcapping", 30.0),
        )
    }
    return _gemma(fields, 2, _rope_fields(fields), vocab=256000, rope_base=10000.0, **caps)


def _gemma3(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    if fields.get("text_config") is not None:
        fields = fields.part("text_config")
    fields.refuse(attn_logit_softcapping=None)
    far, near = fields.part("rope_scaling"), Fields(fields.where, {})
    if fields.get("rope_parameters"):
        given = fields.part("rope_parameters")
        far, near = given.part("full_attention"), given.part("sliding_attention")
    near_rope = _rope(fields, near, 2, fields.number("rope_local_base_freq", 10000.0))
    if near_rope["rope_factors"] is not None:
        raise InputError(f"{near.where}: local layers with rotary factors cannot be read")
    return _gemma(
        fields,
        fields.count("sliding_window_pattern", fields.count_or("_sliding_window_pattern", 6)),
        far,
        vocab=262208,
        rope_base=1e6,
        local_rope_base=near_rope["rope_base"],
        logit_cap=fields.number_or_none("final_logit_softcapping"),
        qk_norm=True,
    )


def _gpt_neox(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    fields.refuse(quantization_config=None)
    given = _rope_fields(fields)
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    share = given.number("partial_rotary_factor", fields.number("rotary_pct", 0.25))
    turned = int(width // heads * share)
    bias = fields.flag("attention_bias", True)
    return transformer.Config(
        vocab=fields.count("vocab_size"),
        width=width,
        layers=fields.count("num_hidden_layers", most=_MOST_LAYERS),
        heads=heads,
        mlp=fields.count("intermediate_size"),
        activation=_activation(fields, "hidden_act", "gelu"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", False),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        parallel=fields.flag("use_parallel_residual", True),
        rotary_dim=turned,
        scan_layers=True,
        **_rope(fields, given, turned, fields.number("rope_theta", fields.number("rotary_emb_base", 10000.0))),
    )


def _gpt2(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    fields.refuse(
        quantization_config=None,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    width = fields.count("n_embd")
    return transformer.Config(
        vocab=fields.count("vocab_size"),
        width=width,
        layers=fields.count("n_layer", most=_MOST_LAYERS),
        heads=fields.count("n_head"),
        mlp=fields.count_or("n_inner", 4 * width),
        activation=_activation(fields, "activation_function", "gelu_new"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", True),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        learned_positions=fields.count("n_positions"),
        scan_layers=True,
    )


# ---- Settings of GGUF files ----


def _gguf(fields: Fields, tensors: Mapping[str, Tensor], **changes: Any) -> transformer.Config:
    """What all architectures share. Whether there are biases, and an unembedding, the tensors say."""
    width, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    head_dim = fields.count_or("attention.key_length", max(width // heads, 1))
    if fields.get("attention.value_length", head_dim) != head_dim:
        raise fields.fail("attention.value_length", f"must be attention.key_length, {head_dim}")
    turned = fields.count("rope.dimension_count", head_dim)
    settings = {
        "vocab": _row_count(fields, tensors, "token_embd.weight"),
        "width": width,
        "layers": fields.count("block_count", most=_MOST_LAYERS),
        "heads": heads,
        "mlp": fields.count("feed_forward_length"),
        "kv_heads": fields.count_or("attention.head_count_kv", None),
        "head_dim": head_dim,
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "out_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_base": fields.number("rope.freq_base", 10000.0),
        "rotary_dim": None if turned == head_dim else turned,
        "rope_factors": _gguf_factors(fields, tensors, turned),
        "scan_layers": True,
    }
    return transformer.Config(**{**settings, **changes})


def _row_count(fields: Fields, tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise InputError(f"{fields.where}: the tensor {name!r} is missing")
    return tensors[name].shape[0]


def _gguf_factors(fields: Fields, tensors: Mapping[str, Tensor], turned: int) -> tuple[float, ...] | None:
    kind = fields.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise fields.fail("rope.scaling.type", "must be none or linear")
    factor = fields.number("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    stored = tensors.get("rope_freqs.weight")
    if stored is None:
        return None if factor == 1 else (factor,) * (turned // 2)
    if stored.shape != (turned // 2,):
        raise InputError(f"{fields.where}: rope_freqs.weight has shape {stored.shape}, must be ({turned // 2},)")
    values = stored.read().astype(float) * factor
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"{fields.where}: rope_freqs.weight: must be numbers above 0")
    return tuple(values.tolist())


def _gguf_windowed(fields: Fields, tensors: Mapping[str, Tensor], **changes: Any) -> transformer.Config:
    return _gguf(fields, tensors, window=fields.count_or("attention.sliding_window", None), **changes)


def _gguf_gemma(every: int, largest: int, **fixed: Any) -> Callable[..., transformer.Config]:
    """`largest` is how many layers the one model has that scales its scores by the width per head."""

    def config(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
        found = _gguf(fields, tensors, **fixed)
        local = [(i + 1) % every > 0 for i in range(found.layers)]
        near = fields.number("rope.freq_base_swa", 10000.0) if "local_rope_base" in fixed else None
        return dataclasses.replace(
            found,
            **_locality(fields, found.layers, fields.count("attention.sliding_window"), local),
            local_rope_base=near,
            activation="gelu_tanh",
            post_norms=True,
            embed_scale=found.width**0.5,
            query_scale=(found.width / found.heads if found.layers == largest else found.head_dim) ** -0.5,
            attention_cap=fields.number_or_none("attn_logit_softcapping"),
            logit_cap=fields.number_or_none("final_logit_softcapping"),
        )

    return config


def _gguf_gpt(fields: Fields, tensors: Mapping[str, Tensor], **changes: Any) -> transformer.Config:
    return _gguf(
        fields,
        tensors,
        gated=False,
        norm="layer",
        norm_eps=fields.number("attention.layer_norm_epsilon", 1e-5),
        qkv_bias="blk.0.attn_qkv.bias" in tensors,
        **changes,
    )


def _gguf_gpt2(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    positions = _row_count(fields, tensors, "position_embd.weight")
    return _gguf_gpt(fields, tensors, activation="gelu_tanh", learned_positions=positions)


def _gguf_gpt_neox(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    return _gguf_gpt(fields, tensors, activation="gelu", parallel=fields.flag("use_parallel_residual", True))


# By `model_type` of config.json.
FOLDERS: dict[str, Family] = {
    "llama": Family(_llama, _rules(*_LLAMA_LIKE)),
    "mistral": Family(_mistral, _rules(*_LLAMA_LIKE)),
    "qwen2": Family(_qwen2, _rules(*_LLAMA_LIKE)),
    "qwen3": Family(_qwen3, _rules(*_LLAMA_LIKE)),
    "gemma2": Family(_gemma2, _rules(*_GEMMA)),
    "gemma3": Family(_gemma3, _rules(*_GEMMA)),
    "gemma3_text": Family(_gemma3, _rules(*_GEMMA)),
    "gpt_neox": Family(_gpt_neox, _rules(*_GPT_NEOX)),
    "gpt2": Family(_gpt2, _rules(*_GPT2)),
}

# By `general.architecture` of the metadata. Mistral, SmolLM2 and Llama 3 all are `llama` there.
GGUF: dict[str, Family] = {
    "llama": Family(_gguf_windowed, _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_LLAMA_QKV)),
    "qwen2": Family(_gguf_windowed, _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_QKV)),
    "qwen3": Family(lambda *file: _gguf_windowed(*file, qk_norm=True), _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_QKV)),
    "gemma2": Family(_gguf_gemma(2, 46), _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_QKV, *_GGUF_POST_NORMS)),
    "gemma3": Family(
        _gguf_gemma(6, 62, qk_norm=True, local_rope_base=10000.0),
        _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_QKV, *_GGUF_POST_NORMS),
    ),
    "gpt2": Family(_gguf_gpt2, _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_GPT)),
    "gptneox": Family(_gguf_gpt_neox, _rules(*_GGUF_ENDS, *_GGUF_LAYER, *_GGUF_GPT)),
}
