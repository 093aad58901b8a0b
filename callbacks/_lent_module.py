"""A copy of a module to audit: what is done to it leaves the one in training alone."""

import copy
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from pl_fed._lightning import LightningModule, Trainer
from pl_fed.errors import FederatedConfigError


def lend(pl_module: LightningModule, trainer: Trainer) -> LightningModule:
    """Return a copy that logs nothing: also metrics and other state outside of parameters stay as they are."""
    if not pl_module.automatic_optimization:
        raise FederatedConfigError(
            f"Expected automatic optimization for LabelInferenceAttack but {type(pl_module).__name__} steps by itself: "
            "let `training_step` return the loss."
        )
    module = copy.deepcopy(pl_module, {id(trainer): trainer})  # the Trainer, with its data, is not copied
    module.trainer = trainer
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    module.log, module.log_dict = nothing, nothing  # type: ignore[method-assign]
    return module


def loss_of(module: LightningModule) -> Callable[[Any], Tensor]:
    """Return the loss of a batch as the module trains with it."""

    def loss(batch: Any) -> Tensor:
        output = module.training_step(batch, 0)
        return cast(Tensor, output["loss"] if isinstance(output, dict) else output)

    return loss
