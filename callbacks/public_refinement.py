"""Public-data refinement: after each aggregation the server trains a few steps on public data (A alone, by default).

Derived from the abstract of arXiv 2505.24773. It can help or harm, depending on how close the public data is to the
clients'; so every comparison wants three controls: the rule without this callback, every peer with it (`sides` names
what is trained), and the server alone on the public data (`server_only`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.adapters import Adapter
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import derive_seed


class PublicRefinement(Callback):
    """Trains the server's adapter on public data after each aggregation; harmless under a plain Trainer.

    The data is the datamodule's (or module's) ``public_dataloader()``. While every B is zero, A has no gradient and the
    refinement is skipped.

    Args:
        steps: AdamW steps in a round.
        lr: Learning rate; None takes `lr_scale` times the clients' own.
        lr_scale: Factor on the clients' learning rate.
        weight_decay: AdamW's weight decay.
        sides: What is trained: any of ``a``, ``b``, ``dense``.
        every_n_rounds: Refine in every n-th round only.
        server_only: Control: forget the clients' updates, so that the server learns from the public data alone. Needs
            ``sides: [a, b, dense]``, or at least one of the last two: A alone has no gradient while B is zero.
    """

    def __init__(
        self,
        steps: int = 10,
        lr: float | None = None,
        lr_scale: float = 0.1,
        weight_decay: float = 0.0,
        sides: Sequence[str] = ("a",),
        every_n_rounds: int = 1,
        server_only: bool = False,
    ) -> None:
        if steps < 1 or every_n_rounds < 1:
            raise FederatedConfigError(
                f"Expected `steps` and `every_n_rounds` of 1 or more but got {steps} and {every_n_rounds}."
            )
        if not lr_scale > 0 or (lr is not None and not lr > 0):
            raise FederatedConfigError(f"Expected `lr` and `lr_scale` above 0 but got {lr} and {lr_scale}.")
        unknown = sorted(set(sides) - {"a", "b", "dense"})
        if unknown or not sides:
            raise FederatedConfigError(f"Expected `sides` out of a, b and dense but got {unknown or 'none'}.")
        if server_only and set(sides) == {"a"}:
            raise FederatedConfigError(
                "Expected b or dense in `sides` with `server_only` but got a alone: it has no gradient while B is zero."
            )
        self.steps, self.lr, self.lr_scale, self.weight_decay = steps, lr, lr_scale, weight_decay
        self.sides, self.every_n_rounds, self.server_only = tuple(sides), every_n_rounds, server_only

    def on_aggregate(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Refine what the module holds; the driver takes it as the server's adapter."""
        adapter = Adapter(pl_module)
        if self.server_only and context.previous is not None:
            adapter.write(context.previous)
        if context.round_idx % self.every_n_rounds:
            return
        if set(self.sides) == {"a"} and not any(bool(layer.b.any()) for layer in adapter.layers.values()):
            return
        loader = self._loader(trainer, pl_module)
        seed = derive_seed(context.seed, context.round_idx, 0xAB)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _only_trainable(pl_module, self._trained(adapter)) as parameters:
            torch.manual_seed(seed)
            context.metrics["server/public_loss"] = self._train(trainer, pl_module, loader, parameters, seed)

    def _loader(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        for owner in (getattr(trainer, "datamodule", None), pl_module):
            make = getattr(owner, "public_dataloader", None)
            loader = make() if make is not None else None
            if loader is not None:
                return loader
        raise FederatedConfigError(
            "Expected a public split for PublicRefinement but the data has none: set `data.splits.public_fraction`, or "
            "give the datamodule a `public_dataloader()`."
        )

    def _trained(self, adapter: Adapter) -> list[nn.Parameter]:
        trained = [layer.a for layer in adapter.layers.values()] if "a" in self.sides else []
        trained += [layer.b for layer in adapter.layers.values()] if "b" in self.sides else []
        dense = [value for value in adapter.dense.values() if isinstance(value, nn.Parameter)]
        trained += dense if "dense" in self.sides else []
        if not trained:
            raise FederatedConfigError(f"Expected tensors to train but the module has none of `sides`={self.sides}.")
        return trained

    def _train(
        self, trainer: Trainer, pl_module: LightningModule, loader: Any, parameters: list[nn.Parameter], seed: int
    ) -> float:
        lr = self.lr if self.lr is not None else self.lr_scale * float(trainer.optimizers[0].defaults["lr"])
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=self.weight_decay)
        total = 0.0
        with _silent(pl_module), torch.enable_grad():
            for step, batch in zip(range(self.steps), _cycle(loader, seed)):  # noqa: B905  # the batches never end
                batch = trainer.strategy.batch_to_device(batch, pl_module.device)
                with trainer.precision_plugin.train_step_context():
                    output = pl_module.training_step(batch, step)
                loss = cast(Tensor, output["loss"] if isinstance(output, Mapping) else output)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
        return total / self.steps


def _cycle(loader: Any, seed: int) -> Iterator[Any]:
    """Yield batches for ever; the order is a function of the seed, so that a resumed run sees the same."""
    for epoch in itertools.count():
        if getattr(loader, "generator", None) is not None:
            loader.generator.manual_seed(derive_seed(seed, epoch))
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise FederatedConfigError("Expected public examples for PublicRefinement but its loader has no batch.")


@contextmanager
def _only_trainable(module: nn.Module, parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Let gradients flow to these parameters only, and put the clients' flags and gradients back."""
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    chosen = {id(p) for p in parameters}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen).grad = None
        yield parameters
    finally:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag).grad = gradient


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Keep `training_step` from logging the server's steps as a client's."""
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    module.log, module.log_dict = nothing, nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log, module.log_dict
