"""A client between broadcast and upload, as the round driver keeps it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pl_fed.context import ClientContext
from pl_fed.controls import ClientControl
from pl_fed.updates import AdapterState


@dataclass
class ClientInProgress:
    """A client in training.

    Args:
        client: What hooks see of it.
        before: What it started from.
        start: The same by flat name, for a correction of gradients; else nothing.
        digest: Hash of what it received, with secure aggregation.
        step: Its batches that were trained.
        control: Its control variate in this round, with SCAFFOLD.
    """

    client: ClientContext
    before: AdapterState = field(default_factory=AdapterState)
    start: dict[str, Tensor] = field(default_factory=dict)
    digest: str = ""
    step: int = 0
    control: ClientControl = field(default_factory=ClientControl)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives, without `start`."""
        return {
            "client": self.client.state_dict(),
            "before": self.before.tensors(),
            "digest": self.digest,
            "step": self.step,
            "control": self.control.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "ClientInProgress":
        """Rebuild a client on `device`; `start` is empty."""
        slots = {name: ids.to(device) for name, ids in state["client"]["slots"].items()}
        return cls(
            ClientContext(**{**state["client"], "slots": slots}),
            AdapterState.from_tensors({name: value.to(device) for name, value in state["before"].items()}),
            digest=state["digest"],
            step=state["step"],
            control=ClientControl.from_state_dict(state["control"], device),
        )
