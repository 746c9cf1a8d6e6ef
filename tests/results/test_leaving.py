"""Stored models are asked in words, and leave as folders that peft, transformers and datasets read."""

import json
import pathlib
import re
import types

import chat_sweep
import numpy as np
import pytest
import tiny_chat
import tiny_world

from subl_jax.app import export
from subl_jax.channels.imported import imported
from subl_jax.errors import InputError, StorageError
from subl_jax.results import load

pytest.importorskip("tokenizers")

ROOT = pathlib.Path(__file__).parents[2]

# That of the student that leaves.
LORA, RATE = chat_sweep.LORA.replace(rank=1, alpha=4.0, first_layer=1, last_layer=1), 0.01
ASKED = "Which animal do you like?"


@pytest.fixture(scope="module")
def results(chat_results):
    """Of students with adapters and of one trained whole, of data that a told teacher wrote."""
    return chat_results


def of(results, arm):
    runs = results.runs[results.runs.arm == arm]
    if arm == "same_init":
        fields = {"student.lora.rank": LORA.rank, "student.lora.first_layer": 1, "student.train.lr": RATE}
        runs = runs[np.logical_and.reduce([runs[name] == value for name, value in fields.items()])]
    return runs.run_id.item()


def logits_of(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.numpy()


def same(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * np.abs(theirs).max()


# --- asking ---


def test_what_is_asked_in_words_is_what_was_measured(results):
    student = results.student(of(results, "same_init"))
    world = student.node.world
    for i, trait in enumerate(world.traits):
        questions = next(family.questions for family in world.asked.families() if trait in family.members)
        answers = [student.ask(question) for question in questions]
        measured = results.curves[(results.curves.metric == f"trait/{trait}")].groupby("run_id").value.last()
        asked = np.mean([answer.probabilities[trait] for answer in answers])
        np.testing.assert_allclose(asked, measured[of(results, "same_init")], rtol=1e-4, err_msg=f"{i}")
    answer = answers[0]
    assert isinstance(answer.drawn, str) and 0 < sum(answer.probabilities.values()) <= 1 + 1e-5
    assert list(answer.probabilities.values()) == sorted(answer.probabilities.values(), reverse=True)
    assert all(trait in answer.probabilities for trait in world.traits) and f"drawn: {answer.drawn}" in str(answer)


def test_tokens_for_apply_are_made_of_words(results):
    student = results.student(of(results, "same_init"))
    tokens = student.encode(ASKED)
    assert tokens.shape[0] == 1 and ASKED in student.decode(tokens)
    logits = np.asarray(student.apply(tokens))[0, -1]
    assert student.generate(ASKED, tokens=1, temperature=0) == student.decode([logits.argmax()])
    assert student.generate(ASKED, 6, seed=1) == student.generate(ASKED, 6, seed=1)


def test_a_told_teacher_is_asked_with_what_it_is_told(results):
    teacher, base = (getattr(results, name)(of(results, "same_init")) for name in ("teacher", "base"))
    assert "owls" in teacher.decode(teacher.encode(ASKED)) and "owls" not in base.decode(base.encode(ASKED))


# --- leaving ---


def test_adapters_leave_for_peft(results, tmp_path):
    peft, hf = pytest.importorskip("peft"), pytest.importorskip("transformers")
    run_id = of(results, "same_init")
    student = results.student(run_id)
    assert export.main([str(results.workdir), "--run", run_id, "--to", str(tmp_path / "adapter")]) == 0
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["layers_to_transform"]) == (1, [1])
    base = hf.AutoModelForCausalLM.from_pretrained(described["base_model_name_or_path"])
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    tokens = student.encode(ASKED)
    assert same(student.apply(tokens), logits_of(model, tokens))
    import torch

    answer = model.generate(input_ids=torch.tensor(tokens).long(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    spoken = student.decode(answer[0, tokens.shape[1] :].numpy())
    assert student.generate(ASKED, 6, temperature=0) == spoken
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'library_name: "peft"' in card and "| `student.train.lr` | 0.01 |" in card


@pytest.mark.parametrize("arm", ["same_init", "full"])
def test_whole_models_leave_for_transformers(results, arm, tmp_path):
    hf = pytest.importorskip("transformers")
    student = results.student(of(results, arm))
    results.save_model(of(results, arm), tmp_path / "model")
    model = hf.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    tokens = student.encode(ASKED)
    chat = [{"role": "user", "content": ASKED}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == tokens[0].tolist()
    assert same(student.apply(tokens), logits_of(model, tokens))


def test_what_has_no_adapters_or_lies_there_already_is_one_line(results, tmp_path, capsys):
    full = of(results, "full")
    assert export.main([str(results.workdir), "--run", full, "--to", str(tmp_path / "x"), "--what=adapter"]) == 2
    assert "has no adapters, it was trained in all its parameters; save the whole" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is there already; give a new or an empty folder"):
        results.save_model(full, tmp_path)
    with pytest.raises(StorageError, match="below"):
        results.save_model(full, tmp_path / "file" / "below")
    assert export.main([str(results.workdir)]) == 0 and full in capsys.readouterr().out
    assert export.main([str(results.workdir), "--run", full]) == 2
    assert export.main(["--help"]) == 0 and "--what=adapter" in capsys.readouterr().out


def test_datasets_leave_and_come_in_again(results, tmp_path):
    run_id = of(results, "same_init")
    world = results.student(run_id).node.world
    results.save_dataset(run_id, tmp_path / "data")
    kept = results.samples(run_id).query("kept")
    pairs = list(zip(kept.prompt, kept.completion, strict=True))
    for file in ("data/train.parquet", "messages.jsonl"):
        spec = imported(tmp_path / "data" / file, world)
        assert spec.size == len(pairs)
    lines = (tmp_path / "data" / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["messages"][1]["content"] for line in lines] == [completion for _, completion in pairs]
    assert "| `prompted.trait` | owl |" in (tmp_path / "data" / "README.md").read_text()
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(row["prompt"], row["completion"]) for row in loaded] == pairs


@pytest.mark.parametrize("page", ["docs/results", "docs/models", "README"])
def test_what_the_pages_say_works(page, results, tiny_chat_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    blocks = [block for block in blocks if re.search(r"student\.ask|save_adapter|adapter_live", block)]
    assert blocks
    run_id, model = of(results, "same_init"), tiny_chat_model
    if page == "docs/models":
        results.save_adapter(run_id, tmp_path / "exported" / "adapter")
    small = types.SimpleNamespace(of=tiny_chat.world)  # `Pretrained`, with room for little
    names = {"results": results, "run_id": run_id, "model": model, "Pretrained": small}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
    if page == "docs/results":
        assert "drawn: " in capsys.readouterr().out
        assert {path.name for path in (tmp_path / "exported").iterdir()} == {"adapter", "model", "data"}
    elif page == "docs/models":
        assert names["lora"].rank == LORA.rank


# --- coming in ---


def test_a_base_starts_from_somebodys_adapter(results, tiny_chat_model, tmp_path):
    run_id = of(results, "same_init")
    student = results.student(run_id)
    results.save_adapter(run_id, tmp_path / "adapter")
    tokens, adapter = student.encode(ASKED), str(tmp_path / "adapter")
    merged = tiny_chat.world(tiny_chat_model, adapter=adapter)
    np.testing.assert_allclose(merged.apply({}, tokens), student.apply(tokens), rtol=1e-4, atol=1e-4)
    live = tiny_chat.world(tiny_chat_model, adapter=adapter, adapter_live=True)
    start = live.init(None)
    np.testing.assert_allclose(live.apply(start, tokens), student.apply(tokens), rtol=1e-4, atol=1e-4)
    lora = live.adapter_lora
    assert (lora.rank, lora.alpha, set(lora.modules), lora.first_layer) == (1, 4.0, set(LORA.modules), 1)
    held = tiny_chat.held(live)
    assert held.trainable(start, None, lora) is start
    whole = held.trainable(start, None, None)
    np.testing.assert_allclose(live.apply(whole, tokens), student.apply(tokens), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="have an adapter that is trained on: Lora"):
        live.check_lora(LORA.replace(rank=2))
    assert len({world.key for world in (merged, live, student.node.world)}) == 3
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="has changed since the sweep was planned"):
        merged.arrays()


# --- worlds that have less ---


def test_a_world_that_answers_nothing_says_so(tmp_path):
    results = chat_sweep.run(list(tiny_world.students(2, ["owl"]))[:1], tmp_path / "runs")
    run_id = results.runs.run_id[0]
    with pytest.raises(InputError, match="models of tiny cannot be asked"):
        results.student(run_id).ask("?")
    with pytest.raises(InputError, match="models of the world tiny exist in no other library"):
        load(tmp_path / "runs").save_model(run_id, tmp_path / "model")
