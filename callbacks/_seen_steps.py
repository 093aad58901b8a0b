"""What the clients' optimizer really did in an attacked round, as the local training that the attack can invert.

The server set the optimizer and its schedule, so it knows all of this. A local training that the attack has no model of
is refused: counts that are wrong for that reason would look like clients that leak nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.attacks.observation import LocalSteps
from pl_fed.errors import FederatedConfigError

WHAT_ELSE = "audit simulated clients with `when: fit_start` and `local`"


@dataclass(frozen=True)
class SeenStep:
    """One optimizer step of a client at the final layer.

    Args:
        kind: The optimizer's class.
        is_sgd: Whether that is `torch.optim.SGD`.
        group: What it does to the head's weight: learning rate, momentum and so on, by name.
        same_bias: Whether it does the same to the head's bias.
        same_norm: Whether it does the same to the bias of the crafted norm.
        moving: Whether it began with momentum of an earlier round.
    """

    kind: str
    is_sgd: bool
    group: dict[str, Any]
    same_bias: bool = True
    same_norm: bool = True
    moving: bool = False


def see_step(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], head_name: str, norm_name: str
) -> SeenStep:
    """Return what an optimizer is about to do.

    Args:
        optimizer: The optimizer, before its step and that of its schedule.
        parameters: The module's parameters by name.
        head_name: The final layer.
        norm_name: The crafted norm.
    """
    weight = parameters[f"{head_name}.weight"]
    head = _group_of(optimizer, weight) or _settings(optimizer.param_groups[0])
    bias, norm = (
        None if (parameter := parameters.get(f"{name}.bias")) is None else _group_of(optimizer, parameter)
        for name in (head_name, norm_name)
    )
    kind, is_sgd = type(optimizer).__name__, type(optimizer) is torch.optim.SGD
    moving = optimizer.state.get(weight, {}).get("momentum_buffer") is not None
    return SeenStep(kind, is_sgd, head, bias in (None, head), norm in (None, head), moving)


def _group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    """Return the settings of a parameter; None if the optimizer does not have it."""
    groups = (group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    return next((_settings(group) for group in groups), None)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    names = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize")
    return {name: float(group.get(name) or 0.0) for name in names}  # on a device the learning rate may be a tensor


def local_steps(seen: Sequence[Sequence[SeenStep]]) -> LocalSteps:
    """Return the local training that all clients had.

    Args:
        seen: Every client's steps.

    Raises:
        CannotAttackError: If it is none that the attack can invert; the text says which.
    """
    counts = sorted({len(steps) for steps in seen})
    if len(counts) > 1:
        raise CannotAttackError(f"Expected equal numbers of local steps but clients took {counts}: set `local.steps`.")
    if counts == [0]:
        raise CannotAttackError("Expected clients that step but they took no optimizer step: train some batches.")
    first = seen[0][0]
    _check(seen, first)
    group, steps = first.group, counts[0]
    rates = [step.group["lr"] for step in seen[0]]
    lr = sum(rates) / len(rates)  # where they differ the scale is unknown anyway
    if first.is_sgd and steps == 1 and group["nesterov"]:
        lr *= 1 + group["momentum"]  # the look-ahead of a first step
    kind = "sgd" if first.is_sgd else "adam"
    try:
        return LocalSteps(steps, lr, group["momentum"], group["weight_decay"], kind)  # type: ignore[arg-type]
    except FederatedConfigError as error:
        raise CannotAttackError(str(error)) from error


def _check(seen: Sequence[Sequence[SeenStep]], first: SeenStep) -> None:
    """Refuse what the solver cannot use."""
    group, several = first.group, len(seen[0]) > 1
    if group["maximize"]:
        raise CannotAttackError(
            f"Expected clients that minimise their loss but {first.kind} has `maximize`: negate it."
        )
    if not first.is_sgd:
        return
    if any(steps[0].moving and group["momentum"] for steps in seen):
        raise CannotAttackError(
            f"Expected SGD without momentum of earlier rounds but optimizers are kept: {WHAT_ELSE}."
        )
    rates = sorted({step.group["lr"] for steps in seen for step in steps})
    if len(rates) > 1:
        raise CannotAttackError(
            f"Expected one learning rate in all steps of all clients but the schedule gave {rates[0]:.3g} to "
            f"{rates[-1]:.3g}: let it step by rounds (`schedule_interval: epoch`), or {WHAT_ELSE}."
        )
    odd = [name for name in ("nesterov", "dampening") if group[name]]
    if several and group["momentum"] and odd:
        raise CannotAttackError(
            f"Expected plain momentum in several local steps but SGD has `{odd[0]}`: take one step, or {WHAT_ELSE}."
        )
    if several and not (first.same_bias and first.same_norm):
        raise CannotAttackError(
            "Expected one parameter group for the final layer and the crafted norm in several local steps but their "
            f"settings differ: take one step, or {WHAT_ELSE}."
        )
