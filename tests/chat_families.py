"""Chat templates of the families people use, in layouts of our own making, with tiny tokenizers of the same kinds.

`python tests/chat_families.py` writes the table of docs/models.md: are our tokens those of `transformers`?
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from subl_jax.channels import numbers
from subl_jax.pretrained.chat import Chat, open_chat
from subl_jax.traits import banks

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def _texts() -> list[str]:
    return [
        *banks.favourite("animal"),
        *banks.favourite("tree"),
        *numbers.number_prompts(0, 100),
        *(banks.system_prompt(trait, "animal") for trait in ("owl", "cat")),
        *["Owl owl Cat cat Oak oak\nOwl\nowl\nCat\ncat\nOak\noak 12 345 6"] * 100,
        "[INST] [/INST] <<SYS>> <</SYS>> system user assistant model <think>\n\n</think>\n\n Be brief.",
    ]


def _sentencepiece(special: tuple[str, ...], prefix: str, vocab: int) -> tokenizers.Tokenizer:
    """prefix: `everywhere` (a space before every stretch of text, as Llama 2), `first` (of a text only), `never`."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=True)
    names = list(dict.fromkeys(["<unk>", "<s>", "</s>", *special, *BYTES, "▁", "\n"]))
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=names, show_progress=False)
    # Line by line: no token holds the end of one, as in SentencePiece.
    lines = [line for text in _texts() if text.isascii() for line in text.split("\n")]
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "everywhere":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        made.normalizer = normalizers.Replace(" ", "▁")
    if prefix != "never":
        decoding.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(decoding)
    made.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", *special)])
    return made


def _byte_level(special: tuple[str, ...], split: str, vocab: int) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(vocab_size=vocab, special_tokens=added, initial_alphabet=alphabet, show_progress=False),
    )
    return made


@dataclasses.dataclass(frozen=True)
class Family:
    """kind: how the tokenizer treats text; special: its tokens; template; bos, eos; end: what ends an answer."""

    kind: str
    special: tuple[str, ...]
    template: str
    bos: str | None
    eos: str
    end: str
    system: bool = True  # whether the template takes a system prompt


_TURNS = "{%% for m in messages %%}%s{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
_CHATML = _TURNS % (
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>assistant\nOPENED' }}",
)
_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a polite machine.<|im_end|>\n' }}{% endif %}"
)


def _chatml(opened: str = "") -> str:
    return _CHATML.replace("OPENED", opened)


_LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set said = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set said = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (said if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate.') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token + ' ' }}"
    "{% endif %}{% endfor %}"
)


def _mistral(before: str, answer: str) -> str:
    """The system prompt opens the last user turn."""
    return (
        "{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}"
        "{% set turns = messages[1:] %}"
        "{% else %}{% set said = '' %}{% set turns = messages %}{% endif %}"
        "{% set last = turns | selectattr('role', 'equalto', 'user') | list | last %}"
        "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
        "{{ '[INST]" + before + "' + (said if m == last else '') + m.content + '[/INST]' }}"
        "{% else %}{{ '" + answer + "' + m.content + eos_token }}{% endif %}{% endfor %}"
    )


_TEKKEN_7 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + "
    "'[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{% for m in messages %}{% set said = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set said = bos_token + said %}{% endif %}{{ said }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA = (
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' %s + m.content | trim + "
    "'<end_of_turn>\n' }}"
)
_GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _TURNS % (_GEMMA % "", "{{ '<start_of_turn>model\n' }}")
)
_GEMMA_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    + _TURNS
    % (_GEMMA % "+ (said if loop.first else '')", "{{ '<start_of_turn>model\n' }}")
)
_ZEPHYR = _TURNS % ("{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}", "{{ '<|assistant|>\n' }}")
_PHI = _TURNS % ("{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}", "{{ '<|assistant|>\n' }}")
_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_INST = ("[INST]", "[/INST]")
_THINK = ("<think>", "</think>")

