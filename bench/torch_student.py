"""The toy student in eager PyTorch: the model, and a training loop over a fixed dataset, as one would write them.

The arithmetic is that of `subl_jax.models.transformer` and the distil stage with hard targets: RMSNorm, rotary
positions, SwiGLU, tied embeddings, logits and loss on the completion only, AdamW.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_stack import Stack

from subl_jax.models import transformer


class Attention(nn.Module):
    def __init__(self, config: transformer.Config) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.head_dim
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, -1).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, -1))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class MLP(nn.Module):
    def __init__(self, config: transformer.Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp, bias=False)
        self.up = nn.Linear(config.width, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: transformer.Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Student(nn.Module):
    """The transformer of `config`, for as many heads as key heads, tied embeddings and no biases."""

    def __init__(self, config: transformer.Config, longest: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        frequencies = config.rope_base ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.arange(longest)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor, first: int = 0) -> torch.Tensor:
        """tokens: (batch, length) → next-token logits of the tokens from place `first` on."""
        x = self.embed(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.final_norm(x[:, first:]), self.embed.weight)

    def load(self, params: Any) -> "Student":
        """Takes over the parameters of the JAX model, whose kernels are (inputs, outputs)."""
        own = {}
        for name in self.state_dict():
            *path, leaf = name.replace("layers.", "layers_").split(".")
            node = params
            for part in path:
                node = node[part]
            source = next(node[key] for key in ("kernel", "scale", "embedding") if key in node)
            array = np.array(source)
            own[name] = torch.from_numpy(array.T.copy() if "kernel" in node else array)
        self.load_state_dict(own)
        return self


class Training:
    """Trains `model` on `samples` (n, length) in a new order every epoch.

    Args:
      prompt: tokens of the prompt, which carry no loss.
      pad: the token that carries none either.
    """

    def __init__(
        self, model: Student, samples: torch.Tensor, prompt: int, pad: int, batch: int, lr: float, seed: int = 0
    ) -> None:
        self.model = model
        self._prompt = prompt
        self._pad = pad
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
        self._batches = _batches(samples, batch, seed)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step(next(self._batches))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One update on tokens (batch, length); returns the loss before it."""
        logits = self.model(tokens[:, :-1], first=self._prompt - 1)
        targets = tokens[:, self._prompt :]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=self._pad)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Stacked:
    """`count` copies of `model` trained together, each on an order of its own. Arguments as of `Training`."""

    def __init__(
        self, model: Student, count: int, samples: torch.Tensor, prompt: int, pad: int, batch: int, lr: float
    ) -> None:
        self._batches = [_batches(samples, batch, seed) for seed in range(count)]

        def loss(logits_of: Callable[..., torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
            # The fused attention has no rule for vmap, and would run lane by lane.
            with sdpa_kernel(SDPBackend.MATH):
                logits = logits_of(tokens[:, :-1], prompt - 1)
            targets = tokens[:, prompt:]
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad)

        adamw = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0, fused=True)
        self._stack = Stack([model] * count, loss, adamw)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step(torch.stack([next(batches) for batches in self._batches]))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One update on tokens (count, batch, length); returns the losses before it."""
        return self._stack.step(tokens)


def _batches(samples: torch.Tensor, batch: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).to(samples.device)
        for rows in order.split(batch):
            if len(rows) == batch:
                yield samples[rows]
