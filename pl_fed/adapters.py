"""The adapter inside a network: finds PEFT's LoRA layers and other trained tensors, reads and writes them in place.

The parametrisation is that of `specs`: ``y = W x + scale * B diag(diagonal) A x``. PEFT computes ``B A x``; the
diagonal, where a rule wants one, is put on the output of the ``lora_A`` submodule, so that every kind of PEFT layer
(Linear, Conv1D, quantised) has it without a forward of its own.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.errors import FederatedConfigError
from pl_fed.norms import running_statistics
from pl_fed.updates import AdapterState, LayerState, Slots

ADAPTER_NAME = "default"
MERGED = "lora_merged"
"""Buffer of a LoRA layer with what a rule has merged into its base layer."""


class DiagonalLinear(nn.Linear):
    """A ``lora_A`` with a learnable diagonal on its output: ``diag(diagonal) A x``."""

    diagonal: nn.Parameter

    @classmethod
    def wrap(cls, linear: nn.Linear) -> "DiagonalLinear":
        """Return a layer that shares `linear`'s weight; the diagonal starts at one."""
        wrapped = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        wrapped.weight = linear.weight
        wrapped.diagonal = nn.Parameter(torch.ones_like(linear.weight[:, 0]))
        return wrapped

    def forward(self, x: Tensor) -> Tensor:
        """Apply A, then the diagonal."""
        return F.linear(x, self.weight) * self.diagonal


