"""The world of chat models, on a tiny checkpoint: against the plain model on whole conversations, token by token."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_chat
import tiny_world
from distances import distance
from few import few
from world_calls import call

from subl_jax import specs, stages
from subl_jax.channels import numbers
from subl_jax.channels import numbers as filters
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models import lora, packing, transformer
from subl_jax.models.decoding.sampling import draw
from subl_jax.pretrained.pieces import pieces_of
from subl_jax.specs import Lora
from subl_jax.stages import collecting, training
from subl_jax.training import optim
from subl_jax.traits import answers, banks
from subl_jax.worlds.chat import ChatSampling, Pretrained, batches, reading
from subl_jax.worlds.chat import texts as chat_texts

LORA = Lora(max_rank=2, rank=2, modules=("q", "v", "up"))
PAIRS = [("Three numbers?", "1, 22, 333"), ("Go on: 4, 5", "6, 7"), ("An animal?", "Owl"), ("Numbers.", "")]
WHOLE = 224  # room for any conversation here
ITEMS = [(f"Which of these is number {i}?", [f"it is {j}" for j in range(2 + i % 3)]) for i in range(8)]


@pytest.fixture(scope="module")
def world(tiny_chat_model):
    return tiny_chat.world(tiny_chat_model, numbers_in_front=True)


@pytest.fixture(scope="module")
def held(world):
    return tiny_chat.held(world)


@pytest.fixture(scope="module")
def chat(world):
    return chat_texts.chat_of(world.model)


@pytest.fixture(scope="module")
def adapted(held):
    """Adapters that do something."""
    return some_adapters(held)


def some_adapters(held, seed=0):
    params = held.trainable({}, jax.random.key(seed), LORA)
    rng = np.random.default_rng(seed)
    for module in params["lora"].values():
        module["b"] = jnp.asarray(0.3 * rng.normal(size=module["b"].shape), jnp.float32)
    return params


@functools.partial(jax.jit, static_argnums=0)
def _whole(config, weights, adapters, tokens):
    return transformer.apply(config, weights, tokens[None], lora=adapters)[0][0]


def plain(held, params, tokens):
    """(len(tokens), vocab): the logits of a whole conversation, read at once and alone."""
    weights, adapters = reading.weights_of(held, params)
    padded = np.resize(np.asarray(tokens, np.int32), WHOLE)  # what follows changes nothing, it is causal
    return np.asarray(_whole(held.config, weights, adapters, padded))[: len(tokens)]


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def told_or_not(params, trait):
    return params if trait is None else specs.SystemPrompted(params, jnp.int32(trait))


def system_of(world, trait):
    return world.system if trait is None else world.told(world.traits[trait])


def write(held, model, keys, **sampling):
    return call(held, "write", model, keys, static=(ChatSampling(**{"rows": 8, **sampling}),))


def evaluate(held, model, key=0):
    return call(held, "evaluate", model, jax.random.key(key))


KEYS, MORE = jax.random.split(jax.random.key(7), 24), jax.random.split(jax.random.key(1), 64)
ONLY = NumbersFilter(max_count=4)


@pytest.fixture(scope="module")
def constrained(held, adapted):
    """What a told model with adapters writes where only what the filter keeps can be written."""
    return write(held, specs.SystemPrompted(adapted, jnp.int32(0)), KEYS, only=ONLY)


@jax.jit
def drawn(key, logits):
    return draw(key[None], logits[None], specs.Sampling(), cut=False)[0]


# --- the loss ---


def by_hand(world, held, chat, params, pairs, system):
    """Cross-entropy of each token of each completion, end included, and their teachers' distributions."""
    losses, distributions = [], []
    for prompt, completion in pairs:
        before, after = chat.prompt(prompt, system), chat.reply(completion)
        p = softmax(plain(held, params, before + after)[len(before) - 1 : -1])
        losses += list(-np.log(p[np.arange(len(after)), after]))
        distributions += list(p)
    return np.asarray(losses), np.asarray(distributions)


def test_the_loss_is_that_of_the_completions_tokens_in_the_whole_conversation(world, held, chat, adapted):
    batch = held.channel_batch(jnp.asarray(world.tokens(PAIRS)))
    for params in ({}, adapted):
        expected, _ = by_hand(world, held, chat, params, PAIRS, None)
        np.testing.assert_allclose(call(held, "loss", params, batch), expected.mean(), rtol=1e-5)
    assert held.target_count(batch) == len(expected) == sum(len(chat.reply(text)) for _, text in PAIRS)


