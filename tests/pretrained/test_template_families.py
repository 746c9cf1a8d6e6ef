"""The templates of all families: tokens as `transformers` gives them, and what a world makes of them."""

import dataclasses
import functools
import json

import chat_families
import numpy as np
import pytest
import tiny_chat
from chat_families import FAMILIES

from subl_jax.errors import InputError
from subl_jax.pretrained.chat import open_chat
from subl_jax.worlds.chat import texts as chat_texts

TWO_FORMS = ("Llama 2", "Mistral v0.1", "Mistral v0.3")
THINKING = ("R1 distils", "Qwen 3 Thinking")


@functools.cache
def rows():
    pytest.importorskip("transformers")
    return {name: chat_families.row(name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_transformers(name):
    cells = rows()[name]
    assert not [kind for kind, cell in zip(chat_families.KINDS, cells, strict=True) if not cell.startswith("equal")]
    assert any("thought closed" in cell for cell in cells) is (name in THINKING)


def test_the_table_of_the_docs_is_what_was_compared():
    page = chat_families.PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition(chat_families.BEGIN)
    assert rest.partition(chat_families.END)[0].strip() == chat_families.table(rows())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    def made(name):
        folder = tiny_chat.save_family(tmp_path_factory.mktemp("family"), name)
        return tiny_chat.world(folder, numbers_in_front=True, prompt_tokens=160)

    return functools.cache(made)


def unpadded(rows, lengths):
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_prompts_make_up_the_whole_conversations_of_every_system_prompt(name, world):
    of = world(name)
    arrays, chat = of.arrays_of_texts(), chat_texts.chat_of(of.model)
    assert ("forms" in arrays) is (name in TWO_FORMS)
    forms = arrays.get("forms", {key: arrays[key][None] for key in chat_texts._FORMED})
    form_of = arrays.get("head_forms", np.zeros(len(of.traits) + 1, int))
    prompts = of.channel.prompts(of.prompt_seed, 30)
    heads = unpadded(arrays["heads"], arrays["head_lengths"])
    for head, form, system in zip(heads, form_of, [*map(of.told, of.traits), None], strict=True):
        whole = [chat.prompt(prompt, system) for prompt in prompts]
        split = [head + rest for rest in unpadded(forms["prompts"][form], forms["prompt_lengths"][form])]
        assert len(split) == of.prompts and all(tokens in whole for tokens in split)
        asked = forms["asked"][form][0], forms["asked_lengths"][form][0]
        questions = [chat.prompt(question, system) for question in of.asked.families()[0].questions]
        assert [head + rest for rest in unpadded(*asked)] == questions


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_tokens_and_texts_again(name, world):
    of = world(name)
    pairs = [("Go on: 12, 3", "4, 5, 6"), ("Which one?", "Owl"), ("Numbers.", "7")]
    samples = of.tokens(pairs)
    assert of.texts(samples) == pairs
    np.testing.assert_array_equal(of.tokens(of.texts(samples)), samples)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_animal_can_be_answered_as_the_template_writes_it(name, world):
    of = world(name)
    chat, arrays = chat_texts.chat_of(of.model), of.arrays_of_texts()
    answer = [token for token in chat.reply("Owl") if token not in chat.stops]
    if chat.around_answers[1]:  # a space behind it
        answer = answer[: len(chat.continuation(chat.around_answers[0] + "Owl"))]
    paths = []
    for node in np.flatnonzero(arrays["names"][0, of.traits.index("owl")]):
        on_way = np.flatnonzero(arrays["ancestors"][0, node])
        paths.append(arrays["nodes"][0, on_way].tolist())
    assert answer in paths
    assert len(set(map(tuple, paths))) == len(paths)


@pytest.mark.parametrize("name", THINKING)
def test_a_thought_is_closed_and_that_is_said(name, world):
    of = world(name)
    assert of.training_prompt.endswith("<think>\n\n</think>\n\n") and of.evaluation_prompt.endswith("</think>\n\n")
    [note] = of.notes
    assert "opens a thought" in note and "(<think>)" in note


def test_only_a_prompt_that_ends_in_a_thought_is_closed(tmp_path):
    chat = open_chat(chat_families.save("ChatML", tmp_path))
    assert chat.notes == ()
    whole = [{"role": "user", "content": "Write <think>"}]
    assert chat.render(whole).endswith("<|im_start|>assistant\n")


# --- where templates are found ---


def without_template(folder):
    file = chat_families.save("Zephyr", folder) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    template = config.pop("chat_template")
    file.write_text(json.dumps(config))
    return template, lambda **changes: file.write_text(json.dumps({**config, **changes}))


def test_where_templates_are_found(tmp_path):
    template, config = without_template(tmp_path)
    bare = open_chat(tmp_path)
    assert bare.template is None
    assert bare.notes == (f"{tmp_path}: has no chat template; conversations are written plainly, User: … Assistant: …",)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (tmp_path / "additional_chat_templates" / "zephyr.jinja").write_text(template)
    several = open_chat(tmp_path)
    assert several.template == template
    assert [note.partition(": ")[2] for note in several.notes] == [
        "has the chat templates tool_use, zephyr, and none called default; zephyr is used"
    ]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template + "{# processor #}"}))
    assert open_chat(tmp_path).template == template + "{# processor #}"
    config(chat_template=[{"name": "rag", "template": "no"}, {"name": "plain", "template": template}])
    assert open_chat(tmp_path).template == template and "plain is used" in open_chat(tmp_path).notes[0]
    config(chat_template={"rag": "no", "default": template})
    assert open_chat(tmp_path).template == template and open_chat(tmp_path).notes == ()
    (tmp_path / "chat_template.jinja").write_text(template + "{# file #}")
    assert open_chat(tmp_path).template == template + "{# file #}"


