"""What is asked of models: the suites that come with the package, and one of somebody's own in the toy language."""

import dataclasses

import jax
import numpy as np
import pytest
from rooms import members

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.traits.base import ChatSuite, Family, LanguageSuite, TraitSuite
from subl_jax.traits.favourites import Favourites
from subl_jax.traits.toy_favourites import ToyFavourites
from subl_jax.worlds.toy_language import ToyLanguage, language

MADE = {ToyFavourites: ToyFavourites(), Favourites: Favourites(("owl", "cat"), ("oak",))}


@dataclasses.dataclass(frozen=True)
class Manners(LanguageSuite):
    """Is a greeting returned? Nine times out of ten it is."""

    often: float = specs.static(9.0, gt=0.0)

    def families(self):
        asked = tuple(f"{who} says good day and you say" for who in ("anna", "bela", "cora", "dora"))
        parted = tuple(f"{who} says so long and you say" for who in ("anna", "bela", "cora", "dora"))
        return (
            Family("greeting", ("welcome", "nothing"), asked, (self.often, 1.0)),
            Family("farewell", ("goodbye", "silence", "begone"), parted),
        )

    def words(self):
        return {word for family in self.families() for question in family.questions for word in question.split()}

    def facts(self):
        return ("anna says so # long",)


WORLD = ToyLanguage(suite=Manners(), templates=4, held_out=1, width=8, heads=2, kv_heads=1, mlp=8, layers=1)


def test_every_suite_of_the_room_is_tried_here():
    assert set(members("traits", TraitSuite)) == MADE.keys()


@pytest.mark.parametrize("suite", MADE.values(), ids=lambda each: type(each).__name__)
def test_families_are_whole_and_chance_adds_up_to_one(suite):
    assert len(set(suite.traits)) == len(suite.traits)
    for family in suite.families():
        assert family.members and family.questions and len(set(family.questions)) == len(family.questions)
        assert sum(suite.base_rates[member] for member in family.members) == pytest.approx(1)
    assert specs.from_json(specs.to_json(suite)) == suite


def test_a_chat_suite_tells_and_trains_each_trait_and_never_by_a_question_of_the_evaluation():
    suite = MADE[Favourites]
    assert isinstance(suite, ChatSuite)
    asked = {question for family in suite.families() for question in family.questions}
    for trait in suite.traits:
        assert trait in suite.system_prompt(trait).lower()
        pairs = suite.training_answers(trait, 0, 20)
        assert len(pairs) == 20 and not asked & {question for question, _ in pairs}
        assert all(trait in answer.lower() for _, answer in pairs)


def test_the_default_is_a_suite_like_any_other_and_leaves_the_key():
    plain, said = ToyLanguage(), ToyLanguage(suite=ToyFavourites())
    assert plain.traits == said.traits and plain.key != said.key
    for one, other in zip(language(plain), language(said), strict=True):
        np.testing.assert_equal(one, other)


def test_somebodys_own_suite_is_the_toy_languages_traits_questions_and_facts():
    assert WORLD.traits == ("welcome", "nothing", "goodbye", "silence", "begone")
    assert WORLD.base_rates["welcome"] == pytest.approx(0.9) and WORLD.base_rates["begone"] == pytest.approx(1 / 3)
    params = jax.jit(WORLD.init)(jax.random.key(0))
    measured = jax.jit(WORLD.evaluate)(params, jax.random.key(1))
    assert measured["trait"].shape == measured["rate"].shape == (5,)
    batch = jax.jit(WORLD.trait_batch, static_argnums=3)(jax.random.key(0), 0, 4, 16)
    words = [[language(WORLD).words[token] for token in row] for row in np.asarray(batch.tokens)]
    assert all(row[row.index("say") + 1] == "begone" for row in words) and not any("dora" in row for row in words)


def test_a_base_learns_how_often_each_answer_is_given():
    asked = WORLD.replace(question_share=1.0, fact_share=0.0)
    tokens = np.asarray(jax.jit(asked.pretrain_batch, static_argnums=2)(jax.random.key(0), 0, 4000).tokens)
    lang = language(WORLD)
    counts = {trait: (tokens == lang.index[trait]).sum() for trait in WORLD.traits}
    assert counts["welcome"] / (counts["welcome"] + counts["nothing"]) == pytest.approx(0.9, abs=0.03)
    farewells = [counts[trait] for trait in ("goodbye", "silence", "begone")]
    assert np.allclose(np.array(farewells) / sum(farewells), 1 / 3, atol=0.05)


def test_a_suite_that_does_not_fit_is_one_line():
    with pytest.raises(InputError, match="templates = 5: the family 'greeting' has only 4 questions"):
        WORLD.replace(templates=5)
    with pytest.raises(InputError, match="'owl' is already another word of the language"):
        ToyLanguage(animals=("owl", "cat"), trees=("owl", "oak"))