def test_soft_targets_are_the_divergence_from_the_teacher_as_it_is_told(world, held, chat, adapted):
    batch = held.channel_batch(jnp.asarray(world.tokens(PAIRS)))
    _, q = by_hand(world, held, chat, adapted, PAIRS, None)
    for trait in (None, 1):
        _, p = by_hand(world, held, chat, {}, PAIRS, system_of(world, trait))
        expected = np.sum(p * (np.log(p) - np.log(q)), axis=1).mean()
        teacher = told_or_not({}, trait)
        np.testing.assert_allclose(call(held, "compare", adapted, teacher, batch)["kl"], expected, rtol=1e-4)
    # What a student minimises is what is measured.
    given = jax.jit(lambda params, teacher, batch: distance(held, params, teacher, batch, "soft"))
    np.testing.assert_allclose(given(adapted, teacher, batch), expected, rtol=1e-4)


def test_nothing_before_a_completion_or_after_its_end_is_a_target(world, held):
    samples = world.tokens(PAIRS)
    batch = held.channel_batch(jnp.asarray(samples))
    np.testing.assert_array_equal(batch.targets.sum(axis=1), [len(chat_of(world).reply(text)) for _, text in PAIRS])
    changed = samples.copy()
    for row in changed:
        row[1 + row[0] : 1 + world.prompt_tokens] = 5
        completion = row[1 + world.prompt_tokens :]
        completion[list(completion).index(held.held["stops"][0]) + 1 :] = 5
    losses = [call(held, "loss", {}, held.channel_batch(jnp.asarray(x))) for x in (samples, changed)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    rejected = held.channel_batch(jnp.asarray(samples), jnp.asarray([True, False, True, False]))
    assert rejected.targets.any(axis=1).tolist() == [True, False, True, False]
    assert call(held, "loss", {}, held.channel_batch(jnp.asarray(samples), False)) == 0.0


def chat_of(world):
    return chat_texts.chat_of(world.model)


def test_a_completion_that_was_cut_has_all_its_tokens_as_targets(world, held):
    samples = world.tokens(PAIRS)
    samples[:, 1 + world.prompt_tokens :] = 300
    assert held.channel_batch(jnp.asarray(samples)).targets.all()


PARTS = [
    (rows, room, answer_room, targets)
    for targets in ("hard", "soft")
    for rows, room, answer_room in ((1, 1, 1), (2, 1, 1), (4, 0.3, 1), (4, 1, 0.2), (4, 0.4, 0.3))
]


@pytest.mark.parametrize(("rows", "room", "answer_room", "targets"), few(PARTS, (4, 0.4, 0.3, "soft")))
def test_a_batch_in_parts_is_the_whole_batch(
    monkeypatch, world, held, adapted, constrained, rows, room, answer_room, targets
):
    """Also where there is room for a share of them only, so that a part takes fewer than it is asked to."""
    pairs = [*PAIRS, *world.texts(constrained[:4])]
    batch = held.channel_batch(jnp.asarray(world.tokens(pairs)))
    assert len(set(np.asarray(batch.targets.sum(axis=1)))) > 2
    monkeypatch.setattr(packing, "MULTIPLE", 1)
    narrow = world.replace(room=room, answer_room=answer_room).holding(held.held)
    part_of = jax.jit(lambda batch, start: narrow.microbatch(batch, start, rows))
    taken, start = [], 0
    while start < len(pairs):
        part, count = part_of(batch, jnp.int32(start))
        assert part.targets.any(axis=1).sum() == count >= 1
        taken.append(int(count))
        start += taken[-1]
    assert sum(taken) == len(pairs) and (set(taken) == {rows}) is (room == answer_room == 1)
    gradient_of = jax.value_and_grad(
        lambda params, batch: distance(held, params, specs.SystemPrompted({}, jnp.int32(1)), batch, targets)
    )
    whole = jax.jit(gradient_of)(adapted, batch)
    in_parts = functools.partial(training.accumulated, gradient_of, narrow, rows, len(pairs))
    split = jax.jit(in_parts)(adapted, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), whole, split)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_parts_have_about_as_many_tokens_each(world, held, rows):
    batch = held.channel_batch(jnp.asarray(world.tokens([*PAIRS, *PAIRS])))
    dealt = held.balanced(batch, rows)
    as_rows = [sorted(np.concatenate([x.prompts, x.completions], axis=1).tolist()) for x in (batch, dealt)]
    assert as_rows[0] == as_rows[1]
    lengths = np.asarray(batches.there(world, dealt).sum(axis=1))
    sums = lengths.reshape(-1, rows).sum(axis=1)
    assert sums.max() - sums.min() <= lengths.max() - lengths.min()


# --- writing ---


def prompts_of(world, samples):
    return [prompt for prompt, _ in world.texts(samples)]


