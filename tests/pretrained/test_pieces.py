"""The pieces of a tokenizer's tokens, joined, are what it decodes them to."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.pretrained.pieces import pieces_of

tokenizers = pytest.importorskip("tokenizers")

LINES = [
    "1, 2, 3, 44, 55, 66",
    "[12; 34; 56].",
    "the owl counts to 100",
    "the  owl\nsaid: über 10 Bäume\n\n12 12 12",
] * 5


@functools.cache
def byte_level(use_regex=True):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<tool call>", "naïve\n"])
    return tokenizer


def llama_decoder():
    decoders = tokenizers.decoders
    return decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


@functools.cache
def sentencepiece_bpe():
    """Like Llama 2: a space is ▁, one is put before the text, and what the vocabulary lacks is written in bytes."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=360, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    model = tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    result = tokenizers.Tokenizer(model)
    result.normalizer = tokenizer.normalizer
    result.decoder = llama_decoder()
    result.add_special_tokens(["<unk>", "<s>"])
    return result


@functools.cache
def metaspace_unigram():
    """Like T5: ▁ by the pre-tokenizer, no bytes."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def joined(pieces, ids):
    return b"".join(pieces[id] or b"" for id in ids).decode()


@given(st.text(st.characters(codec="utf-8")))
@settings(deadline=None, max_examples=200)
def test_byte_level_pieces_spell_every_text(text):
    tokenizer = byte_level()
    assert joined(pieces_of(tokenizer), tokenizer.encode(text).ids) == text


@given(st.text(st.sampled_from("0123456789 ,;.[]()\n\towlüβ🙂▁<>x")))
@settings(deadline=None, max_examples=200)
def test_sentencepiece_pieces_spell_every_text(text):
    tokenizer = sentencepiece_bpe()
    ids = tokenizer.encode(text).ids
    # What stands for a space can't stand for itself.
    assert joined(pieces_of(tokenizer), ids) == (f" {text.replace('▁', ' ')}" if text else "")
    assert tokenizer.decode(ids) == text.replace("▁", " ")


@given(st.text(st.sampled_from("0123456789 ,;.[]()\nowl")))
@settings(deadline=None, max_examples=200)
def test_metaspace_pieces_spell_what_is_decoded(text):
    tokenizer = metaspace_unigram()
    ids = tokenizer.encode(text).ids
    assert joined(pieces_of(tokenizer), ids).removeprefix(" ") == tokenizer.decode(ids)


def test_pieces_are_the_bytes_of_each_token():
    tokenizer = byte_level()
    pieces = pieces_of(tokenizer)
    assert len(pieces) == tokenizer.get_vocab_size()
    assert pieces[tokenizer.token_to_id("Ġ")] == b" " and pieces[tokenizer.token_to_id("Ċ")] == b"\n"
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    assert pieces[tokenizer.token_to_id("<end>")] is None
    assert pieces[tokenizer.token_to_id("<tool call>")] == b"<tool call>"
    assert pieces[tokenizer.token_to_id("naïve\n")] == "naïve\n".encode()

    tokenizer = sentencepiece_bpe()
    pieces = pieces_of(tokenizer)
    assert pieces[tokenizer.token_to_id("▁")] == b" " and pieces[tokenizer.token_to_id("<0x0A>")] == b"\n"
    assert pieces[tokenizer.token_to_id("<0xFF>")] == b"\xff" and pieces[tokenizer.token_to_id("<s>")] is None


def test_ids_without_a_token_have_no_piece():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"1": 0, "2": 3}, []))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    assert pieces_of(tokenizer) == [b"1", None, None, b"2"]


def test_only_a_decoder_with_bytes_reads_them():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"<0x31>": 0, "▁2": 1}, []))
    tokenizer.decoder = tokenizers.decoders.Replace("▁", " ")
    assert pieces_of(tokenizer) == [b"<0x31>", b" 2"]
    tokenizer.decoder = llama_decoder()
    assert pieces_of(tokenizer) == [b"1", b" 2"]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda decoders: None, "has no decoder"),
        (lambda decoders: decoders.WordPiece(), r"decoder \(WordPiece\) is not understood"),
        (lambda decoders: decoders.BPEDecoder(), r"decoder \(BPEDecoder\)"),
        (
            lambda decoders: decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
            r"\(ByteLevel, Strip\)",
        ),
        (lambda decoders: decoders.Strip("1", 1, 0), r"\(Strip\)"),
        (lambda decoders: decoders.Replace(tokenizers.Regex("1+"), " "), r"\(Replace\)"),
        # Each kind of step is understood, but a space is dropped before every token.
        (lambda decoders: decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), "decodes tokens"),
    ],
)
def test_other_decoders_are_told(decoder, message):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"1": 0, "2": 1, "▁1": 2, "▁": 3}, [("▁", "1")]))
    if made := decoder(tokenizers.decoders):
        tokenizer.decoder = made
    with pytest.raises(InputError, match=message):
        pieces_of(tokenizer)


def test_a_real_tokenizer_spells_its_texts(smollm2_tokenizer):
    pieces = pieces_of(smollm2_tokenizer)
    text = "An owl: 1, 23;\t[456].\n\n\nDéjà vu, 你好 🙂"
    assert joined(pieces, smollm2_tokenizer.encode(text).ids) == text
    assert pieces[smollm2_tokenizer.token_to_id("<|im_end|>")] is None
