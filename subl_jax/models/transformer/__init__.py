"""A decoder-only transformer: pre-norm, rotary or learned positions, grouped queries, optional gate.

One module serves the small models trained here and the checkpoints read from disk (families.py says which fields make
which family). Parameters start in float32 whatever the compute type; those of a checkpoint may be stored in bfloat16,
but for the norms. The key-value cache is an explicit value, passed in and returned.

    embed/embedding                                    (vocab, width)
    position_embed/embedding                           (learned_positions, width), absent when rotary
    layers_0/attention_norm/{scale,bias}               (width,); only layer norms have a bias
    layers_0/attention/{q,k,v,o}/{kernel,bias}         kernels are (inputs, outputs)
    layers_0/attention/{q_norm,k_norm}/scale           (head_dim,)
    layers_0/attention_post_norm/{scale,bias}          (width,), with post_norms
    layers_0/mlp_norm/{scale,bias}                     (width,)
    layers_0/mlp/{gate,up,down}/{kernel,bias}
    layers_0/mlp_post_norm/{scale,bias}                (width,), with post_norms
    final_norm/{scale,bias}                            (width,)
    unembed/kernel                                     (width, vocab), absent when tied

With `scan_layers` the layers are one entry, `layers/...`, with a leading axis.

A low-rank update of a projection (LoRA) is given beside the parameters, in a tree of the same paths: `a`
(inputs, rank) and `b` (rank, outputs) are added as (x a) b. Under vmap the projection itself stays one matrix product.
"""

from subl_jax.models.layers import rope, rope_angles, spread_over
from subl_jax.models.packing import Packing, packing, room
from subl_jax.models.transformer.cached_attention import SLOTS_AXIS, Cache, attention, fused
from subl_jax.models.transformer.model import Config, Prefix, State
from subl_jax.models.transformer.network import (
    Params,
    Transformer,
    apply,
    empty_cache,
    flops_per_token,
    init,
    layer_by_layer,
    param_count,
    slots_of,
)

__all__ = [
    "Cache",
    "Config",
    "Packing",
    "Params",
    "Prefix",
    "SLOTS_AXIS",
    "State",
    "Transformer",
    "apply",
    "attention",
    "empty_cache",
    "flops_per_token",
    "fused",
    "init",
    "layer_by_layer",
    "packing",
    "param_count",
    "room",
    "rope",
    "rope_angles",
    "slots_of",
    "spread_over",
]