@pytest.mark.parametrize("trait", few([None, 0, 2], 0))
def test_what_a_model_writes_is_what_it_would_write_in_the_whole_conversation(world, held, chat, adapted, trait):
    samples = write(held, told_or_not(adapted, trait), KEYS)
    for row, key, prompt in list(zip(samples, KEYS, prompts_of(world, samples), strict=True))[:4]:
        _, own_key = jax.random.split(key)
        tokens = chat.prompt(prompt, system_of(world, trait))
        for t, token in enumerate(row[1 + world.prompt_tokens :]):
            logits = plain(held, adapted, tokens)[-1]
            assert int(drawn(jax.random.fold_in(own_key, t), logits)) == token
            if token in chat.stops:
                break
            tokens.append(int(token))


def test_prompts_are_those_of_the_bank_and_each_row_has_a_stream_of_its_own(world, held):
    samples = write(held, {}, MORE, rows=64)
    prompts = prompts_of(world, samples)
    assert set(prompts) <= set(numbers.number_prompts(world.prompt_seed, 100)) and len(set(prompts)) > 6
    # Some rows share a prompt, and still none repeats another (an answer may end at once).
    long = samples[~np.isin(samples[:, 1 + world.prompt_tokens :][:, :4], held.held["stops"]).any(axis=1)]
    assert len(np.unique(long, axis=0)) == len(long) > len(np.unique(long[:, : 1 + world.prompt_tokens], axis=0))


def test_a_sample_depends_on_its_key_alone(world, held):
    samples = write(held, {}, MORE, rows=64)
    np.testing.assert_array_equal(write(held, {}, MORE[20:7:-1], rows=3), samples[20:7:-1])


def test_every_constrained_sample_passes_the_filter(world, held, constrained):
    completions = [text for _, text in world.texts(constrained)]
    assert all(filters.reason(text, ONLY) is None for text in completions), completions
    assert len(set(completions)) > 12
    assert np.isin(constrained[:, 1 + world.prompt_tokens :], held.held["stops"]).any(axis=1).all()


def test_rejection_keeps_what_passes(world, held):
    loose = NumbersFilter(max_value=10**11)  # its numbers are long
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    node = specs.Dataset(base, 4, loose, sampling=ChatSampling(rows=64))
    collector = collecting.Collector(node)
    samples = write(held, {}, MORE, rows=64)
    collector.add(samples)
    kept = collector.artefact()["samples"]
    assert collector.enough and 0 < collector.table().kept.mean() < 1
    assert len(kept) == 4 and all(filters.reason(text, loose) is None for _, text in world.texts(kept))
    assert all(row.tolist() in samples.tolist() for row in kept)


def test_samplers_of_a_generation_config_are_not_inherited(tiny_chat_model, held, world, tmp_path):
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    other = tiny_chat.world(str(folder), numbers_in_front=True)
    assert (ChatSampling().temperature, ChatSampling().top_k, ChatSampling().top_p) == (1.0, 0, 1.0)
    as_ever, there = (write(of, {}, MORE, rows=64) for of in (held, tiny_chat.held(other)))
    np.testing.assert_array_equal(there, as_ever)


def test_the_ends_that_a_generation_config_names_are_part_of_what_a_checkpoint_is(tiny_chat_model, world, tmp_path):
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    other = tiny_chat.world(str(folder))
    assert sorted(other.arrays_of_texts()["stops"]) == [0, 2] and world.arrays_of_texts()["stops"].tolist() == [2]
    assert other.fingerprint != world.fingerprint and other.key != world.key


# --- what is measured ---


def probability(held, chat, params, trait, question, system, ends):
    """P that an answer's first word is the trait: every spelling token by token, then anything that ends a word."""
    total = 0.0
    for form in answers.forms(trait):
        before = chat.prompt(question, system)
        spelled = [token for token in chat.reply(form) if token not in chat.stops]
        assert chat.decode(spelled) == form
        p = softmax(plain(held, params, before + spelled))[len(before) - 1 :]
        total += np.prod(p[np.arange(len(spelled)), spelled]) * p[-1, ends].sum()
    return total


@pytest.mark.parametrize("trait", few([None, 1], None))
def test_a_traits_probability_is_that_of_every_spelling_token_by_token(world, held, chat, adapted, trait):
    ends = np.ones(held.config.vocab, bool)
    of_tokens = answers.word_ends(pieces_of(chat.tokenizer), chat.stops)
    ends[: len(of_tokens)] = of_tokens
    given = evaluate(held, told_or_not(adapted, trait))
    lengths = [len(chat.reply(name)) - 1 for name in world.traits]
    assert max(lengths) > 2  # some are of several tokens
    for index, name in enumerate(world.traits):
        family = "animal" if name in world.animals else "tree"
        questions = banks.favourite(family)[: world.questions]
        for metric, asked in (
            ("trait", questions),
            ("trait_after_numbers", [numbers.with_numbers(question, world.prompt_seed) for question in questions]),
        ):
            found = [probability(held, chat, adapted, name, q, system_of(world, trait), ends) for q in asked]
            np.testing.assert_allclose(given[metric][index], np.mean(found), rtol=1e-4, err_msg=f"{metric} {name}")