FAMILIES = {
    "ChatML": Family("words", _IM, _chatml(), None, "<|im_end|>", "<|im_end|>"),
    "Qwen 2.5 (its own system prompt)": Family("words", _IM, _DEFAULT + _chatml(), None, "<|im_end|>", "<|im_end|>"),
    "Llama 2": Family("spaces", (), _LLAMA_2, "<s>", "</s>", "</s>"),
    "Llama 3": Family(
        "words",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _LLAMA_3,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ),
    "Mistral v0.1": Family("spaces", (), _MISTRAL_1, "<s>", "</s>", "</s>", system=False),
    "Mistral v0.3": Family("first", _INST, _mistral(" ", " "), "<s>", "</s>", "</s>"),
    "Mistral Nemo": Family("tekken", ("<s>", "</s>", *_INST), _mistral("", ""), "<s>", "</s>", "</s>"),
    "Mistral Tekken v7": Family(
        "tekken",
        ("<s>", "</s>", *_INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        _TEKKEN_7,
        "<s>",
        "</s>",
        "</s>",
    ),
    "Gemma 2": Family(
        "plain", ("<start_of_turn>", "<end_of_turn>"), _GEMMA_2, "<s>", "</s>", "<end_of_turn>", system=False
    ),
    "Gemma 3": Family("plain", ("<start_of_turn>", "<end_of_turn>"), _GEMMA_3, "<s>", "</s>", "<end_of_turn>"),
    "Zephyr": Family("spaces", (), _ZEPHYR, "<s>", "</s>", "</s>"),
    "Phi 3": Family("first", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), _PHI, "<s>", "</s>", "<|end|>"),
    "R1 distils": Family("words", ("<s>", "</s>", "<|User|>", "<|Assistant|>", *_THINK), _R1, "<s>", "</s>", "</s>"),
    "Qwen 3 Thinking": Family("words", (*_IM, *_THINK), _chatml("<think>\n"), None, "<|im_end|>", "<|im_end|>"),
}
VOCAB = 1200


@functools.cache
def tokenizer(name: str) -> tokenizers.Tokenizer:
    """Of VOCAB tokens at most; as such checkpoints do, it begins a text with `bos` where it is asked to."""
    family = FAMILIES[name]
    if family.kind in ("words", "tekken"):
        made = _byte_level(family.special, WORDS if family.kind == "words" else TEKKEN, VOCAB)
    else:
        prefix = {"spaces": "everywhere", "first": "first", "plain": "never"}[family.kind]
        made = _sentencepiece(family.special, prefix, VOCAB)
    if family.bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, made.token_to_id(family.bos))]
        )
    return made


def described(name: str) -> dict[str, str]:
    """The tokenizer_config.json of a family."""
    family = FAMILIES[name]
    named = {"bos_token": family.bos} if family.bos else {}
    return {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": family.template},
        **{"eos_token": family.eos, **named},
    }


def save(name: str, folder: pathlib.Path) -> pathlib.Path:
    tokenizer(name).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(described(name)))
    return folder


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_USER, _SYSTEM, _ANSWER = (
    _message("user", "Which animal?"),
    _message("system", "Be brief."),
    _message("assistant", "Owl."),
)
KINDS = {
    "user": [_USER],
    "system, user": [_SYSTEM, _USER],
    "numbers": [_SYSTEM, _message("user", "12, 345\n6\n\nGo on: é 🦉")],
    "answered": [_USER, _ANSWER],
    "system, answered": [_SYSTEM, _USER, _ANSWER],
    "three turns": [_SYSTEM, _USER, _ANSWER, _message("user", "And a tree?")],
}


def compared(theirs, ours: Chat, family: Family, messages: list[dict[str, str]]) -> str:
    """`equal`, or what is not: our tokens of a conversation and those of `transformers`' apply_chat_template."""
    asks = messages[-1]["role"] == "user"
    given, how = messages, []
    if messages[0]["role"] == "system" and not family.system:
        system, user, *rest = messages
        given, how = [_message("user", f"{system['content']}\n\n{user['content']}"), *rest], ["folded"]
    options = {"add_generation_prompt": asks, "enable_thinking": False}
    expected = theirs.apply_chat_template(given, **options)["input_ids"]
    text = ours.render(messages, add_generation_prompt=asks)
    their_text = theirs.apply_chat_template(given, tokenize=False, **options)
    if text != their_text and text.removesuffix("\n</think>\n\n") == their_text:
        expected, how = theirs(text, add_special_tokens=False)["input_ids"], [*how, "thought closed"]
    return ", ".join(["equal" if ours.encode(text) == expected else "NOT equal", *how])


@contextlib.contextmanager
def opened(name: str) -> Iterator[tuple]:
    """(the tokenizer of transformers, our chat)."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save(name, pathlib.Path(folder))
        yield transformers.AutoTokenizer.from_pretrained(folder), open_chat(folder)


def row(name: str) -> list[str]:
    with opened(name) as (theirs, ours):
        return [compared(theirs, ours, FAMILIES[name], messages) for messages in KINDS.values()]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(rows: dict[str, list[str]]) -> str:
    head = [line(["template", *KINDS]), line(["---"] * (1 + len(KINDS)))]
    return "\n".join([*head, *(line([name, *cells]) for name, cells in rows.items())])


BEGIN, END = "<!-- begin template tokens -->\n", "<!-- end template tokens -->"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    made = table({name: row(name) for name in FAMILIES})
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(made)
