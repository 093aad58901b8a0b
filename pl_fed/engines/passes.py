"""A step of a chunk in one or more passes, each of whole clients; memory that does not suffice means smaller ones."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from pl_fed.engines.stacks import Stacks
from pl_fed.errors import FederatedConfigError
from pl_fed.packing import Inputs, PackedNetwork, Pass, Rows

Gradients = list[Tensor | None]


class _Ready(torch.autograd.Function):
    """A value whose backward hands out gradients that are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return None, None, *(None if g is None else g * outer[0].to(g.dtype) for g in ctx.gradients)


def with_gradients(value: Tensor, parameters: Sequence[nn.Parameter], gradients: Gradients) -> Tensor:
    """Return a value whose backward adds these gradients to the parameters' (times the gradient that it gets)."""
    trained = [(p, g) for p, g in zip(parameters, gradients, strict=True) if p.requires_grad]
    found: Tensor = _Ready.apply(value, [g for _, g in trained], *[p for p, _ in trained])  # type: ignore[no-untyped-call]
    return found


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Passes:
    """Runs a step's forward and backward; `tokens` is the most of a pass, unless a client has more."""

    def __init__(self) -> None:
        self.tokens = 1
        self.most_clients: int | None = None  # of a pass; halved for the rest of a run when memory does not suffice

    def __call__(
        self,
        module: LightningModule,
        network: PackedNetwork,
        stacks: Stacks,
        batches: Sequence[Mapping[str, Tensor]],
        seeds: Sequence[int],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Tensor, Gradients]:
        """Return each client's loss (clients,) and the gradients of the stacks, None where one has none."""
        losses: list[Tensor] = []
        gradients: list[Gradients] = []
        first = 0
        while first < len(batches):
            end = self._end(network.inputs, batches, first)
            rows = network.inputs.rows(batches[first:end])
            run = Pass(rows.segments, list(seeds[first:end]))
            found = self._try(module, network, stacks.leaves(first, end), rows, run, context)
            if found is None:
                self._halve(end - first)
                continue
            losses.append(found[0])
            gradients.append(found[1])
            first = end
        return torch.cat(losses), _joined(gradients, stacks.parameters, [len(part) for part in losses])

    def _end(self, inputs: Inputs, batches: Sequence[Mapping[str, Tensor]], first: int) -> int:
        """Return the end of the pass that begins with a client."""
        total, end = 0, first
        most = len(batches) if self.most_clients is None else first + self.most_clients
        for batch in batches[first:most]:
            total += inputs.num_tokens(batch)
            if end > first and (total > self.tokens or not inputs.together(batches[first], batch)):
                break
            end += 1
        return end

    def _try(
        self,
        module: LightningModule,
        network: PackedNetwork,
        leaves: Mapping[str, Tensor],
        rows: Rows,
        run: Pass,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Tensor, Gradients] | None:
        """Return the losses and gradients of a pass; None if memory does not suffice."""
        trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        try:
            with network.running(run, leaves):
                with context():
                    losses: Tensor = module.packed_losses(rows)  # type: ignore[operator]
                found = torch.autograd.grad(losses.sum(), list(trained.values()), allow_unused=True)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if run.segments.num_clients == 1:
                raise FederatedConfigError(
                    "Expected memory for one client's batch but there is not enough: lower the data's `batch_size`, "
                    "or the length of the texts."
                ) from error
            return None
        gradients = dict(zip(trained, found, strict=True))
        return losses.detach(), [gradients.get(name) for name in leaves]

    def _halve(self, num_clients: int) -> None:
        self.most_clients = max(1, num_clients // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _joined(passes: list[Gradients], parameters: Sequence[nn.Parameter], sizes: Sequence[int]) -> Gradients:
    """Put the gradients of the passes together, client by client."""
    joined: Gradients = []
    for parameter, parts in zip(parameters, zip(*passes, strict=True), strict=True):
        if all(part is None for part in parts):
            joined.append(None)
            continue
        pairs = zip(parts, sizes, strict=True)
        filled = [parameter.new_zeros((n, *parameter.shape[1:])) if part is None else part for part, n in pairs]
        joined.append(filled[0] if len(filled) == 1 else torch.cat(filled))
    return joined