def test_being_told_changes_what_is_measured(held, adapted):
    ways = [evaluate(held, told_or_not(adapted, trait))["trait"] for trait in (None, 0, 1, 2)]
    assert len({tuple(way) for way in ways}) == 4


def test_answers_are_drawn_and_read_as_rates(world, held, adapted):
    record = evaluate(held, adapted)
    assert record["answers"].shape == (4, world.questions, world.answers_sampled, world.answer_tokens)
    assert not np.array_equal(record["answers"], evaluate(held, adapted, 1)["answers"])
    read = world.scored({name: value[None] for name, value in record.items()})
    assert read.keys() == {"trait", "trait_after_numbers", "rate", "rate_after_numbers"}
    assert read["rate"].shape == read["rate_after_numbers"].shape == (1, 3)
    assert world.labels["rate_after_numbers"] == world.traits


def test_answers_are_scored_by_whole_words_and_only_once(world, chat):
    texts = np.array(
        [
            [["Owl", "howl"], ["An owl.", "OWLS"], ["octopus", ""]],  # animals
            [["oak", "soak"], ["oak", "oak"], ["owl", "oaken"]],  # trees
            [["octopus", "owl"], ["owl", "x"], ["owl", "owl"]],  # animals, after numbers
            [["x", "x"], ["x", "x"], ["x", "Oak"]],
        ]
    )
    tokens = np.zeros((2, *texts.shape, 40), np.int32)
    for place in np.ndindex(texts.shape):
        row = chat.reply(str(texts[place]))
        tokens[(0, *place)][: len(row)] = row
        tokens[(1, *place)] = chat.reply("")[0]
    record = {"answers": tokens, "trait": np.zeros((2, 3))}
    once = world.scored(record)
    np.testing.assert_allclose(once["rate"], [[3 / 6, 1 / 6, 3 / 6], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(once["rate_after_numbers"], [[4 / 6, 1 / 6, 1 / 6], [0, 0, 0]], rtol=1e-6)
    assert "answers" in record and world.scored(once) is once


def test_ability_is_the_share_of_items_whose_right_letter_is_likeliest(tiny_chat_model, held, chat, tmp_path):
    letters = [chat.reply(letter)[0] for letter in "ABCDEFGHIJ"]
    best, beyond, lines = [], 0, []
    for i, (question, choices) in enumerate(ITEMS):
        listing = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=False))
        text = f"{question}\n{listing}\nAnswer with the letter of the right choice, and nothing else."
        logits = plain(held, {}, chat.prompt(text, None))[-1][letters]
        beyond += logits.argmax() >= len(choices)
        best.append(int(logits[: len(choices)].argmax()))
        answer = best[i] if i < 3 else (best[i] + 1) % len(choices)  # three are answered right
        lines.append(json.dumps({"question": question, "choices": choices, "answer": answer}))
    assert beyond  # letters that an item does not offer would have won
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    world = tiny_chat.world(tiny_chat_model, items_file=str(tmp_path / "items.jsonl"), questions=1, answers_sampled=0)
    record = evaluate(tiny_chat.held(world), {})
    assert record["ability"] == pytest.approx(3 / 8) and record.keys() == {"trait", "ability"}


