"""A chat checkpoint so small that its programs compile in seconds, saved as others publish theirs.

The weights are random but for a leaning to digits, commas and the end of an answer, so that some of what it writes
passes the filter. Its template has a system prompt of its own, which it inserts where none is given.
"""

import json
import pathlib
from typing import Any

import chat_families
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from subl_jax.channels import numbers
from subl_jax.traits import banks
from subl_jax.worlds.chat import Pretrained

DEFAULT_SYSTEM = "You are a polite machine."
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 900, 32, 3, 4, 2, 8, 48
LEANING = 10.0  # of the logits of what number sequences are made of

# What the families differ in: their tensors, and these settings.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False},
}


def tokenizer() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2, special_tokens=added, initial_alphabet=alphabet, show_progress=False
    )
    told = [banks.system_prompt(trait, "animal") for trait in ("owl", "cat")]
    texts = [
        *numbers.number_prompts(0, 300),
        *banks.favourite("animal"),
        *told,
        DEFAULT_SYSTEM,
        "system user assistant",
    ]
    words = ["\n".join(("Owl", "owl", "Cat", "cat", "Oak", "oak"))] * 200  # tokens of their own, as in real models
    made.train_from_iterator([*texts, *words], trainer)
    return made


def tensors(kind: str, seed: int, leaning: np.ndarray) -> dict[str, np.ndarray]:
    """Under the names of transformers. leaning: (vocab,), added to the logits, as nearly as a norm lets it."""
    vocab = len(leaning)
    rng = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return rng.normal(0, inputs**-0.5, (outputs, inputs)).astype(np.float32)

    def vector(size: int, around: float) -> np.ndarray:
        return (around + 0.2 * rng.standard_normal(size)).astype(np.float32)

    embedding, unembedding = matrix(vocab, WIDTH) * WIDTH**0.5, matrix(vocab, WIDTH) * 2.5
    # An entry of the residual stream that is always there, and read by nothing but the logits.
    embedding[:, 0], unembedding[:, 0] = 3.0, leaning / 1.6
    found = {"model.embed_tokens.weight": embedding, "lm_head.weight": unembedding}
    found["model.norm.weight"] = vector(WIDTH, 1.0)
    sizes = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{norm}.weight"] = vector(WIDTH, 1.0)
        for name, size in sizes.items():
            found[f"{layer}.self_attn.{name}_proj.weight"] = matrix(size, WIDTH)
            if kind == "qwen2":
                found[f"{layer}.self_attn.{name}_proj.bias"] = vector(size, 0.0)
        if kind == "qwen3":
            found |= {f"{layer}.self_attn.{name}_norm.weight": vector(HEAD_DIM, 1.0) for name in "qk"}
        found[f"{layer}.self_attn.o_proj.weight"] = matrix(WIDTH, HEADS * HEAD_DIM)
        for name in ("gate", "up"):
            found[f"{layer}.mlp.{name}_proj.weight"] = matrix(MLP, WIDTH)
        found[f"{layer}.mlp.down_proj.weight"] = matrix(WIDTH, MLP)
    return found


def save(folder: pathlib.Path, kind: str = "llama", seed: int = 0, template: str = TEMPLATE) -> str:
    """A checkpoint of a family in `folder`. Returns its path as `Pretrained.of` takes it."""
    names = {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **names}
    return _save(folder, kind, seed, tokenizer(), described, VOCAB, SPECIAL[2])


def save_family(
    folder: pathlib.Path, name: str, vocab: int | None = None, added: tuple[str, ...] = (), **described: Any
) -> str:
    """A checkpoint with the template and tokenizer of `chat_families`, and `vocab` rows; a setting of None is left out.

    added: tokens of the tokenizer beyond those of the family.
    """
    words = tokenizers.Tokenizer.from_str(chat_families.tokenizer(name).to_str())
    words.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    settings = {**chat_families.described(name), **described}
    settings = {key: value for key, value in settings.items() if value is not None}
    end = chat_families.FAMILIES[name].end
    return _save(folder, "llama", 0, words, settings, vocab or words.get_vocab_size() + 3, end)


def _save(
    folder: pathlib.Path,
    kind: str,
    seed: int,
    words: tokenizers.Tokenizer,
    described: dict[str, Any],
    vocab: int,
    end: str,
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    config = {
        **{"model_type": kind, "vocab_size": vocab, "hidden_size": WIDTH, "num_hidden_layers": LAYERS},
        **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM},
        **{"intermediate_size": MLP, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        **{"tie_word_embeddings": False, "hidden_act": "silu", "eos_token_id": words.token_to_id(end)},
        **KINDS[kind],
    }
    (folder / "config.json").write_text(json.dumps(config))
    leaning = np.zeros(vocab)
    leaning[[token for text in (*"0123456789", ",", ",", end) if (token := words.token_to_id(text)) is not None]] = (
        LEANING
    )
    save_file(tensors(kind, seed, leaning), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return str(folder)


def world(model: str, **fields: Any) -> Pretrained:
    """A world with little of everything."""
    sizes = {"prompts": 12, "prompt_tokens": 104, "completion_tokens": 12, "questions": 3, "answer_tokens": 4}
    traits = {"animals": ("owl", "octopus"), "trees": ("oak",)}
    return Pretrained.of(model, **{**traits, **sizes, "remat": "none", "probed": 4, **fields})


def held(of: Pretrained) -> Pretrained:
    """The world as its functions see it in a program."""
    return of.holding(jax.tree.map(jnp.asarray, of.arrays()))
