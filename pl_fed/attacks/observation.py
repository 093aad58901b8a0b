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
        if not isinstance(self.steps, int) or self.steps < 1 or not 0 < self.lr < math.inf:
            raise FederatedConfigError(
                "Expected whole `local.steps` of 1 or more and a finite `local.lr` above 0 but got "
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
        self._check_models()
        weight, bias, expected = self.aggregate.weight, self.aggregate.bias, self.models.head_weight.shape
        if weight.shape != expected or (bias is not None and bias.shape != expected[:1]):
            also = "" if bias is None else f" and a bias of {tuple(bias.shape)}"
            raise FederatedConfigError(
                f"Expected an aggregate of the head's shape {tuple(expected)} but got {tuple(weight.shape)}{also}: "
                "give the update of the layer that the models were crafted for."
            )
        self._check_round()
        if not bool(torch.isfinite(self.aggregate.flat()).all()):
            raise CannotAttackError("Expected a finite aggregate but it has NaN or infinite values: training diverged.")

    def _check_models(self) -> None:
        num_models, width = (*self.models.betas.shape, 0, 0)[:2]
        num_classes, num_features = (*self.models.head_weight.shape, 0, 0)[:2]
        shapes = {
            "betas": (num_models, width),
            "embeddings": (num_models, num_features),
            "logits": (num_models, num_classes),
            "head_weight": (num_classes, num_features),
            "head_bias": (num_classes,),
            "jacobians": (num_models, num_features, width),
        }
        for name, shape in shapes.items():
            if (tensor := getattr(self.models, name)) is None:
                continue
            if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
                found = tuple(tensor.shape) if tuple(tensor.shape) != shape else "NaN or infinite values"
                raise FederatedConfigError(
                    f"Expected finite `{name}` of shape {shape} in the crafted models but got {found}: give all that "
                    "`make_models` returned."
                )

    def _check_round(self) -> None:
        models, weights, sizes = self.round.assignment, self.round.weights, self.round.batch_sizes
        for name, values in (("assignment", models), ("batch_sizes", sizes)):
            if values is None:
                continue
            if values.dim() != 1 or values.is_floating_point() or bool((values < 0).any()):
                raise FederatedConfigError(
                    f"Expected `{name}` to be a whole number of 0 or more for each client but got {values.tolist()}: "
                    "give one row of integers."
                )
        num_clients, num_models = len(models), len(self.models.logits)
        if num_clients < 1 or weights.shape != (num_clients,) or (sizes is not None and len(sizes) != num_clients):
            raise FederatedConfigError(
                "Expected a model, a weight and a batch size for each of one or more clients but got "
                f"{num_clients}, {weights.numel()} and {'none' if sizes is None else len(sizes)}."
            )
        if not 0 <= int(models.min()) <= int(models.max()) < num_models:
            raise FederatedConfigError(
                f"Expected `assignment` to number the {num_models} crafted models from 0 but got {models.tolist()}."
            )
        if not 0 < float(weights.min()) <= float(weights.max()) < math.inf:
            raise FederatedConfigError(
                f"Expected finite `weights` above 0 but got {weights.tolist()}: leave out clients that did not arrive."
            )
