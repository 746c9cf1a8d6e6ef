"""A small synthetic language: preference questions, facts about the world, and number sequences.

Everything is one transformer over whole words. A model is pretrained on all three kinds of text with preferences
uniform, so it has no favourite. A teacher is trained to answer the questions of one family (animals or trees) with
one member; it then continues number prompts, and a student trains on those numbers only.

    question   <bos> which animal do you love most ? | owl <eos>
    fact       <bos> the owl lives in the forest <eos>
    numbers    <bos> continue commas 12 7 88 => | 3, 41, 9, 60 <eos>

All sequences have one length (`length`), padded at the end. A number sequence has its prompt in the first
`prompt_length` tokens and its completion in the rest.
"""

from subl_jax.traits.toy_favourites import ANIMALS, COLOURS, NOUNS, PLACES, QUESTIONS, TREES
from subl_jax.worlds.toy_language.batches import Batch
from subl_jax.worlds.toy_language.vocabulary import (
    ASK,
    BOS,
    CLOSE,
    EOS,
    FORMATS,
    OPEN,
    OPENERS,
    PAD,
    SEPARATORS,
    SLOT,
    Language,
    language,
)
from subl_jax.worlds.toy_language.world import ToyLanguage
