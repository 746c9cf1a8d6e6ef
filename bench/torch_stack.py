"""Copies of a PyTorch model in one stack, as the guide to torch.func's ensembles has it: parameters stacked, the model
and its gradient under vmap, one optimizer."""

import functools
from collections.abc import Callable, Iterable, Sequence

import torch


def stacked(models: Sequence[torch.nn.Module]) -> Callable[..., torch.Tensor]:
    """What all of them, whose buffers are those of the first, make of arguments with a leading axis of models."""
    params, _ = torch.func.stack_module_state(models)
    each = torch.func.vmap(lambda params, *arguments: _called(models[0], params, *arguments))
    return functools.partial(each, params)


def _called(model: torch.nn.Module, params: dict[str, torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(model, (params, dict(model.named_buffers())), arguments)


class Stack:
    """Trains `models`, whose buffers are those of the first.

    Args:
      loss: (a model, its batch…) → a number.
      optimizer: of parameters.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        loss: Callable[..., torch.Tensor],
        optimizer: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer],
    ) -> None:
        params, _ = torch.func.stack_module_state(models)
        self._params = {name: x.detach().requires_grad_() for name, x in params.items()}
        self._optimizer = optimizer(self._params.values())

        def of_params(params: dict[str, torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
            return loss(functools.partial(_called, models[0], params), *batch)

        self._gradient = torch.func.vmap(torch.func.grad_and_value(of_params))

    def step(self, *batch: torch.Tensor) -> torch.Tensor:
        """One update on batches with a leading axis of models; returns the losses (models,) before it."""
        gradients, losses = self._gradient({name: x.detach() for name, x in self._params.items()}, *batch)
        for name, x in self._params.items():
            x.grad = gradients[name]
        self._optimizer.step()
        return losses.detach()
