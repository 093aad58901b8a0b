"""A copy of a module to audit: what is done to it leaves the one in training alone."""

import copy
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from pl_fed._lightning import LightningModule, Trainer
from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.errors import FederatedConfigError


def lend(pl_module: LightningModule, trainer: Trainer) -> LightningModule:
    """Return a copy that logs nothing: also metrics and other state outside of parameters stay as they are.

    Raises:
        FederatedConfigError: If the module steps by itself.
        CannotAttackError: If it has parameters that no batch has shaped yet.
    """
    if not pl_module.automatic_optimization:
        raise FederatedConfigError(
            f"Expected automatic optimization for LabelInferenceAttack but {type(pl_module).__name__} steps by itself: "
            "let `training_step` return the loss."
        )
    lazy = [name for name, p in pl_module.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise CannotAttackError(
            f"Expected parameters that have their shapes but `{lazy[0]}` is lazy until a batch has run: run the module "
            "on a batch before `fit`, or audit with `when: fit_end`."
        )
    module = copy.deepcopy(pl_module, {id(trainer): trainer})  # the Trainer, with its data, is not copied
    module.trainer = trainer
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    module.log, module.log_dict = nothing, nothing  # type: ignore[method-assign]
    return module


def labels_of(module: LightningModule, batch: Any, otherwise: Callable[[Any], Tensor]) -> Tensor:
    """Return the labels that the module's loss counts: those of its `audit_labels`, if it has that method.

    Args:
        module: The module.
        batch: What it trains on.
        otherwise: Finds the labels of a batch for any other module.
    """
    own: Callable[[Any], Tensor] | None = getattr(module, "audit_labels", None)
    return (own or otherwise)(batch)


def loss_of(module: LightningModule) -> Callable[[Any], Tensor]:
    """Return the loss of a batch as the module trains with it."""

    def loss(batch: Any) -> Tensor:
        output = module.training_step(batch, 0)
        return cast(Tensor, output["loss"] if isinstance(output, dict) else output)

    return loss
