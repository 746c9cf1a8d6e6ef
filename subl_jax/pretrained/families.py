"""Which checkpoints can be read: per family, its settings as a transformer.Config and the names of its tensors.

A family is a function from the settings in a file to our Config, and a table of rules. A rule says where a tensor of
the file goes in our parameter tree and what is done to it on the way. `#` stands for the number of a layer; one tensor
may go to several places (fused projections). Tensors that no rule knows are an error (weights.py).

Settings come from the `config.json` of a Hugging Face folder, as transformers 4 or 5 writes it, or from GGUF metadata.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained.gguf_file import Tensor
from subl_jax.pretrained.rules import (
    GEMMA,
    GGUF_ENDS,
    GGUF_GPT,
    GGUF_LAYER,
    GGUF_LLAMA_QKV,
    GGUF_POST_NORMS,
    GGUF_QKV,
    GPT2,
    GPT_NEOX,
    LLAMA_LIKE,
    Rule,
    rules,
)
from subl_jax.pretrained.settings import MOST_LAYERS, Fields, activation, locality, rope, rope_fields


@dataclasses.dataclass(frozen=True)
class Family:
    """`config(fields, tensors)` reads the settings; tensors are those of the file, by name."""

    config: Callable[[Fields, Mapping[str, Tensor]], transformer.Config]
    rules: tuple[Rule, ...]


# ---- Settings of Hugging Face folders ----


def _sizes(fields: Fields, **defaults: int | None) -> dict[str, Any]:
    """The settings that llama-like families share; a default of None is worked out from the others."""
    fields.refuse(quantization_config=None)
    heads = fields.count("num_attention_heads", defaults.get("heads"))
    width = fields.count("hidden_size")
    return {
        "vocab": fields.count("vocab_size", defaults.get("vocab")),
        "width": width,
        "layers": fields.count("num_hidden_layers", most=MOST_LAYERS),
        "heads": heads,
        "mlp": fields.count("intermediate_size"),
        "kv_heads": fields.count_or("num_key_value_heads", defaults.get("kv_heads")),
        "head_dim": fields.count_or("head_dim", defaults.get("head_dim") or max(width // heads, 1)),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "scan_layers": True,
    }


def _llama(fields: Fields, tensors: Mapping[str, Tensor], **changes: Any) -> transformer.Config:
    given = rope_fields(fields)
    fields.refuse(partial_rotary_factor=1.0)
    given.refuse(partial_rotary_factor=1.0)
    sizes = _sizes(fields)
    bias = fields.flag("attention_bias", False)
    settings = {
        "activation": activation(fields, "hidden_act", "silu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False),
        "tied": fields.flag("tie_word_embeddings", False),
        **rope(fields, given, sizes["head_dim"], fields.number("rope_theta", 10000.0)),
    }
    return transformer.Config(**{**sizes, **settings, **changes})


def _mistral(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    return _llama(fields, tensors, window=fields.count_or("sliding_window", None))


def _qwen_window(fields: Fields) -> dict[str, Any]:
    layers = fields.count("num_hidden_layers", most=MOST_LAYERS)
    window = fields.count("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first = fields.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise fields.fail("max_window_layers", "must be a whole number")
    return locality(fields, layers, window, [i >= first for i in range(layers)])


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
        **rope(fields, far, sizes["head_dim"], fields.number("rope_theta", rope_base)),
        **locality(fields, layers, fields.count("sliding_window", 4096), [(i + 1) % every > 0 for i in range(layers)]),
        **changes,
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
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
    return _gemma(fields, 2, rope_fields(fields), vocab=256000, rope_base=10000.0, **caps)


def _gemma3(fields: Fields, tensors: Mapping[str, Tensor]) -> transformer.Config:
    if fields.get("text_config") is not None:
        fields = fields.part("text_config")
    fields.refuse(attn_logit_softcapping=None)
    far, near = fields.part("rope_scaling"), Fields(fields.where, {})
    if fields.get("rope_parameters"):
        given = fields.part("rope_parameters")
        far, near = given.part("full_attention"), given.part("sliding_attention")
    near_rope = rope(fields, near, 2, fields.number("rope_local_base_freq", 10000.0))
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
    given = rope_fields(fields)
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    share = given.number("partial_rotary_factor", fields.number("rotary_pct", 0.25))
    turned = int(width // heads * share)
    bias = fields.flag("attention_bias", True)
    return transformer.Config(
        vocab=fields.count("vocab_size"),
        width=width,
        layers=fields.count("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        mlp=fields.count("intermediate_size"),
        activation=activation(fields, "hidden_act", "gelu"),
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
        **rope(fields, given, turned, fields.number("rope_theta", fields.number("rotary_emb_base", 10000.0))),
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
        layers=fields.count("n_layer", most=MOST_LAYERS),
        heads=fields.count("n_head"),
        mlp=fields.count_or("n_inner", 4 * width),
        activation=activation(fields, "activation_function", "gelu_new"),
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
        "layers": fields.count("block_count", most=MOST_LAYERS),
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
            **locality(fields, found.layers, fields.count("attention.sliding_window"), local),
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
    "llama": Family(_llama, rules(*LLAMA_LIKE)),
    "mistral": Family(_mistral, rules(*LLAMA_LIKE)),
    "qwen2": Family(_qwen2, rules(*LLAMA_LIKE)),
    "qwen3": Family(_qwen3, rules(*LLAMA_LIKE)),
    "gemma2": Family(_gemma2, rules(*GEMMA)),
    "gemma3": Family(_gemma3, rules(*GEMMA)),
    "gemma3_text": Family(_gemma3, rules(*GEMMA)),
    "gpt_neox": Family(_gpt_neox, rules(*GPT_NEOX)),
    "gpt2": Family(_gpt2, rules(*GPT2)),
}

# By `general.architecture` of the metadata. Mistral, SmolLM2 and Llama 3 all are `llama` there.
GGUF: dict[str, Family] = {
    "llama": Family(_gguf_windowed, rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_LLAMA_QKV)),
    "qwen2": Family(_gguf_windowed, rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_QKV)),
    "qwen3": Family(lambda *file: _gguf_windowed(*file, qk_norm=True), rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_QKV)),
    "gemma2": Family(_gguf_gemma(2, 46), rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_QKV, *GGUF_POST_NORMS)),
    "gemma3": Family(
        _gguf_gemma(6, 62, qk_norm=True, local_rope_base=10000.0),
        rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_QKV, *GGUF_POST_NORMS),
    ),
    "gpt2": Family(_gguf_gpt2, rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_GPT)),
    "gptneox": Family(_gguf_gpt_neox, rules(*GGUF_ENDS, *GGUF_LAYER, *GGUF_GPT)),
}
