"""How far scores are off: RMSE and RMAE, as functions and over batches."""

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError


def rmse(preds: Num[Tensor, " images"], target: Num[Tensor, " images"]) -> Float[Tensor, ""]:
    r"""Return the root of the mean squared error; nan of nothing.

    .. math:: \sqrt{\tfrac1n \sum_i (x_i - y_i)^2}

    Args:
        preds: Scores.
        target: Scores of the same images.
    """
    return (preds.double() - target.double()).square().mean().sqrt()


def rmae(preds: Num[Tensor, " images"], target: Num[Tensor, " images"]) -> Float[Tensor, ""]:
    r"""Return the root of the mean absolute error; nan of nothing.

    .. math:: \sqrt{\tfrac1n \sum_i |x_i - y_i|}

    Args:
        preds: Scores.
        target: Scores of the same images.

    Example:
        >>> float(rmae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.0])))
        0.5
    """
    return (preds.double() - target.double()).abs().mean().sqrt()


class RootMeanSquaredError(MeanSquaredError):
    """RMSE of all batches."""

    def __init__(self) -> None:
        super().__init__(squared=False)

    def compute(self) -> Tensor:
        """Return the error; nan before the first batch."""
        return super().compute() if self.total else torch.tensor(float("nan"))


class RootMeanAbsoluteError(MeanAbsoluteError):
    """RMAE of all batches."""

    def compute(self) -> Tensor:
        """Return the error; nan before the first batch."""
        return super().compute().sqrt() if self.total else torch.tensor(float("nan"))
