"""The trained tensors of several clients, one slice each, in the place of the network's in an optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

ELEMENT_WISE = (SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adadelta, RMSprop, Rprop)
"""Optimizers that treat every number by itself, and begin with an empty state."""


class Stacks:
    """Stacks (clients, ...) of the clients of a chunk.

    An optimizer moves the slices of the first clients only, those that have batches left; the others are frozen, since
    neither their numbers nor their optimizer's are part of the parameters any more.

    Args:
        names: Flat name of each tensor.
        live: The network's tensors.
        values: Their stacks.
        num_active: How many clients have batches left.
    """

    def __init__(self, names: Sequence[str], live: Sequence[Tensor], values: list[Tensor], num_active: int) -> None:
        self.names, self.live, self.values = list(names), list(live), values
        self.parameters: list[nn.Parameter] = []
        self._groups: list[list[Tensor]] = []  # the network's own, while ours are in the optimizer
        self._activate(num_active)

    @classmethod
    def empty(cls, named: dict[str, Tensor], num_clients: int) -> "Stacks":
        """Make room for a number of clients."""
        values = [value.detach().new_zeros((num_clients, *value.shape)) for value in named.values()]
        return cls(list(named), list(named.values()), values, num_clients)

    def _activate(self, number: int) -> None:
        self.num_active = number
        pairs = zip(self.values, self.live, strict=True)
        self.parameters = [nn.Parameter(value[:number], requires_grad=live.requires_grad) for value, live in pairs]

    @torch.no_grad()
    def take(self, slot: int) -> None:
        """Copy the network's values into a client's slices."""
        torch._foreach_copy_([value[slot] for value in self.values], [value.detach() for value in self.live])

    @torch.no_grad()
    def give(self, slot: int) -> None:
        """Copy a client's slices into the network."""
        torch._foreach_copy_([value.detach() for value in self.live], [value[slot] for value in self.values])

    def views(self, slot: int) -> dict[str, Tensor]:
        """Return a client's slices with their gradients, by flat name; both share memory with the stacks."""
        found = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            view = parameter.detach()[slot]
            view.grad = None if parameter.grad is None else parameter.grad[slot]
            found[name] = view
        return found

    def leaves(self, first: int, end: int) -> dict[str, Tensor]:
        """Return the slices of some clients as leaves of a graph of their own, by flat name."""
        pairs = zip(self.names, self.parameters, strict=True)
        return {name: p.detach()[first:end].requires_grad_(p.requires_grad) for name, p in pairs}

    # ------------------------------------------------------------------ the optimizer

    def enter(self, optimizer: Optimizer) -> None:
        """Let the optimizer train the stacks; a state that it has for the network's tensors becomes theirs."""
        own = {id(live): parameter for live, parameter in zip(self.live, self.parameters, strict=True)}
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        for group, known in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = [own[id(parameter)] for parameter in known]
            for old, new in zip(known, group["params"], strict=True):
                if old in optimizer.state:
                    optimizer.state[new] = optimizer.state.pop(old)

    def leave(self, optimizer: Optimizer) -> None:
        """Give the optimizer its parameters back, without any state."""
        for group, known in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = known
        optimizer.state.clear()

    def narrow(self, number: int, optimizer: Optimizer) -> None:
        """Freeze all but the first clients, between two optimizer steps."""
        old = self.parameters
        self._activate(number)
        new = {id(a): b for a, b in zip(old, self.parameters, strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [new[id(parameter)] for parameter in group["params"]]
        for before, after in zip(old, self.parameters, strict=True):
            state: dict[str, Any] | None = optimizer.state.pop(before, None)
            if state is not None:
                optimizer.state[after] = {key: _narrowed(value, before, number) for key, value in state.items()}

    @torch.no_grad()
    def clip(self, optimizer: Optimizer, max_norm: float) -> None:
        """Scale each client's gradients down to a norm, as `torch.nn.utils.clip_grad_norm_` does for one client."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            return
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])  # (tensors, clients)
        factors = (max_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors.to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)))


def _narrowed(value: Any, parameter: Tensor, number: int) -> Any:
    """Cut what has an entry for each number of the parameter; a count of steps is the same for all clients."""
    return value[:number].clone() if isinstance(value, Tensor) and value.shape == parameter.shape else value
