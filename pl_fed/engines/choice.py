"""Which engine a run can have, and which is the faster one.

Clients that train together ask something of the module, the settings and the callbacks (`why_not`). Where nothing is
against it they are faster as long as one client's step leaves the machine idle (`by_size`).
"""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from pl_fed.adapters import Adapter
from pl_fed.engines.stacks import ELEMENT_WISE
from pl_fed.engines.step_size import StepSize
from pl_fed.packing import why_not_packed
from pl_fed.rounds import LocalTraining

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
OWN_STEPS = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
GRADIENT_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
READS_BATCHES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
STEP_HOOKS = (*GRADIENT_HOOKS, "on_train_batch_start", "on_train_batch_end")
CLIENT_HOOKS = ("on_client_start", "on_broadcast", "on_client_end", "on_upload")

BUSY_TOKENS, BUSY_NUMBERS = 256, 65_536
"""A client's step with so many tokens, and so many numbers (tokens times width) a layer, keeps a CPU busy by itself."""
PADDED = 0.1
"""Share of padding that is worth leaving out also then."""


def by_size(size: StepSize | None, device: str) -> tuple[Literal["sequential", "packed"], str]:
    """Return the engine that is likely to be faster, and why, as a sentence without its end.

    On a CPU a step of few tokens is small matrix products and many calls, which several clients share. From 256 tokens
    on (of a width below 256 from 65536 / width on) one client's products are as fast as those of several, and packing
    gains no more than the padding that it leaves out: measured by `benchmarks/engine_choice.py` on one thread, in
    widths from 128 to 768 (docs/performance.md). Of a GPU no such limit is known, and none is set.

    Args:
        size: A client's step; None if it is not known.
        device: Type of the device, such as ``cpu``.

    Example:
        >>> by_size(StepSize(tokens=32, width=128), "cpu")[0], by_size(StepSize(tokens=512, width=128), "cpu")[0]
        ('packed', 'sequential')
    """
    if device != "cpu":
        return "packed", f"no size of a client's step is known from which it is slower on `{device}`"
    if size is None:
        return "packed", "the size of a client's step is not known"
    limit = max(BUSY_TOKENS, -(-BUSY_NUMBERS // size.width))
    step = f"a client's step has about {size.tokens} tokens at width {size.width}"
    if size.tokens < limit:
        return "packed", f"{step}, and a CPU is busy with one client from {limit} on"
    if size.padding >= PADDED:
        return "packed", f"{step}, {size.padding:.0%} of them padding, which packing leaves out"
    return "sequential", f"{step}, and a CPU is busy with one client from {limit} on"


def why_not(
    module: LightningModule,
    adapter: Adapter,
    optimizers: Sequence[Optimizer],
    local: LocalTraining,
    trainer: Trainer,
    callbacks: Sequence[Callback],
) -> str | None:
    """Return why clients cannot train together in this run, as part of a sentence; None if they can.

    Args:
        module: What is trained.
        adapter: Its federated tensors.
        optimizers: Lightning's optimizers.
        local: What a client does in a round.
        trainer: Runs the module.
        callbacks: Its callbacks.
    """
    return (
        _why_not_module(module)
        or why_not_packed(module, adapter)
        or _why_not_optimizer(adapter, optimizers, local)
        or _why_not_trainer(trainer, callbacks)
    )


def _why_not_module(module: LightningModule) -> str | None:
    own = _place(module, "packed_losses")
    if own is None:
        return f"{type(module).__name__} has no `packed_losses`"
    for name in ("training_step", "forward"):
        place = _place(module, name)
        if place is not None and place < own:
            return f"{type(module).__name__} changes `{name}` but not `packed_losses`"
    reason: str | None = getattr(module, "why_not_packed", lambda: None)()
    if reason is not None:
        return reason
    hooks = (*OWN_STEPS, *STEP_HOOKS, *READS_BATCHES)
    changed = [name for name in hooks if is_overridden(name, module, LightningModule)]
    return f"{type(module).__name__} has a `{changed[0]}` of its own" if changed else None


def _place(module: LightningModule, name: str) -> int | None:
    """Return how far up the class that defines a method is."""
    return next((i for i, parent in enumerate(type(module).__mro__) if name in vars(parent)), None)


def _why_not_optimizer(adapter: Adapter, optimizers: Sequence[Optimizer], local: LocalTraining) -> str | None:
    if local.optimizer == "kept":
        return "optimizers are kept from round to round (`local.optimizer`), each with its own number of steps"
    known = {id(value) for value in adapter.parameters()}
    for optimizer in optimizers:
        if type(optimizer) not in ELEMENT_WISE:
            return f"{type(optimizer).__name__} is not known to treat every number by itself"
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            return "the optimizer has parameters that are not federated"
    return None


def _why_not_trainer(trainer: Trainer, callbacks: Sequence[Callback]) -> str | None:
    if trainer.precision not in PRECISIONS:
        return f"the precision is `{trainer.precision}`, expected one of {', '.join(PRECISIONS)}"
    data = getattr(trainer, "datamodule", None)
    if data is not None and any(is_overridden(name, data, LightningDataModule) for name in READS_BATCHES):
        return f"{type(data).__name__} changes single batches"
    watching = next((callback for callback in callbacks if watches_steps(callback)), None)
    return None if watching is None else f"{type(watching).__name__} watches the steps of single clients"


def watches_steps(callback: Any) -> bool:
    """Tell whether a callback looks at single clients and at their steps; it may say so itself (`watches_steps`)."""
    stated = getattr(callback, "watches_steps", None)
    if stated is not None:
        return bool(stated)
    base = Callback
    own_steps = [name for name in STEP_HOOKS if getattr(type(callback), name, None) is not getattr(base, name)]
    return bool(own_steps) and any(hasattr(callback, name) for name in CLIENT_HOOKS)