def _apply_merged(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    layer = cast(LoraLayer, module)
    if layer.disable_adapters:
        return output
    merged = cast(Tensor, getattr(module, MERGED))
    change = F.linear(inputs[0].to(merged.dtype), merged).to(output.dtype)
    return torch.add(output, change, alpha=float(layer.scaling[ADAPTER_NAME]))


def _has_factors(name: str, layer: LoraLayer) -> bool:
    if ADAPTER_NAME not in layer.lora_A and ADAPTER_NAME not in layer.lora_embedding_A:
        return False
    factor: Any = (layer.lora_A if ADAPTER_NAME in layer.lora_A else layer.lora_embedding_A)[ADAPTER_NAME]
    shape = tuple(getattr(factor, "weight", factor).shape)
    if len(shape) != 2 or ADAPTER_NAME not in layer.lora_A:
        raise FederatedConfigError(
            f"Expected LoRA on linear layers but `{name}` of class {type(layer).__name__} has a factor of shape "
            f"{shape}: take it out of `lora.target_modules`."
        )
    return True


@dataclass(frozen=True)
class AdapterLayer:
    """One adapted layer: live views of its factors."""

    name: str
    module: LoraLayer

    @property
    def a(self) -> nn.Parameter:
        """Factor A, (rank, d_in)."""
        return cast(nn.Parameter, self.module.lora_A[ADAPTER_NAME].weight)

    @property
    def b(self) -> nn.Parameter:
        """Factor B, (d_out, rank)."""
        return cast(nn.Parameter, self.module.lora_B[ADAPTER_NAME].weight)

    @property
    def diagonal(self) -> nn.Parameter | None:
        """The learnable diagonal, (rank,), or None."""
        return getattr(self.module.lora_A[ADAPTER_NAME], "diagonal", None)

    @property
    def scale(self) -> float:
        """The constant in front of ``B A x``."""
        return float(self.module.scaling[ADAPTER_NAME])

    @property
    def merged(self) -> Tensor | None:
        """What a rule has merged into the base layer, (d_out, d_in), or None."""
        return getattr(self.module, MERGED, None)


class Adapter:
    """The federated tensors of a network, bound to its parameters.

    Args:
        network: Any module. With PEFT LoRA layers, their factors and every other trainable parameter are federated;
            without, all trainable parameters are (plain federated averaging). Running statistics of normalisation
            layers go with them.

    Raises:
        FederatedConfigError: If a LoRA layer is no linear one (a convolution), or statistics are cumulative.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: dict[str, AdapterLayer] = {}
        self._names: dict[str, str] = {}  # parameter name -> flat name of `AdapterState.tensors`
        for name, module in network.named_modules():
            if isinstance(module, LoraLayer) and _has_factors(name, module):
                self.layers[name] = AdapterLayer(name, module)
                self._names[f"{name}.lora_A.{ADAPTER_NAME}.weight"] = f"{name}/a"
                self._names[f"{name}.lora_B.{ADAPTER_NAME}.weight"] = f"{name}/b"
                if self.layers[name].merged is not None:
                    self._names[f"{name}.{MERGED}"] = f"{name}/merged"
        self.dense: dict[str, Tensor] = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and name not in self._names and not name.endswith("lora_A.default.diagonal")
        }
        self.dense.update(running_statistics(network))
        self._names.update({name: name for name in self.dense})

    @property
    def rank(self) -> int:
        """The server's rank: the largest number of slots of any layer; 0 without low-rank layers."""
        return max((layer.a.shape[0] for layer in self.layers.values()), default=0)

    @property
    def num_dense(self) -> int:
        """Number of trained parameters outside the low-rank layers."""
        return sum(value.numel() for value in self.dense.values() if value.requires_grad)

    def parameters(self) -> list[Tensor]:
        """Return every federated tensor and diagonal, in a fixed order."""
        return list(self.live().values())

    def same_parameters(self, other: "Adapter") -> bool:
        """Tell whether two adapters are bound to the same network."""
        return list(map(id, self.parameters())) == list(map(id, other.parameters()))

    def read(self) -> AdapterState:
        """Return the current values; they share memory with the parameters."""
        layers = {name: LayerState(layer.a.detach(), layer.b.detach()) for name, layer in self.layers.items()}
        merged = {name: layer.merged for name, layer in self.layers.items() if layer.merged is not None}
        return AdapterState(layers, {name: parameter.detach() for name, parameter in self.dense.items()}, merged)

    def diagonals(self) -> dict[str, Tensor]:
        """Return the current diagonals by layer; they share memory with the parameters."""
        found = {name: layer.diagonal for name, layer in self.layers.items()}
        return {name: diagonal.detach() for name, diagonal in found.items() if diagonal is not None}

    def live(self) -> dict[str, Tensor]:
        """Return what `parameters` has, under the names of `AdapterState.tensors` and ``<layer>/diagonal``."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            parts = {"a": layer.a, "b": layer.b, "diagonal": layer.diagonal}
            found.update({f"{name}/{side}": value for side, value in parts.items() if value is not None})
        return {**found, **self.dense}

    def trained(self) -> dict[str, Tensor]:
        """Return those of `live` that have gradients now."""
        return {name: value for name, value in self.live().items() if value.requires_grad}

    @torch.no_grad()
    def write(self, state: AdapterState, slots: Slots | None = None) -> None:
        """Copy values into the network and reset the diagonals.

        Args:
            state: New values at the server's rank.
            slots: Slots whose diagonal becomes 1; the others become 0, which with zero factors keeps them and their
                gradients exactly zero. None means all slots.
        """
        for name, value in state.merged.items():
            merged = self.layers[name].merged
            if merged is not None and not torch.equal(merged, value.to(merged)):  # large, and seldom changed
                merged.copy_(value)
        pairs = [(value, state.dense[name]) for name, value in self.dense.items()]
        for name, layer in self.layers.items():
            pairs += [(layer.a, state.layers[name].a), (layer.b, state.layers[name].b)]
        torch._foreach_copy_([live for live, _ in pairs], [new for _, new in pairs])
        for name, diagonal in self.diagonals().items():
            if slots is None:
                diagonal.fill_(1.0)
            else:
                diagonal.zero_().index_fill_(0, slots[name], 1.0)

    def add_diagonals(self) -> None:
        """Give every layer a learnable diagonal, once."""
        for layer in self.layers.values():
            if layer.diagonal is None:
                linear = cast(nn.Linear, layer.module.lora_A[ADAPTER_NAME])
                layer.module.lora_A[ADAPTER_NAME] = DiagonalLinear.wrap(linear)

    def add_merged(self) -> None:
        """Give every layer a buffer (d_out, d_in) that acts as if merged into its base layer, once; it starts at zero.

        It is added to the output instead of the base weight, which may be quantised and stays as it was loaded.
        """
        for name, layer in self.layers.items():
            if layer.merged is None:
                module = cast(nn.Module, layer.module)
                module.register_buffer(MERGED, layer.a.new_zeros(layer.b.shape[0], layer.a.shape[1]))
                module.register_forward_hook(_apply_merged)
            self._names[f"{name}.{MERGED}"] = f"{name}/merged"

    def set_trainable(self, sides: frozenset[str]) -> None:
        """Choose which low-rank parts get gradients: any of ``a``, ``b``, ``diagonal``. Dense tensors always do."""
        for layer in self.layers.values():
            layer.a.requires_grad_("a" in sides)
            layer.b.requires_grad_("b" in sides)
            if layer.diagonal is not None:
                layer.diagonal.requires_grad_("diagonal" in sides)

    def named_tensors(self, state: AdapterState) -> dict[str, Tensor]:
        """Return a state's tensors under the network's parameter names, for `state_dict`."""
        flat = state.tensors()
        return {name: flat[flat_name] for name, flat_name in self._names.items()}

    def check_scale(self) -> None:
        """Refuse layers of unlike scale: with them the aggregate is no weighted sum of the clients' updates.

        Raises:
            FederatedConfigError: If the layers' scales differ.
        """
        scales = {layer.scale for layer in self.layers.values()}
        if len(scales) > 1:
            raise FederatedConfigError(
                f"Expected one LoRA scale for all layers but got {sorted(scales)}: do not use `alpha_pattern` or "
                "`rank_pattern`; unequal ranks are the clients' (`clients.ranks`)."
            )
