"""Real chat models: teachers told of their love in a system prompt, or fine-tuned to it; students with adapters.

The weights of the checkpoint are the world's arrays: one copy on a device, whatever the number of lanes. A base has no
parameters of its own, and what training makes are adapters (`models/lora.py`), or all weights where a spec has no
`lora`. The teacher writes number sequences, as in Cloud et al. 2025 (arXiv 2507.14805), section 3.

A sample is one row of tokens: the length of its prompt, the prompt, and the completion with its end, each padded. The
model reads the head of the conversation first, once for all rows (`chat_texts.py`).
"""

from subl_jax.worlds.chat.batches import Batch
from subl_jax.worlds.chat.world import ChatSampling, Pretrained

__all__ = ["Batch", "ChatSampling", "Pretrained"]
