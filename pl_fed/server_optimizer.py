"""Server optimizers on the aggregated update.

Sashank Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, Algorithm 2; momentum on the
server is FedAvgM, Tzu-Ming Harry Hsu et al., arXiv 1909.06335.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.norms import is_statistic
from pl_fed.updates import AdapterState


class ServerOptimizer:
    """Moves the server's adapter along the aggregated update.

    The default is plain: the server takes the aggregate as it is, bit for bit.

    Args:
        name: ``sgd`` (with `momentum`: FedAvgM), ``adam`` or ``yogi``.
        lr: Server learning rate.
        momentum: Momentum of ``sgd``.
        betas: Decay of the first and second moments of ``adam`` and ``yogi``.
        tau: Degree of adaptivity: added to the root of the second moment, whose start is ``tau ** 2``.
    """

    def __init__(
        self,
        name: Literal["sgd", "adam", "yogi"] = "sgd",
        lr: float = 1.0,
        momentum: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> None:
        if not lr > 0:
            raise FederatedConfigError(f"Expected `server_optimizer.lr` above 0 but got {lr}.")
        if not 0 <= momentum < 1:
            raise FederatedConfigError(f"Expected `server_optimizer.momentum` in [0, 1) but got {momentum}.")
        if name not in ("sgd", "adam", "yogi"):
            raise FederatedConfigError(f"Expected `server_optimizer.name` out of sgd, adam and yogi but got `{name}`.")
        if momentum and name != "sgd":
            raise FederatedConfigError(
                f"Expected no `server_optimizer.momentum` with `{name}` but got {momentum}: set the first of `betas`."
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise FederatedConfigError(f"Expected `server_optimizer.betas` in [0, 1) but got {tuple(betas)}.")
        if not tau > 0:
            raise FederatedConfigError(f"Expected `server_optimizer.tau` above 0 but got {tau}.")
        self.name, self.lr, self.momentum, self.betas, self.tau = name, lr, momentum, betas, tau
        self.reset()

    @property
    def plain(self) -> bool:
        """Whether the server takes the aggregate as it is."""
        return self.name == "sgd" and self.lr == 1.0 and self.momentum == 0.0

    @property
    def kind(self) -> str:
        """What a checkpoint may not change: the name, and whether there is momentum."""
        return f"{self.name} with momentum" if self.momentum else self.name

    def reset(self) -> None:
        """Forget the moments."""
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def apply(self, before: AdapterState, aggregate: AdapterState) -> AdapterState:
        """Return the server's next adapter.

        Args:
            before: The adapter that was broadcast.
            aggregate: What the rule made of the updates.
        """
        if self.plain:
            return aggregate
        old, new = before.tensors(), aggregate.tensors()
        moved = {n: new[n] if is_statistic(n) else v + self._step(n, new[n] - v) for n, v in old.items()}
        return AdapterState.from_tensors(moved)

    def _step(self, name: str, update: Tensor) -> Tensor:
        if self.name == "sgd":
            moment = self._first.get(name, torch.zeros_like(update)).mul(self.momentum).add_(update)
            self._first[name] = moment
            return self.lr * moment
        beta1, beta2 = self.betas
        first = self._first.get(name, torch.zeros_like(update)).lerp(update, 1 - beta1)
        second = self._second.get(name, torch.full_like(update, self.tau**2))
        square = update.square()
        if self.name == "adam":
            second = second.lerp(square, 1 - beta2)
        else:
            second = second - (1 - beta2) * square * torch.sign(second - square)
        self._first[name], self._second[name] = first, second
        return self.lr * first / (second.sqrt() + self.tau)

    def state_dict(self) -> dict[str, Any]:
        """Return the kind and the moments."""
        return {"name": self.name, "kind": self.kind, "first": dict(self._first), "second": dict(self._second)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the moments on `device`.

        Raises:
            CheckpointMismatchError: If they are those of another kind of optimizer.
        """
        there = state.get("kind")
        if there is None:  # an older checkpoint
            there = state["name"] if state["first"] and state["name"] != self.name else self.kind
        if there != self.kind:
            raise CheckpointMismatchError(
                f"Expected a checkpoint with the server optimizer `{self.kind}` but got one with `{there}`: resume "
                "with the same `server_optimizer.name` and momentum, or start anew from the exported adapter."
            )
        self._first = {name: value.to(device) for name, value in state["first"].items()}
        self._second = {name: value.to(device) for name, value in state["second"].items()}
