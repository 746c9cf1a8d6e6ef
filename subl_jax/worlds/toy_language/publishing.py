"""How models of the toy language leave: as small Llamas, whose tokenizer knows the language's words."""

from typing import Any

from etils import epath

from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.pretrained import names, publishing
from subl_jax.worlds.toy_language.vocabulary import BOS, EOS, PAD, SEPARATORS, language


def save(world: Any, params: Any, folder: epath.Path) -> None:
    """Writes config.json, weights and tokenizer.

    Raises:
      InputError: another architecture than the transformer; or the package `tokenizers` is not installed.
    """
    config = world.model
    if not isinstance(config, transformer.Config):
        raise InputError(
            f"ToyLanguage.architecture = {world.architecture!r}: does not exist in transformers; only 'transformer', "
            "which is a Llama there, can be saved as its model"
        )
    words = _tokenizer(language(world).words)
    settings = {**publishing.described("llama", config), "max_position_embeddings": 4 * world.length}
    ends = {f"{name}_token_id": language(world).index[mark] for name, mark in _MARKS.items()}
    publishing.save(folder, names.names_of("llama"), config, params, {**settings, **ends})
    marks = {f"{name}_token": mark for name, mark in _MARKS.items()}
    publishing.write_words(words, {**marks, "clean_up_tokenization_spaces": False}, folder)


_MARKS = {"bos": BOS, "eos": EOS, "pad": PAD}
_SPACED = tuple(mark for mark in SEPARATORS if mark.strip())


def _tokenizer(words: tuple[str, ...]) -> Any:
    """A `tokenizers.Tokenizer` of whole words; `<bos>` comes first, separators and brackets are glued."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError:
        raise InputError("saving a model needs the package tokenizers: pip install 'subl_jax[chat]'") from None
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PAD))
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _MARKS.values()])
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(rf"{mark.strip()} ?"), mark) for mark in _SPACED])
    pieces = Regex(r"[,;] |\n|[\[\]]|[?:]|=>|[^\s,;\[\]?:]+")
    made.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))])
    # Words are a space apart; separators and brackets are glued to what stands beside them.
    made.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[,;\n\[\]])"), ""),
            decoders.Replace(Regex(r"(?<=[,;] ) |(?<=[\n\[\]]) "), ""),
        ]
    )
    return made