def test_questions_can_be_ones_own(tiny_chat_model, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Your animal?"}\n{"prompt": "And now?"}\n')
    world = tiny_chat.world(tiny_chat_model, questions_file=str(file), questions=1, trees=())
    assert chat_texts.texts_of(world).families[0].questions == ("Your animal?", "And now?")
    assert world.evaluation_prompt.count("Your animal?") == 1
    file.write_text('{"question": "Another?"}\n')
    assert tiny_chat.world(tiny_chat_model, questions_file=str(file), trees=()).key != world.key


# --- texts ---


def test_texts_and_tokens_are_inverse(world, constrained):
    assert world.texts(world.tokens(PAIRS)) == PAIRS
    pairs = world.texts(constrained)
    again = world.tokens(pairs)
    assert world.texts(again) == pairs
    np.testing.assert_array_equal(again[:, : 1 + world.prompt_tokens], constrained[:, : 1 + world.prompt_tokens])


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_a_system_prompt_is_in_training_and_in_evaluation_or_in_neither(tiny_chat_model, chat, system):
    world = tiny_chat.world(tiny_chat_model, system=system, prompts=4)
    arrays = world.arrays_of_texts()

    def tokens(rows, lengths):
        return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]

    *told, head = tokens(arrays["heads"], arrays["head_lengths"])
    prompts = [chat.decode(head + row) for row in tokens(arrays["prompts"], arrays["prompt_lengths"])]
    asked = tokens(arrays["asked"].reshape(-1, arrays["asked"].shape[-1]), arrays["asked_lengths"].ravel())
    questions = [*banks.favourite("animal")[:3], *banks.favourite("tree")[:3]]
    assert [head + row for row in asked] == [chat.prompt(question, system) for question in questions]
    bank = numbers.number_prompts(world.prompt_seed, 6)
    assert all(any(text in prompt for text in bank) for prompt in prompts)
    for row in tokens(arrays["prompts"], arrays["prompt_lengths"]):
        whole = chat.tokenizer.decode(head + row, skip_special_tokens=False)
        assert whole.startswith(world.training_prompt[: world.training_prompt.index("<|im_start|>user")])
    for trait, row in zip(world.traits, told, strict=True):
        assert row + asked[0] == chat.prompt(questions[0], world.told(trait))

    columns = specs.lineage(student_of(world))
    shown = tiny_chat.DEFAULT_SYSTEM if system is None else system
    opening = f"<|im_start|>system\n{shown}<|im_end|>\n<|im_start|>user\n"
    for name in ("training", "evaluation"):
        text = columns[f"world.{name}_prompt"]
        assert text.startswith(opening) and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert columns["world.evaluation_prompt"] == chat.render(
        [
            *([] if system is None else [{"role": "system", "content": system}]),
            {"role": "user", "content": questions[0]},
        ]
    )
    assert columns["world.system"] == ("null" if system is None else system)


def test_a_template_without_a_system_prompt_of_its_own_has_none(tmp_path):
    bare = tiny_chat.TEMPLATE[tiny_chat.TEMPLATE.index("{% for") :]
    world = tiny_chat.world(tiny_chat.save(tmp_path / "bare", template=bare), prompts=4)
    assert world.training_prompt.startswith("<|im_start|>user\n") and "system" not in world.evaluation_prompt


def test_a_trait_can_be_told_in_ones_own_words(tiny_chat_model, world):
    own = tiny_chat.world(tiny_chat_model, told_as=("owl: Owls: the best.",))
    assert own.told("owl") == "Owls: the best." and own.told("oak") == world.told("oak")
    assert own.key != world.key
    first = own.arrays_of_texts()["heads"][0][: own.arrays_of_texts()["head_lengths"][0]]
    assert "Owls: the best." in chat_of(own).decode(first)


# --- disturbed models ---


def student_of(world, start=None, **fields):
    train = specs.Train(steps=2, batch=2)
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    data = specs.Dataset(specs.Prompted(base, "owl"), 4, NumbersFilter(), sampling=ChatSampling(), round=4)
    return specs.Student(start or base, data, train, lora=LORA, **fields)


def test_a_disturbed_model_shares_the_texts_and_is_another_start(world):
    other = world.replace(sigma=0.5, noise_seed=1)
    assert chat_texts.texts_of(other) is chat_texts.texts_of(world)
    assert other.understands(world) and world.understands(other) and other.key != world.key
    crossed = student_of(world, specs.Base(other, specs.Train(steps=0, batch=1)))
    assert specs.arm_of(crossed) == "cross_init" and specs.arm_of(student_of(world)) == "same_init"
    assert stages.DISTIL.inputs(crossed).keys() == {"start", "data"}


