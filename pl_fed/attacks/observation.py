"""All that the server of a round sees: the sum of the clients' head updates, its own models, and public settings."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.errors import FederatedConfigError

Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True)
class LocalSteps:
    """The clients' local training, which the server sets.

    Args:
        steps: Optimizer steps between download and upload, each on a batch of its own.
        lr: Learning rate.
        momentum: Momentum of SGD.
        weight_decay: Weight decay (L2, as in `torch.optim.SGD`) of all trained parameters.
        optimizer: ``sgd`` or ``adam``; the attack inverts Adam roughly and says so.

    Example:
        >>> LocalSteps(steps=2, lr=0.5, momentum=0.5).total  # 0.5 * (1 + (1 + 0.5))
        1.25
    """

    steps: int = 1
    lr: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: Optimizer = "sgd"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 1 or not 0 < self.lr < math.inf:
            raise FederatedConfigError(
                "Expected `local.steps` of 1 or more and a finite `local.lr` above 0 but got "
                f"{self.steps} and {self.lr}."
            )
        if not 0.0 <= self.momentum < 1.0 or not 0 <= self.weight_decay < math.inf:
            raise FederatedConfigError(
                "Expected `local.momentum` in [0, 1) and `local.weight_decay` of 0 or more but got "
                f"{self.momentum} and {self.weight_decay}."
            )
        if self.optimizer not in get_args(Optimizer):
            raise FederatedConfigError(
                f"Expected `local.optimizer` out of {get_args(Optimizer)} but got `{self.optimizer}`."
            )

    @property
    def total(self) -> float:
        """How far a constant gradient of size 1 moves a parameter in all steps."""
        velocity = moved = 0.0
        for _ in range(self.steps):
            velocity = self.momentum * velocity + 1.0
            moved += self.lr * velocity
        return moved


@dataclass(frozen=True)
class HeadUpdate:
    """After minus before of the final layer: of one client, or the weighted sum over those of a round.

    Args:
        weight: Update of the weight.
        bias: Update of the bias; None if there is none or it is not trained.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None

    def flat(self) -> Float[Tensor, " params"]:
        """Return both as the one vector that secure aggregation sums."""
        parts = [self.weight.flatten()] + ([] if self.bias is None else [self.bias])
        return torch.cat(parts)

    def unflatten(self, vector: Float[Tensor, " params"]) -> "HeadUpdate":
        """Return a vector in the shapes of this update."""
        weight, bias = vector[: self.weight.numel()], vector[self.weight.numel() :]
        return HeadUpdate(weight.reshape(self.weight.shape), None if self.bias is None else bias)


@dataclass(frozen=True)
class PublicRound:
    """What every participant of a round knows.

    Args:
        assignment: Which crafted model each client whose update arrived was sent.
        weights: Each client's factor in the sum.
        batch_sizes: Each client's number of labels, over all its steps; None if the server does not know them.
        local: The local training.
        loss: The loss.
        scale_known: False if clients clip their updates or choose their learning rate.
        one_label_each: Whether the task gives every sample one label, also where the loss would take several or none.
    """

    assignment: Int[Tensor, " clients"]
    weights: Float[Tensor, " clients"]
    batch_sizes: Int[Tensor, " clients"] | None
    local: LocalSteps = field(default_factory=LocalSteps)
    loss: LossSpec = field(default_factory=LossSpec)
    scale_known: bool = True
    one_label_each: bool = False

    @property
    def counts_sum_to_batch(self) -> bool:
        """Whether a client's counts add up to its batch size."""
        return self.one_label_each or self.loss.counts_sum_to_batch


@dataclass(frozen=True)
class Observation:
    """The server's whole view of a round, and the only argument of the attack.

    Args:
        aggregate: The weighted sum of the clients' head updates.
        models: The crafted models, as numbers.
        round: The public settings.
    """

    aggregate: HeadUpdate
    models: FishingModels
    round: PublicRound

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            FederatedConfigError: If they are not of one round.
            CannotAttackError: If the sum is not finite.
        """
        found, expected = self.aggregate.weight.shape, self.models.head_weight.shape
        if found != expected:
            raise FederatedConfigError(
                f"Expected an aggregate of the head's shape {tuple(expected)} but got {tuple(found)}: give the update "
                "of the layer that the models were crafted for."
            )
        self._check_round()
        if not bool(torch.isfinite(self.aggregate.flat()).all()):
            raise CannotAttackError("Expected a finite aggregate but it has NaN or infinite values: training diverged.")

    def _check_round(self) -> None:
        models, weights, sizes = self.round.assignment, self.round.weights, self.round.batch_sizes
        num_clients, num_models = len(models), len(self.models.logits)
        if num_clients < 1 or len(weights) != num_clients or (sizes is not None and len(sizes) != num_clients):
            raise FederatedConfigError(
                "Expected a model, a weight and a batch size for each of one or more clients but got "
                f"{num_clients}, {len(weights)} and {'none' if sizes is None else len(sizes)}."
            )
        if not 0 <= int(models.min()) <= int(models.max()) < num_models:
            raise FederatedConfigError(
                f"Expected `assignment` to number the {num_models} crafted models from 0 but got {models.tolist()}."
            )
        if not 0 < float(weights.min()) <= float(weights.max()) < math.inf:
            raise FederatedConfigError(
                f"Expected finite `weights` above 0 but got {weights.tolist()}: leave out clients that did not arrive."
            )
