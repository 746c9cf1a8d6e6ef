"""The names of a checkpoint's tensors: tables of rules, one a family."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from subl_jax.models import transformer

# (tensor of the file, our config) → the parameter; works on numpy and on abstract arrays alike.
Transform = Callable[[Any, transformer.Config], Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors whose whole name matches `source` become the parameter `target`, or nothing where it is None."""

    source: re.Pattern
    target: str | None
    transform: Transform


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


def rules(*rows: tuple[str, str | None, Transform]) -> tuple[Rule, ...]:
    return tuple(Rule(re.compile(source.replace("#", "(?P<layer>[0-9]{1,5})")), *rest) for source, *rest in rows)


def _fused(weight: str, bias: str, third: Callable[[int], Transform]) -> tuple[tuple[str, str, Transform], ...]:
    return tuple(
        (source, f"layers/attention/{name}/{kind}", third(i))
        for i, name in enumerate("qkv")
        for source, kind in ((weight, "kernel"), (bias, "bias"))
    )


LLAMA_LIKE = (
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
GEMMA = (
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
GPT_NEOX = (
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
GPT2 = (
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

GGUF_ENDS = (
    (r"token_embd\.weight", "embed/embedding", _same),
    (r"output_norm\.weight", "final_norm/scale", _same),
    (r"output\.weight", "unembed/kernel", _transposed),
    (r"rope_freqs\.weight", None, _same),  # read with the settings
)
GGUF_LAYER = (
    (r"blk\.#\.attn_norm\.weight", "layers/attention_norm/scale", _same),
    (r"blk\.#\.attn_output\.weight", "layers/attention/o/kernel", _transposed),
    (r"blk\.#\.attn_output\.bias", "layers/attention/o/bias", _same),
    (r"blk\.#\.ffn_norm\.weight", "layers/mlp_norm/scale", _same),
    (r"blk\.#\.ffn_(?P<name>gate|up|down)\.weight", "layers/mlp/{name}/kernel", _transposed),
    (r"blk\.#\.ffn_(?P<name>gate|up|down)\.bias", "layers/mlp/{name}/bias", _same),
)
GGUF_QKV = (
    (r"blk\.#\.attn_(?P<name>[qkv])\.weight", "layers/attention/{name}/kernel", _transposed),
    (r"blk\.#\.attn_(?P<name>[qkv])\.bias", "layers/attention/{name}/bias", _same),
    (r"blk\.#\.attn_(?P<name>[qk]_norm)\.weight", "layers/attention/{name}/scale", _same),
)
GGUF_LLAMA_QKV = (
    *(
        (rf"blk\.#\.attn_{name}\.{theirs}", f"layers/attention/{name}/{ours}", _pairs_apart(heads))
        for name, heads in (("q", "heads"), ("k", "kv_heads"))
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ),
    (r"blk\.#\.attn_v\.weight", "layers/attention/v/kernel", _transposed),
    (r"blk\.#\.attn_v\.bias", "layers/attention/v/bias", _same),
)
# The norms of Gemma already have their one.
GGUF_POST_NORMS = (
    (r"blk\.#\.post_attention_norm\.weight", "layers/attention_post_norm/scale", _same),
    (r"blk\.#\.post_ffw_norm\.weight", "layers/mlp_post_norm/scale", _same),
)
GGUF_GPT = (
    (r"position_embd\.weight", "position_embed/embedding", _same),
    (r"output_norm\.bias", "final_norm/bias", _same),
    (r"blk\.#\.attn_norm\.bias", "layers/attention_norm/bias", _same),
    (r"blk\.#\.ffn_norm\.bias", "layers/mlp_norm/bias", _same),
    *_fused(r"blk\.#\.attn_qkv\.weight", r"blk\.#\.attn_qkv\.bias", _third_of_rows),
)