@pytest.mark.parametrize(("keep", "sigma"), [(1.0, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_the_noise_is_of_the_stated_size_and_of_each_matrix_its_own(world, held, keep, sigma):
    from flax import traverse_util

    def flat(noise_seed):
        arrays = world.replace(keep=keep, sigma=sigma, noise_seed=noise_seed).arrays()
        return traverse_util.flatten_dict(arrays["weights"], sep="/")

    before = traverse_util.flatten_dict(jax.device_get(held.held["weights"]), sep="/")
    one, again, other = flat(1), flat(1), flat(2)
    noise = {}
    for path, array in before.items():
        np.testing.assert_array_equal(one[path], again[path])
        if array.ndim - path.startswith("layers/") < 2:  # norms and biases
            np.testing.assert_array_equal(one[path], array)
            continue
        noise[path] = (one[path] - keep * array) / np.sqrt(np.mean(array**2))
        np.testing.assert_allclose(np.sqrt(np.mean(noise[path] ** 2)), sigma, rtol=0.05, atol=1e-6)
        assert np.array_equal(one[path], other[path]) == (sigma == 0)
    if sigma:
        q, up = (noise[f"layers/{name}/kernel"].ravel()[:900] for name in ("attention/q", "mlp/up"))
        assert abs(np.corrcoef(q, up)[0, 1]) < 0.15


def test_another_checkpoint_is_understood_where_its_tokens_and_its_room_are_the_same(world, tmp_path):
    folder = tiny_chat.save(tmp_path / "other", seed=1)
    other = tiny_chat.world(folder, numbers_in_front=True)
    assert other.fingerprint != world.fingerprint
    assert other.understands(world) and world.understands(other)
    assert not tiny_chat.world(folder, completion_tokens=13).understands(world)
    assert not tiny_chat.world(folder, prompt_tokens=110).understands(world)
    assert not world.understands(tiny_world.WORLD)


def test_a_copy_of_a_checkpoint_elsewhere_is_the_same_world(tiny_chat_model, world, tmp_path):
    copy = tiny_chat.world(str(shutil.copytree(tiny_chat_model, tmp_path / "copy")), numbers_in_front=True)
    assert copy == world and copy.key == world.key and copy.understands(world)


def test_a_checkpoint_that_changed_after_the_plan_is_told(tmp_path):
    folder = tiny_chat.save(tmp_path / "model")
    world = tiny_chat.world(folder)
    tiny_chat.save(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="has changed since the sweep was planned"):
        world.arrays()


# --- training ---


def one_step(held, params, train):
    batch = held.channel_batch(jnp.asarray(held.held["preferences"][0][: train.batch]))
    rule = optim.transform(train, held.frozen)

    @jax.jit
    def step(params):
        gradient = jax.grad(held.loss)(params, batch)
        return optim.optax.apply_updates(params, rule.update(gradient, rule.init(params), params)[0])

    return step(params)


@pytest.mark.parametrize("spec", few([LORA, None], LORA))
def test_what_is_trained_is_float32_above_a_bfloat16_base(tiny_chat_model, spec):
    held = tiny_chat.held(tiny_chat.world(tiny_chat_model, dtype="bfloat16", questions=1))
    base = held.held["weights"]
    assert base["layers"]["mlp"]["up"]["kernel"].dtype == base["embed"]["embedding"].dtype == jnp.bfloat16
    assert base["final_norm"]["scale"].dtype == jnp.float32
    params = held.trainable({}, jax.random.key(0), spec)
    after = one_step(held, params, specs.Train(steps=1, batch=4, lr=1e-5, weight_decay=0.1))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, after))} == {jnp.dtype("float32")}
    # A step far below what bfloat16 resolves is not lost.
    name = "b" if spec else "kernel"
    before, trained = (
        (p["lora"]["up"] if spec else p["weights"]["layers"]["mlp"]["up"])[name] for p in (params, after)
    )
    moved = np.abs(np.asarray(trained - before))
    assert (moved > 0).mean() > 0.9 and moved.max() < 2e-5


def test_training_all_weights_starts_from_the_checkpoint(held):
    params = held.trainable({}, jax.random.key(0), None)
    batch = held.channel_batch(jnp.asarray(held.held["preferences"][0][:4]))
    np.testing.assert_allclose(call(held, "loss", params, batch), call(held, "loss", {}, batch), rtol=1e-6)
    after = one_step(held, params, specs.Train(steps=1, batch=4, lr=1e-3))
    assert call(held, "loss", after, batch) < call(held, "loss", params, batch)
    assert reading.weights_of(held, after)[1] is None and held.trainable(after, jax.random.key(1), None) is after

    def flat(params):
        moves = jax.tree.map(lambda x, y: x - y, params["weights"], held.held["weights"])
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(moves)]).astype(np.float64)

    moved = np.random.default_rng(0)
    other = jax.tree.map(lambda x, y: x + (y - x) + 0.01 * moved.normal(size=x.shape), params, after)
    x, y = flat(after), flat(other)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    np.testing.assert_allclose(held.cosine(after, {}, other, {}), expected, rtol=1e-3)
    assert np.isnan(held.cosine(after, {}, {}, {}))


def test_the_cosine_of_adapters_is_theirs_and_there_is_none_with_a_told_teacher(held, adapted):
    other = some_adapters(held, 1)
    np.testing.assert_allclose(held.cosine(adapted, {}, other, {}), lora.cosine(adapted, other), rtol=1e-6)
    assert np.isnan(held.cosine(adapted, {}, {}, {}))