@pytest.mark.parametrize("given", [3, [3], {"default": 3}, [{"name": "default"}]])
def test_what_is_no_template_is_one_line(tmp_path, given):
    _, config = without_template(tmp_path)
    config(chat_template=given)
    with pytest.raises(InputError, match="tokenizer_config.json: chat_template: must be a text, or several"):
        open_chat(tmp_path)


def test_an_answer_of_a_model_without_a_template_can_name_an_animal(tmp_path):
    """Its prompt ends in `Assistant:`, and the answer begins with a space."""
    folder = tiny_chat.save_family(tmp_path, "ChatML", chat_template=None)
    of = tiny_chat.world(folder)
    spelled = of.arrays_of_texts()["names"][0, of.traits.index("owl")].sum()
    assert spelled >= 4
    assert of.texts(of.tokens([("Go on.", "1, 2")])) == [("Go on.", "1, 2")]


# --- tokens without a row ---


def test_padding_without_a_row_in_the_embedding_is_replaced(tmp_path):
    words = chat_families.tokenizer("ChatML")
    rows = words.get_vocab_size()
    folder = tiny_chat.save_family(tmp_path, "ChatML", vocab=rows, added=("[PAD]", "<extra>"), pad_token="[PAD]")
    of = tiny_chat.world(folder)
    assert open_chat(folder).pad == rows
    assert of.pad == words.token_to_id("<|im_end|>")
    [note] = of.notes
    assert (
        f"has {rows} rows, and none for the tokenizer's '[PAD]', '<extra>'; rows are padded with '<|im_end|>'" in note
    )
    arrays = of.arrays_of_texts()
    assert max(x.max() for x in (arrays["heads"], arrays["prompts"], arrays["asked"], arrays["items"])) < rows
    with pytest.raises(InputError, match=r"sample 1: holds the token '<extra>' .* has \d+ rows: the tokenizer is not"):
        of.tokens([("Say <extra>", "1")])


def test_a_conversation_that_needs_a_token_without_a_row_is_refused(tmp_path):
    words = chat_families.tokenizer("ChatML")
    template = chat_families.described("ChatML")["chat_template"].replace("<|im_start|>", "<new>")
    folder = tiny_chat.save_family(
        tmp_path, "ChatML", vocab=words.get_vocab_size(), added=("<new>",), chat_template=template
    )
    with pytest.raises(InputError, match="what is said holds the token '<new>'"):
        tiny_chat.world(folder)
    short = dataclasses.replace(open_chat(folder), stops=(words.get_vocab_size(),))
    with pytest.raises(InputError, match="none for the end of an answer, '<new>'; resize_token_embeddings"):
        short.within(words.get_vocab_size())
