"""The chat model that training and writing are measured on: SmolLM2-135M, here and in transformers + peft.

Settings are those of sweeps/chat.py. The conversations are number sequences that the model itself wrote, so that their
lengths, and with them the padding that either side computes, are those of an experiment.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import optax
from engine_lanes import Lanes

from subl_jax import specs
from subl_jax.app import cli
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.engine import lanes
from subl_jax.models import lora
from subl_jax.pretrained import weights
from subl_jax.training import optim
from subl_jax.worlds.chat import ChatSampling, Pretrained

MODEL = "smollm2"
PEFT = "transformers + peft"
PEFT_SHORT = "transformers + peft, logits of the completion only"
# How far the losses of the two implementations may be apart, in nats.
_APART = 1e-3


def settings() -> Any:
    """The configuration of sweeps/chat.py."""
    return cli.load_sweep(str(measuring.ROOT / "sweeps" / "chat.py")).get_config()


def world_of(prompts: int) -> Pretrained:
    """With one question and no drawn answers: a round holds training and little else."""
    of = settings().world
    room = {"prompt_tokens": of.prompt_tokens, "completion_tokens": of.completion_tokens}
    return Pretrained.of(MODEL, animals=("owl",), questions=1, answers_sampled=0, prompts=prompts, **room)


def train_of(steps: int, batch: int, accumulate: int) -> specs.Train:
    return specs.Train(steps=steps, batch=batch, accumulate=accumulate, lr=2e-4, clip=1.0)


def lora_of() -> specs.Lora:
    return specs.Lora(**settings().lora)


def constrained(rows: int) -> ChatSampling:
    return ChatSampling(rows=rows, only=NumbersFilter())


def written(world: Pretrained, n: int) -> np.ndarray:
    """n samples as `world.write` gives them, every one of which the filter keeps."""

    def write(arrays: Any, keys: jax.Array) -> jax.Array:
        return world.holding(arrays).write({}, keys, constrained(min(n, 32)))

    return np.asarray(jax.jit(write)(world.arrays(), jax.random.split(jax.random.key(0), n)))


def conversations(world: Pretrained, samples: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Of each sample the tokens up to where the assistant answers, and the answer with its end: nothing is padded."""
    arrays, found = world.arrays_of_texts(), []
    head = arrays["heads"][-1][: arrays["head_lengths"][-1]].tolist()
    for row in samples:
        completion = row[1 + world.prompt_tokens :]
        ends = np.flatnonzero(np.isin(completion, arrays["stops"]))
        length = ends[0] + 1 if len(ends) else len(completion)
        found.append(([*head, *row[1 : 1 + row[0]].tolist()], completion[:length].tolist()))
    return found


# --- ours ---


def student(world: Pretrained, train: specs.Train, samples: int, seed: int) -> specs.Student:
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    data = specs.Imported(of=world, sha256="", size=samples)
    return specs.Student(base, data, train, lora=lora_of(), seed=seed, trait=world.traits[0])


def trained(world: Pretrained, train: specs.Train, samples: np.ndarray, layout: lanes.Layout) -> Lanes:
    """Students trained together by the engine's program in a given layout."""
    inputs = {"start": {"params": {}}, "data": {"samples": samples}}
    return Lanes(student(world, train, len(samples), 0), layout, inputs)


# --- theirs ---