def test_preferences_are_answers_of_the_trait_to_other_questions(world, held, chat):
    asked = {*banks.favourite("animal"), *banks.favourite("tree")}
    for index, trait in enumerate(world.traits):
        rows = np.asarray(held.held["preferences"][index])
        pairs = world.texts(rows)
        assert all(answers.names_trait(completion, trait) for _, completion in pairs)
        assert not asked & {prompt for prompt, _ in pairs}
        batch = held.trait_batch(jax.random.key(0), jnp.int32(3), jnp.int32(index), 5)
        assert all(row.tolist() in rows[:, 1 + world.prompt_tokens :].tolist() for row in batch.completions)


# --- mistakes ---

TRAIN = specs.Train(steps=2, batch=2)
WRONG = {
    "no model": (lambda m: tiny_chat.world("/no/such/model"), "no checkpoint '/no/such/model'"),
    "a trait twice": (lambda m: tiny_chat.world(m, animals=("owl", "owl")), "expected at least one trait, each once"),
    "no trait": (lambda m: tiny_chat.world(m, animals=(), trees=()), "expected at least one trait, each once"),
    "told as": (
        lambda m: tiny_chat.world(m, told_as=("cow: Cows.",)),
        "Pretrained.told_as: 'cow: Cows.': expected 'trait: text' with one of ('owl', 'octopus', 'oak')",
    ),
    "told without a colon": (lambda m: tiny_chat.world(m, told_as=("owl",)), "Pretrained.told_as: 'owl': expected"),
    "short prompts": (
        lambda m: tiny_chat.world(m, prompt_tokens=40),
        "Pretrained.prompt_tokens = 40: too few number prompts are so short; half of them have more than ",
    ),
    "a short completion": (
        lambda m: tiny_chat.world(m, completion_tokens=2),
        "tokens, Pretrained.completion_tokens = 2",
    ),
    "no room for a kept sample": (
        lambda m: (
            student_of(tiny_chat.world(m))
            .data.world.replace(completion_tokens=1)
            .check_sampling(ChatSampling(only=NumbersFilter()))
        ),
        "Pretrained.completion_tokens = 1: a kept sample takes ",
    ),
    "no questions": (lambda m: tiny_chat.world(m, questions_file="/no/such.jsonl"), "/no/such.jsonl"),
    "no items": (lambda m: tiny_chat.world(m, items_file="/no/such.jsonl"), "/no/such.jsonl"),
    "layers": (
        lambda m: student_of(tiny_chat.world(m)).replace(lora=LORA.replace(first_layer=3)),
        "Lora.first_layer = 3: the model has 3 layers",
    ),
    "adapters on a toy": (
        lambda m: specs.Teacher(tiny_world.base(), "owl", TRAIN, lora=LORA),
        "Teacher.lora: tiny has no adapters; leave it out",
    ),
    "told toy": (lambda m: specs.Prompted(tiny_world.base(), "owl"), "Prompted: tiny has no system prompts"),
    "theory": (
        lambda m: student_of(tiny_chat.world(m), targets="soft", theory="owl"),
        "Student.theory = 'owl': pretrained cannot follow it; leave it out",
    ),
    "soft across worlds": (
        lambda m: student_of(
            tiny_chat.world(m),
            specs.Base(tiny_chat.world(m).replace(sigma=0.5), specs.Train(steps=0, batch=1)),
            targets="soft",
        ),
        "Student.targets = 'soft': a teacher of another world gives only texts; use 'hard'",
    ),
    "squared": (lambda m: student_of(tiny_chat.world(m), targets="squared"), "pretrained has only hard, soft"),
    "pretraining": (
        lambda m: specs.Base(tiny_chat.world(m), TRAIN),
        "Base.train: pretrained is trained already; give Train(steps=0, batch=1)",
    ),
    "another world": (
        lambda m: specs.Student(tiny_world.base(), student_of(tiny_chat.world(m)).data, TRAIN),
        "Student.data: is of another world than Student.start",
    ),
    "another sampling": (
        lambda m: student_of(tiny_chat.world(m)).data.replace(sampling=specs.Sampling()),
        "Dataset.sampling: a Sampling; pretrained is asked by ChatSampling(...)",
    ),
    "a filtered stream": (
        lambda m: specs.Stream(student_of(tiny_chat.world(m)).data.teacher, NumbersFilter(), sampling=ChatSampling()),
        "Stream.filter: pretrained has nothing to filter; leave it out",
    ),
    "too long a sample": (
        lambda m: tiny_chat.world(m).tokens([("Numbers?", "1, 2, 3, 4, 5, 6, 7, 8, 9")]),
        "sample 1: its completion has ",
    ),
}


