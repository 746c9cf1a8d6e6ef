"""A user's own prompts as a channel: what would a base write to these?"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from etils import epath

from subl_jax.channels.base import Channel, Filter
from subl_jax.channels.imported import prompts_of
from subl_jax.errors import InputError
from subl_jax.specs import label, static
from subl_jax.storage import jsonl


@dataclasses.dataclass(frozen=True)
class Anything(Filter):
    """Keeps every text but the empty one."""

    REASONS: ClassVar[tuple[str, ...]] = ("empty",)

    def reasons(self, texts: Sequence[str]) -> list[str | None]:
        return [None if text.strip() else "empty" for text in texts]


@dataclasses.dataclass(frozen=True)
class GivenPrompts(Channel):
    """The prompts of a dataset's file. Make one with `of`, which looks at the file."""

    path: str = label("")
    sha256: str = static("")

    @classmethod
    def of(cls, path: epath.PathLike) -> "GivenPrompts":
        """Raises InputError: no such file, or not one of prompts and completions."""
        path = epath.Path(path).expanduser()
        prompts_of(path)
        return cls(str(path), jsonl.file_sha256(path))

    def prompts(self, seed: int, n: int) -> list[str]:
        """At most `n` of those that there are, each once, in the order of the file. The seed does not matter."""
        try:
            changed = jsonl.file_sha256(self.path) != self.sha256
        except OSError as error:
            raise InputError(f"{self.path}: cannot read the prompts: {error.strerror or error}") from None
        if changed:
            raise InputError(f"{self.path}: has changed since the sweep was planned; run the command again")
        return list(dict.fromkeys(prompts_of(self.path)))[:n]

    def filter(self) -> Filter:
        return Anything()

    def before(self, question: str, seed: int) -> str:
        """The question, with one of the prompts in front."""
        prompts = self.prompts(seed, 1000)
        return f"{prompts[np.random.default_rng([seed, len(question)]).integers(len(prompts))]}\n{question}"
