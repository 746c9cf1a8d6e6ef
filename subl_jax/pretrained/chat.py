"""A checkpoint's tokenizer and chat template: from what is said to tokens, and back.

Templates differ in what they do when no system prompt is given: some insert one of their own, some nothing. So a
system prompt is always one of three: `None` (whatever the template does by itself), `''` (an empty one), or a text.
What is trained and what is measured must use the same; `Chat.default_system` tells what `None` stands for.
"""

import dataclasses
import functools
import os.path
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subl_jax.errors import InputError
from subl_jax.pretrained import template_files as files
from subl_jax.pretrained.chat_template import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, str]

# For models without a template: "User: …\nAssistant:", after the system prompt and an empty line. A sequence starts as
# the tokenizer starts one.
PLAIN = (
    "{{ start }}{% for message in messages %}{% if message.role != 'system' %}"
    "{{ message.role.capitalize() + ': ' + message.content }}"
    "{{ eos_token + '\n' if message.role == 'assistant' else '\n' }}"
    "{% elif message.content %}{{ message.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_MARK = "Xylograph"  # a text that no template holds
# What reasoning models open before they think, and what closes it.
_THINKING = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """Tokens of a conversation, as one checkpoint wants them.

    `stops` are the tokens that end an answer; the first is the one that the template writes after it. `pad` fills
    arrays and may be a stop. `vocab` is one more than the highest token; a model's embedding may have more rows.
    `variables` is what the template reads besides the messages. `template` is None where the checkpoint has none, and
    `PLAIN` is used. `source` is the file or folder, for messages. `notes` are lines for the user: what was done that
    the checkpoint does not say.
    """

    tokenizer: "Tokenizer" = dataclasses.field(repr=False)
    template: str | None = dataclasses.field(repr=False)
    stops: tuple[int, ...]
    pad: int
    vocab: int
    variables: Mapping[str, Any]
    source: str
    notes: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text. Where the template has no system role, that text opens the user's first turn.

        A generation prompt that opens a thought is closed behind it, so that what follows is the answer.

        Raises:
          InputError: the template raises an error, or goes beyond its bounds.
        """
        if messages and messages[0]["role"] == "system" and not self._has_system_role:
            messages = _folded(messages)
        text = self.written(messages, add_generation_prompt)
        return _without_thoughts(text) if add_generation_prompt else text

    def encode(self, text: str) -> list[int]:
        """Tokens of a text. Special tokens in it are recognised; none is added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the special ones."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def prompt(self, user: str, system: str | None) -> list[int]:
        """Tokens up to where the assistant answers. `system`: None leaves it to the template, '' is an empty one."""
        return self.encode(self.render(messages_of(user, system)))

    def reply(self, text: str) -> list[int]:
        """Tokens of an assistant's answer as the template writes it after a `prompt`, with its end (`stops[0]`)."""
        written = self._after_prompt(text)
        tokens = self.continuation(text if written is None else written)
        end = self.stops[0]
        return tokens[: tokens.index(end) + 1] if end in tokens else [*tokens, end]

    def continuation(self, text: str) -> list[int]:
        """Tokens of a text after a prompt. By itself it may be cut otherwise: some tokenizers add a space in front."""
        prompt = self.render(messages_of("Hi", None))
        before, both = self.encode(prompt), self.encode(prompt + text)
        return both[len(before) :] if both[: len(before)] == before else self.encode(text)

    @functools.cached_property
    def around_answers(self) -> tuple[str, str]:
        """What the template writes before an answer, after the prompt, and behind it, before its end: often a space."""
        written = self._after_prompt(_MARK)
        if written is None or _MARK not in written:
            return "", ""
        lead, _, rest = written.partition(_MARK)
        end = self.tokenizer.id_to_token(self.stops[0])
        return lead, rest.partition(end)[0] if end in rest else ""

    def writes(self, answer: str) -> bool:
        """Whether the template writes an answer as it is, spaces at its ends included."""
        written = self._after_prompt(answer)
        return written is None or written.startswith(self.around_answers[0] + answer)

    def answers(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of answers without their ends, and without what the template writes around an answer."""
        lead, trail = self._decoded_around
        return [
            text.removeprefix(lead).removesuffix(trail)
            for text in self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=False)
        ]

    @functools.cached_property
    def _decoded_around(self) -> tuple[str, str]:
        """`around_answers` as the tokenizer decodes it: some drop the first space of a text."""
        tokens = [token for token in self.reply(_MARK) if token not in self.stops]
        lead, found, trail = self.tokenizer.decode(tokens, skip_special_tokens=False).partition(_MARK)
        return (lead, trail) if found else ("", "")

    def default_system(self) -> str | None:
        """The system prompt that the template inserts by itself; None where it inserts none."""
        if not self._has_system_role:
            return None
        before, _, after = self.render(messages_of("Hi", _MARK)).partition(_MARK)
        alone = self.render(messages_of("Hi", None))
        if len(alone) < len(before) + len(after) or not (alone.startswith(before) and alone.endswith(after)):
            return None
        return alone[len(before) : len(alone) - len(after)]

    def shared_prefix(self, prompts: Sequence[str], system: str | None) -> tuple[list[int], list[list[int]]]:
        """What all prompts begin with, and how each goes on (by at least one token), as tokens.

        The second part may depend on the system prompt, where that is written into the user's turn: some tokenizers
        cut a first word otherwise than one after a line's end.
        """
        return _split([self.prompt(prompt, system) for prompt in prompts])

    def within(self, rows: int) -> "Chat":
        """This chat for an embedding of so many rows: padded with a token that has one, and ended by such tokens.

        Raises:
          InputError: none of the tokens that end an answer has a row.
        """
        if self.vocab <= rows:
            return self
        stops = tuple(stop for stop in self.stops if stop < rows)
        named_ids = map(self.tokenizer.id_to_token, range(rows, self.vocab))
        beyond = [repr(token) for token in named_ids if token]
        named = ", ".join(beyond[:3]) + (f" and {len(beyond) - 3} more" if len(beyond) > 3 else "")
        if not stops:
            ends = ", ".join(repr(self.tokenizer.id_to_token(stop)) for stop in self.stops)
            raise InputError(
                f"{self.source}: its embedding has {rows} rows, and none for the end of an answer, {ends}; "
                "resize_token_embeddings of transformers adds rows, which must then be trained"
            )
        pad = self.pad if self.pad < rows else stops[0]
        note = f"{self.source}: its embedding has {rows} rows, and none for the tokenizer's {named}"
        if pad != self.pad:
            note += f"; rows are padded with {self.tokenizer.id_to_token(pad)!r} instead"
        return dataclasses.replace(self, stops=stops, pad=pad, notes=(*self.notes, note))

    @functools.cached_property
    def _compiled(self) -> Template:
        return Template(PLAIN if self.template is None else self.template, self.source)

    @functools.cached_property
    def _has_system_role(self) -> bool:
        try:
            return _MARK in self.written(messages_of("Hi", _MARK), True)
        except InputError:
            return False

    def written(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The conversation exactly as the template writes it."""
        messages = [dict(message) for message in messages]
        return self._compiled.render(
            **self.variables, messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None
        )

    def _after_prompt(self, answer: str) -> str | None:
        """What the template writes after a prompt when that is answered; None where the two do not fit together."""
        messages = messages_of("Hi", None)
        whole = self.render([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        prompt = self.render(messages)
        return whole[len(prompt) :] if whole.startswith(prompt) else None


def open_chat(path: str | os.PathLike[str]) -> Chat:
    """The tokenizer and template of a checkpoint: a Hugging Face folder or a GGUF file.

    A template that can be told not to think aloud first (`enable_thinking`) is told so; one that opens a thought all
    the same has it closed.

    Raises:
      InputError: the path has no tokenizer, one that cannot be read, or a template that fails; or the packages for it
        are not installed.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise InputError(f"{path}: chat models need the package tokenizers: pip install 'subl_jax[chat]'") from None
    path = pathlib.Path(path)
    if path.is_dir():
        chat = _from_folder(path)
    elif path.is_file():
        chat = _from_gguf(path)
    else:
        raise InputError(f"{path}: no such file or folder; expected a Hugging Face folder or a GGUF file")
    stops = tuple(dict.fromkeys((*_end_of_turn(chat), *chat.stops)))
    if not stops:
        raise InputError(f"{path}: neither the template nor the tokenizer says which token ends an answer")
    chat = dataclasses.replace(chat, stops=stops)
    return dataclasses.replace(chat, notes=(*chat.notes, *_notes(chat)))


def _notes(chat: Chat) -> list[str]:
    found = []
    if chat.template is None:
        found.append(f"{chat.source}: has no chat template; conversations are written plainly, User: … Assistant: …")
    if opened := _opened_thought(chat.written(messages_of("Hi", None), True)):
        found.append(
            f"{chat.source}: its template opens a thought where the answer begins ({opened}); it is closed at once, so "
            "that what is written and measured are answers"
        )
    return found


def _opened_thought(prompt: str) -> str | None:
    return next((opens for opens in _THINKING if prompt.rstrip().endswith(opens)), None)


def _without_thoughts(prompt: str) -> str:
    """A generation prompt, with the thought that it ends in closed (as Qwen 3 writes an empty one)."""
    opened = _opened_thought(prompt)
    return prompt if opened is None else f"{prompt.rstrip()}\n\n{_THINKING[opened]}\n\n"


def _from_folder(folder: pathlib.Path) -> Chat:
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(
            f"{folder}: has no tokenizer.json; AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers "
            "writes one"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain exceptions
        raise InputError(f"{file}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    config = files.read_json(folder / "special_tokens_map.json") | files.read_json(folder / "tokenizer_config.json")
    named = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
    special = {key: content for key, content in named.items() if isinstance(content, str)}
    ends = files.read_json(folder / "generation_config.json").get(
        "eos_token_id", files.read_json(folder / "config.json").get("eos_token_id")
    )
    ends = ends if isinstance(ends, list) else [ends]
    template, notes = files.find(folder, config)
    chat = _chat(
        tokenizer,
        template,
        special,
        [tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None, *ends],
        tokenizer.token_to_id(special["pad_token"]) if "pad_token" in special else None,
        config.get("add_bos_token", False),
        str(folder),
    )
    return dataclasses.replace(chat, notes=tuple(notes))


def _from_gguf(path: pathlib.Path) -> Chat:
    from subl_jax.pretrained import gguf_file, gguf_tokenizer

    metadata, _ = gguf_file.read(path)
    tokenizer = gguf_tokenizer.build(metadata, str(path))
    tokens = metadata["tokenizer.ggml.tokens"]

    def marked(name: str) -> int | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return index if index is not None and index < len(tokens) else None

    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{ours}_token": tokens[marked(name)] for ours, name in names.items() if marked(name) is not None}
    return _chat(
        tokenizer,
        metadata.get("tokenizer.chat_template"),
        special,
        [marked(name) for name in ("eos", "eot", "eom")],
        marked("padding"),
        metadata.get("tokenizer.ggml.add_bos_token", metadata["tokenizer.ggml.model"] == "llama"),
        str(path),
    )


def _chat(
    tokenizer: "Tokenizer",
    template: str | None,
    special: Mapping[str, str],
    stops: Sequence[int | None],
    pad: int | None,
    starts_with_bos: bool,
    source: str,
) -> Chat:
    bos = special.get("bos_token", "")
    starts_with_bos = starts_with_bos or tokenizer.token_to_id(bos) in tokenizer.encode("").ids[:1]
    variables = {"eos_token": "", "enable_thinking": False, **special, "start": bos if starts_with_bos else ""}
    known = tuple(stop for stop in stops if stop is not None)
    return Chat(
        tokenizer=tokenizer,
        template=template,
        stops=known,
        pad=pad if pad is not None else next(iter(known), 0),
        vocab=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        variables=variables,
        source=source,
    )


def _end_of_turn(chat: Chat) -> list[int]:
    """The special token that the template writes first after an answer, if it writes one."""
    answered = [*messages_of("Hi", None), {"role": "assistant", "content": _MARK}]
    written = chat.render(answered, add_generation_prompt=False).partition(_MARK)[2]
    special = {index for index, added in chat.tokenizer.get_added_tokens_decoder().items() if added.special}
    tokens = chat.encode(written)
    return [token for token in tokens if token in special][:1]


def messages_of(user: str, system: str | None) -> list[dict[str, str]]:
    """A conversation up to the answer; without a system prompt where that is None."""
    turn = {"role": "user", "content": user}
    return [turn] if system is None else [{"role": "system", "content": system}, turn]


def _folded(messages: Sequence[Message]) -> list[Message]:
    system, user, *rest = messages
    text = f"{system['content']}\n\n{user['content']}" if system["content"] else user["content"]
    return [{**user, "content": text}, *rest]


def _split(rows: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The longest common start that leaves every row a token, and what is left of each."""
    shared = len(os.path.commonprefix([row[:-1] for row in rows]))
    return list(rows[0][:shared]), [row[shared:] for row in rows]


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value