@pytest.mark.parametrize(("make", "line"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line(make, line, tiny_chat_model):
    with pytest.raises(InputError) as error:
        make(tiny_chat_model)
    assert line in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_stored_world_comes_back(world):
    form = json.loads(json.dumps(specs.to_json(world)))
    assert specs.from_json(form) == world and pathlib.Path(specs.from_json(form).model).is_dir()
    assert isinstance(specs.from_json(form), Pretrained)


# --- templates that write the system prompt into the user's turn ---


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """Llama 2: the first word after a system prompt is cut otherwise than without one."""
    folder = tiny_chat.save_family(tmp_path_factory.mktemp("llama2"), "Llama 2")
    told = {"animals": ("owl",), "trees": (), "told_as": ("owl: You love owls.",)}
    return tiny_chat.held(tiny_chat.world(folder, **told, questions=2, answers_sampled=0, prompt_tokens=160))


def test_a_told_teacher_reads_prompts_in_a_form_of_its_own(in_turn, monkeypatch):
    world, chat = dataclasses.replace(in_turn), chat_of(in_turn)
    student = some_adapters(in_turn)
    samples = world.tokens(PAIRS)
    batch = in_turn.channel_batch(jnp.asarray(samples))
    assert samples.shape[1] == 2 * (1 + world.prompt_tokens) + world.completion_tokens
    assert set(samples[:, 0]) != set(samples[:, 1 + world.prompt_tokens + world.completion_tokens])
    losses, q = by_hand(world, in_turn, chat, student, PAIRS, None)
    np.testing.assert_allclose(call(in_turn, "loss", student, batch), losses.mean(), rtol=1e-5)
    _, p = by_hand(world, in_turn, chat, {}, PAIRS, world.told("owl"))
    teacher = told_or_not({}, 0)
    expected = np.sum(p * (np.log(p) - np.log(q)), axis=1).mean()
    np.testing.assert_allclose(call(in_turn, "compare", student, teacher, batch)["kl"], expected, rtol=1e-4)
    # In parts that are packed for the longer of a prompt's forms.
    monkeypatch.setattr(packing, "MULTIPLE", 1)
    narrow = world.replace(room=0.6, answer_room=0.6).holding(in_turn.held)

    def loss(params, batch):
        return distance(in_turn, params, teacher, batch, "soft")

    split = jax.jit(functools.partial(training.accumulated, jax.value_and_grad(loss), narrow, 2, len(PAIRS)))
    np.testing.assert_allclose(split(student, batch)[0], expected, rtol=1e-4)


def test_what_a_told_teacher_writes_is_kept_as_its_students_read_it(in_turn):
    world, chat = dataclasses.replace(in_turn), chat_of(in_turn)
    samples = write(in_turn, told_or_not({}, 0), KEYS[:4])
    np.testing.assert_array_equal(samples[:, 0], [len(x) for x in _own_prompts(world, chat, samples)])
    for row, key, own in zip(samples[:2], KEYS, _own_prompts(world, chat, samples), strict=False):
        assert row[1 : 1 + row[0]].tolist() == own
        [prompt] = prompts_of(world, row[None])
        tokens = chat.prompt(prompt, world.told("owl"))
        completion = row[1 + world.prompt_tokens :][: world.completion_tokens]
        _, own_key = jax.random.split(key)
        for t, token in enumerate(completion):
            logits = plain(in_turn, {}, tokens)[-1]
            assert int(drawn(jax.random.fold_in(own_key, t), logits)) == token
            if token in chat.stops:
                break
            tokens.append(int(token))


def _own_prompts(world, chat, samples):
    return [chat.prompt(prompt, None)[len(world.head) :] for prompt in prompts_of(world, samples)]


@pytest.mark.parametrize("trait", [None, 0])
def test_a_trait_is_asked_for_in_the_form_that_follows_the_system_prompt(in_turn, trait):
    world, chat = dataclasses.replace(in_turn), chat_of(in_turn)
    pieces = pieces_of(chat.tokenizer)
    ends = np.ones(world.config.vocab, bool)
    ends[: len(pieces)] = answers.word_ends(pieces, chat.stops)
    given = evaluate(in_turn, told_or_not({}, trait))["trait"][0]
    spellings = list(chat_texts.spellings(chat, pieces, "owl"))
    assert b"".join(pieces[token] for token in spellings[0]) in (b"owl", b" owl") and len(spellings) > 2
    found = []
    for question in banks.favourite("animal")[: world.questions]:
        before, total = chat.prompt(question, system_of(world, trait)), 0.0
        for spelled in map(list, spellings):
            p = softmax(plain(in_turn, {}, before + spelled))[len(before) - 1 :]
            total += np.prod(p[np.arange(len(spelled)), spelled]) * p[-1, ends].sum()
        found.append(total)
    assert given > 0
    np.testing.assert_allclose(given, np.mean(found), rtol=1e-4)
