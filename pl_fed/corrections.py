"""Corrections of a client's gradients against drift; each combines with any rule that does not say otherwise.

FedProx: Tian Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, eq. 2.
SCAFFOLD: Sai Praneeth Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378, Algorithm 1 with option II.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pl_fed.errors import FederatedConfigError


class Correction(ABC):
    """What is added to a client's gradients before each optimizer step (and before clipping).

    Attributes:
        has_controls: Whether clients and server exchange control variates.
    """

    has_controls: ClassVar[bool] = False

    @abstractmethod
    def correct(self, trained: Mapping[str, Tensor], start: Mapping[str, Tensor], drift: Mapping[str, Tensor]) -> None:
        """Change the gradients of `trained` in place.

        Args:
            trained: Live tensors by flat name.
            start: Their values when the client began.
            drift: The server's control variate minus the client's, with `has_controls`.
        """


@dataclass(frozen=True)
class FedProx(Correction):
    """The proximal term ``mu / 2 * |w - w_server|^2``.

    Args:
        mu: Its factor.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        """Check the factor."""
        if not self.mu >= 0:
            raise FederatedConfigError(f"Expected `mu` of FedProx of 0 or more but got {self.mu}.")

    def correct(self, trained: Mapping[str, Tensor], start: Mapping[str, Tensor], drift: Mapping[str, Tensor]) -> None:
        """Add ``mu * (w - w_server)``."""
        for name, value in trained.items():
            if value.grad is not None:
                value.grad.add_(value.detach() - start[name].to(value), alpha=self.mu)


@dataclass(frozen=True)
class Scaffold(Correction):
    """Control variates: every step goes along ``g - c_k + c``.

    A client's new variate is the mean of its uncorrected gradients in the round. With plain SGD that is option II,
    ``c_k - c + (x - y) / (steps * lr)``; it stays a gradient with any other local optimizer and schedule. The server's
    moves by the sum of the changes over the size of the population. Twice the bytes in both directions.
    """

    has_controls: ClassVar[bool] = True

    def correct(self, trained: Mapping[str, Tensor], start: Mapping[str, Tensor], drift: Mapping[str, Tensor]) -> None:
        """Add ``c - c_k``."""
        for name, value in trained.items():
            if value.grad is not None and name in drift:
                value.grad.add_(drift[name].to(value))
