"""What people do with a chat model once it is stored: ask it, and take it elsewhere."""

import functools
from typing import Any

from etils import epath

from subl_jax import specs
from subl_jax.worlds.chat import publishing
from subl_jax.worlds.chat.inference import ChatInference


class ForPeople(specs.Answers, specs.ExportsAdapters, specs.ExportsModels):
    """The part of `Pretrained` that no stage calls."""

    @functools.cached_property
    def inference(self) -> ChatInference:
        """How its models are asked."""
        return ChatInference(self)

    def save_adapter(self, params: Any, lora: specs.Lora, folder: epath.Path) -> None:
        publishing.save_adapter(self, params, lora, folder)

    def save_model(self, params: Any, folder: epath.Path) -> None:
        publishing.save_model(self, params, folder)
