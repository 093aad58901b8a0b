"""What a server may send besides the federated tensors: new values for frozen ones, to a single client.

An honest server never does, since its clients have the base model already. It is how a base model with one changed
normalisation layer reaches a client in an audit, and what model binding and local norm layers refuse.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pl_fed.errors import FederatedConfigError
from pl_fed.norms import STATISTICS

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # batch and instance norm share a base


def norm_names(network: nn.Module) -> frozenset[str]:
    """Return the names of all parameters and running statistics of normalisation layers.

    A layer is one by its class, or by a class name that ends in ``Norm``, as models of their own have them.

    Example:
        >>> sorted(norm_names(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))))
        ['1.bias', '1.weight']
    """
    found = set()
    for name, module in network.named_modules():
        if isinstance(module, NORMS) or type(module).__name__.endswith("Norm"):
            own = [key for key, _ in module.named_parameters(recurse=False)]
            own += [key for key in STATISTICS if isinstance(getattr(module, key, None), Tensor)]
            found |= {f"{name}.{key}".lstrip(".") for key in own}
    return frozenset(found)


@dataclass
class FrozenTensors:
    """The frozen parameters of a network, and what the current client has in their place.

    Args:
        tensors: The live parameters by name.
        sent: Values that the current client was sent.
        norms: Names of the network's tensors, frozen or not, that belong to normalisation layers.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    sent: dict[str, Tensor] = field(default_factory=dict)
    norms: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Begin with nothing put aside."""
        self.own: dict[str, Tensor] = {}  # put aside while the client's values are in

    @classmethod
    def of(cls, network: nn.Module, federated: Collection[str]) -> "FrozenTensors":
        """Collect the parameters without gradient that are not federated."""
        own = {n: p for n, p in network.named_parameters() if not p.requires_grad and n not in federated}
        return cls(own, norms=norm_names(network))

    def put(self, sent: Mapping[str, Tensor]) -> None:
        """Let the current client have these values until `restore`.

        Raises:
            FederatedConfigError: If there is no such frozen tensor, or it has another shape.
        """
        for name, value in sent.items():
            known = self.tensors.get(name)
            if known is None or known.shape != value.shape:
                shape = "no such tensor" if known is None else f"shape {tuple(known.shape)}"
                raise FederatedConfigError(
                    f"Expected a frozen tensor of the base model in `Broadcast.base` but got `{name}` of shape "
                    f"{tuple(value.shape)}, where the model has {shape}: send federated tensors as `layers` or `dense`."
                )
        self.sent = dict(sent)
        self.resume()

    @torch.no_grad()
    def resume(self) -> None:
        """Put the client's values in; twice is once."""
        for name, value in self.sent.items():
            self.own.setdefault(name, self.tensors[name].detach().clone())
            self.tensors[name].copy_(value)

    @torch.no_grad()
    def suspend(self) -> None:
        """Put the base model's own values back for a while; twice is once."""
        for name, value in self.own.items():
            self.tensors[name].copy_(value)
        self.own = {}

    def restore(self) -> None:
        """Put the base model's own values back, and forget the client's."""
        self.suspend()
        self.sent = {}
