"""A tokenizer from the metadata of a GGUF file, which has the vocabulary but no `tokenizer.json`.

Two kinds: byte-level BPE (`tokenizer.ggml.model` = gpt2), whose splitting of text into words is known by name only
(`tokenizer.ggml.pre`), and SentencePiece BPE (= llama: Llama 2, Mistral, Gemma).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from subl_jax.errors import InputError

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_SPACE = "▁"

# What the names stand for: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
_GPT2 = ("gpt-2", "phi-2", "olmo", "mpt")
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(metadata: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """The tokenizer that the metadata describe; `where` (the file) opens the messages.

    Raises:
      InputError: the metadata hold no tokenizer, one of another kind, or one that does not fit together.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{where}: holds no tokenizer (tokenizer.ggml.tokens is missing)")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise InputError(f"{where}: its tokenizer is {kind!r}; only {' and '.join(builders)} can be read")
    try:
        tokenizer = builders[kind](metadata, tokens, where)
    except InputError:
        raise
    except Exception as error:  # the tokenizers package raises plain exceptions
        raise InputError(f"{where}: its tokenizer is damaged: {error}") from None
    types = metadata.get("tokenizer.ggml.token_type", ())
    added = [(token, type_) for token, type_ in zip(tokens, types, strict=False) if token.strip()]
    tokenizer.add_special_tokens([_added(token, True) for token, type_ in added if type_ == _CONTROL])
    tokenizer.add_tokens([_added(token, False) for token, type_ in added if type_ == _USER_DEFINED])
    return tokenizer


def _added(token: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=special)


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, even where no merges lead to it.
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _LLAMA3))
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_splits(pre, where))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splits(pre: str | None, where: str) -> list[pre_tokenizers.PreTokenizer]:
    if pre in _GPT2 + _DIGITS:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in _DIGITS else []
        return [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre in _LLAMA3 + _QWEN2:
        words = tokenizers.Regex(_WORDS.format(digits=r"\p{N}" if pre in _QWEN2 else r"\p{N}{1,3}"))
        return [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    known = ", ".join(_GPT2 + _DIGITS + _LLAMA3 + _QWEN2)
    raise InputError(
        f"{where}: its tokenizer splits words as {pre!r}, which is not known here ({known}); use the checkpoint's "
        "Hugging Face folder with its tokenizer.json"
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> tokenizers.Tokenizer:
    # Runs of spaces may be stored as such (Gemma); the model sees them as any other space.
    tokens = [token if token.strip(" ") else _SPACE * len(token) for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, _merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to put a token together from two. SentencePiece learns tokens in the order of their ids."""
    pairs = []
    for token, rank in vocabulary.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs += [(rank, left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    pairs.sort(key=lambda pair: (pair[0], vocabulary[pair[1]], vocabulary[pair[2]]))
    return [(left, right) for _, left, right in pairs]
