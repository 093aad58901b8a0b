"""The mean gradient of a loss at the logits when all samples share them, and its inverse: the label mix.

Derived. With equal logits z in a batch, the mean gradient depends on the labels only through their mix n / B, and every
loss here can be solved for it in closed form. The definitions are those of `torch.nn.functional.cross_entropy` and
`binary_cross_entropy_with_logits` with ``reduction="mean"``.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.errors import FederatedConfigError

LossName = Literal["cross_entropy", "bce_with_logits"]


@dataclass(frozen=True)
class LossSpec:
    """The loss that the clients train with; it is part of the public training script.

    Args:
        name: ``cross_entropy`` over softmax, or ``bce_with_logits`` over one-hot or multi-hot targets.
        label_smoothing: Share of every target that is spread over all classes; cross-entropy only.
        class_weights: Weight of each class (cross-entropy) or of its positives (``pos_weight`` of BCE).

    Example:
        >>> z, mix = torch.zeros(4, dtype=torch.float64), torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
        >>> loss = LossSpec(label_smoothing=0.1)
        >>> loss.label_mix(z, loss.mean_gradient(z, mix)).round(decimals=4).abs()
        tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.name not in get_args(LossName):
            raise FederatedConfigError(f"Expected `loss.name` out of {get_args(LossName)} but got `{self.name}`.")
        if not 0.0 <= self.label_smoothing < 1.0 or (self.label_smoothing and self.name != "cross_entropy"):
            raise FederatedConfigError(
                "Expected `loss.label_smoothing` in [0, 1), and 0 with `bce_with_logits`, but got "
                f"{self.label_smoothing} with `{self.name}`."
            )
        if self.class_weights is not None and not all(0 < w < math.inf for w in self.class_weights):
            raise FederatedConfigError(
                f"Expected positive `loss.class_weights` but got {self.class_weights}: a class of weight 0 leaves no "
                "trace in a gradient."
            )

    @property
    def counts_sum_to_batch(self) -> bool:
        """Whether every sample has exactly one label; BCE also takes several or none."""
        return self.name == "cross_entropy"

    def mean_gradient(
        self, logits: Float[Tensor, "*n classes"], mix: Float[Tensor, "*n classes"]
    ) -> Float[Tensor, "*n classes"]:
        """Return dL/dz of a batch with these shared logits and this label mix (counts over batch size)."""
        weights, num_classes = self._weights(logits), logits.shape[-1]
        if self.name == "bce_with_logits":
            p = torch.sigmoid(logits)
            return (p - mix * (p + weights * (1 - p))) / num_classes
        p, smoothing = torch.softmax(logits, -1), self.label_smoothing
        inverse = 1 / (mix * weights).sum(-1, keepdim=True)  # B over the summed weights of the labels
        smooth = (weights.sum() * p - weights) / num_classes
        return (1 - smoothing) * (p - mix * weights * inverse) + smoothing * inverse * smooth

    def label_mix(
        self, logits: Float[Tensor, "*n classes"], gradient: Float[Tensor, "*n classes"]
    ) -> Float[Tensor, "*n classes"]:
        """Invert `mean_gradient`; noise in the gradient may give entries below 0."""
        above, below = self.mix_fraction(logits, gradient)
        return above / below

    def mix_fraction(
        self, logits: Float[Tensor, "*n classes"], gradient: Float[Tensor, "*n classes"]
    ) -> tuple[Float[Tensor, "*n classes"], Float[Tensor, "*n classes"]]:
        """Return numerator and denominator of the label mix; each is an affine function of the gradient."""
        weights, num_classes = self._weights(logits), logits.shape[-1]
        if self.name == "bce_with_logits":
            p = torch.sigmoid(logits)
            return p - num_classes * gradient, p + weights * (1 - p)
        p, smoothing = torch.softmax(logits, -1), self.label_smoothing
        if self.class_weights is None:  # nothing is divided by a sum, which noise or Adam may take through 0
            return p - gradient - smoothing / num_classes, torch.full_like(p, 1 - smoothing)
        # The weighted mix is a + inverse * b, and its sum over 1 / weights is `inverse` again: one linear equation.
        a = p - gradient / (1 - smoothing)
        b = smoothing / (1 - smoothing) / num_classes * (weights.sum() * p - weights)
        inverse = (a / weights).sum(-1, keepdim=True) / (1 - (b / weights).sum(-1, keepdim=True))
        return a + inverse * b, weights * inverse

    def _weights(self, like: Tensor) -> Tensor:
        if self.class_weights is None:
            return torch.ones(like.shape[-1], dtype=like.dtype, device=like.device)
        if len(self.class_weights) != like.shape[-1]:
            raise FederatedConfigError(
                f"Expected {like.shape[-1]} `loss.class_weights`, one a class, but got {len(self.class_weights)}."
            )
        return torch.tensor(self.class_weights, dtype=like.dtype, device=like.device)