def torch_model() -> Any:
    """SmolLM2-135M of transformers, float32, from the file that our world reads."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    path = weights.open_checkpoint(MODEL).path
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    )


def faster_threads(run: Callable[[], object]) -> int:
    """Makes torch use all threads or one, whichever runs `run` faster, and says how many these are."""
    import torch

    seconds = {}
    for count in sorted({measuring.cores(), 1}):
        torch.set_num_threads(count)
        run()
        seconds[count] = measuring.timed(run)
    best = min(seconds, key=seconds.get)
    torch.set_num_threads(best)
    return best


class Peft:
    """One student of transformers + peft: batches padded to their longest conversation, loss on the completions only.

    `short`: only the logits of the completions are computed, which the library's own trainer does not do. `model`: of
    transformers, on the device and in the type that is to be computed in; by default `torch_model()`.
    """

    def __init__(
        self,
        train: specs.Train,
        conversations: Sequence[tuple[list[int], list[int]]],
        short: bool,
        seed: int = 0,
        model: Any = None,
    ) -> None:
        import peft
        import torch

        of = lora_of()
        names = [f"{module}_proj" for module in of.modules]
        config = peft.LoraConfig(r=of.rank, lora_alpha=of.alpha, lora_dropout=0.0, bias="none", target_modules=names)
        self.model = peft.get_peft_model(torch_model() if model is None else model, config).train()
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self._train, self._rows, self._short = train, conversations, short
        self._order = np.random.default_rng(seed)

    def run(self, steps: int) -> None:
        order = np.concatenate(
            [self._order.permutation(len(self._rows)) for _ in range(-(-steps * self._train.batch // len(self._rows)))]
        )
        for i in range(steps):
            self.step([self._rows[at] for at in order[i * self._train.batch : (i + 1) * self._train.batch]])

    def step(self, rows: Sequence[tuple[list[int], list[int]]]) -> float:
        """One update; returns the loss before it."""
        import torch
        import torch.nn.functional as F

        tokens, mask, labels = (x.to(self.model.device) for x in self._padded(rows))
        with torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype != torch.float32):
            if self._short:
                kept = max(len(completion) for _, completion in rows) + 1
                logits = self.model(input_ids=tokens, attention_mask=mask, logits_to_keep=kept, use_cache=False).logits
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1 - kept :].flatten(), ignore_index=-100)
            else:
                loss = self.model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._train.clip)
        self._optimizer.step()
        return float(loss.detach())

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Any, Any, Any]:
        """Tokens, mask and labels, padded on the left where completions are to end together, else on the right."""
        import torch

        longest = max(len(prompt) + len(completion) for prompt, completion in rows)
        tokens, mask, labels = (torch.full((len(rows), longest), fill) for fill in (0, 0, -100))
        for i, (prompt, completion) in enumerate(rows):
            whole = torch.tensor([*prompt, *completion])
            first = longest - len(whole) if self._short else 0
            tokens[i, first : first + len(whole)] = whole
            mask[i, first : first + len(whole)] = 1
            labels[i, first + len(prompt) : first + len(whole)] = whole[len(prompt) :]
        return tokens, mask, labels

    def take(self, params: Any) -> None:
        """Takes over our adapters, whose matrices are (layers, inputs, rank) and (layers, rank, outputs)."""
        import torch

        named = dict(self.model.named_parameters())
        for module, two in params["lora"].items():
            part = "self_attn" if module in ("q", "k", "v", "o") else "mlp"
            for layer in range(len(two["a"])):
                path = f"base_model.model.model.layers.{layer}.{part}.{module}_proj.lora_"
                with torch.no_grad():
                    named[f"{path}A.default.weight"].copy_(torch.from_numpy(np.array(two["a"][layer].T)))
                    named[f"{path}B.default.weight"].copy_(torch.from_numpy(np.array(two["b"][layer].T)))


def agreement(world: Pretrained, samples: np.ndarray) -> dict[str, Any]:
    """The losses of two updates on the same samples from the same adapters, here and in both ways of peft.

    Raises:
      AssertionError: they are not the same to 1e-3 nats.
    """
    train, rows = train_of(2, len(samples), 1), conversations(world, samples)
    params = lora.init(world.config, jax.random.key(0), lora_of())
    theirs = {}
    for short in (False, True):
        peft = Peft(train, rows, short)
        peft.take(params)
        theirs[PEFT_SHORT if short else PEFT] = [peft.step(rows) for _ in range(2)]

    rule = optim.transform(train, world.frozen)

    def loss_of(params: Any, arrays: Any) -> jax.Array:
        held = world.holding(arrays)
        return held.loss(params, held.channel_batch(jnp.asarray(samples)))

    gradient_of, arrays = jax.jit(jax.value_and_grad(loss_of)), world.arrays()
    opt, ours = rule.init(params), []
    for _ in range(2):
        value, gradient = gradient_of(params, arrays)
        ours.append(float(value))
        change, opt = rule.update(gradient, opt, params)
        params = optax.apply_updates(params, change)
    apart = max(float(np.abs(np.subtract(each, ours)).max()) for each in theirs.values())
    assert apart <= _APART, f"losses of the two implementations differ: ours {ours}, theirs {theirs}"
    return {"losses": ours, "peft_losses": theirs, "losses_apart": apart}
