"""Finds the normalisation layer through which everything runs on its way to the final linear layer.

Follows Zhibo Wang et al., "Breaking Secure Aggregation: Label Leakage from Aggregated Gradients in Federated Learning",
INFOCOM 2024, arXiv 2406.15731, re-implemented from the abstract; the search is derived. A layer whose output no longer
depends on the sample (weight 0) makes the input of the final layer equal for all samples iff it is a cut vertex.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pl_fed.attacks.preserve import capture_input, preserved
from pl_fed.errors import FederatedConfigError

Forward = Callable[[], object]  # runs the module on some batch of at least two different samples
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)  # batch and instance norm share a base
SPREAD = 1e-5  # relative; what rounding may leave


class CannotAttackError(FederatedConfigError):
    """The attack does not apply to a module; the message says why. Not the same as being safe from other attacks."""


@dataclass(frozen=True)
class Target:
    """Where a module can be fished.

    Args:
        head: The final linear layer.
        head_name: Its name in the module.
        norm: The last normalisation layer that is a cut vertex.
        norm_name: Its name in the module.
        cut_norms: The names of all such layers, in the order in which they run.
    """

    head: nn.Linear
    head_name: str
    norm: nn.Module
    norm_name: str
    cut_norms: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of biases that can be chosen: channels, not features."""
        bias = self.norm.bias
        assert isinstance(bias, Tensor)
        return bias.numel()

    @property
    def head_bias(self) -> nn.Parameter | None:
        """The final layer's bias if it exists and is trained."""
        bias: nn.Parameter | None = self.head.bias
        return bias if bias is not None and bias.requires_grad else None


def find_target(module: nn.Module, forward: Forward) -> Target:
    """Return the final linear layer and the last cut norm; the module comes back as it was.

    Args:
        module: Any module that ends in an `nn.Linear`.
        forward: Runs it on a batch, for example of noise.

    Raises:
        CannotAttackError: If there is no trained linear head, or no affine norm layer cuts the way to it.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        >>> find_target(net, lambda: net(torch.randn(5, 3))).norm_name
        '1'
    """
    with preserved(module), torch.no_grad():
        module.eval()
        torch.manual_seed(0)
        order = _running_order(module, forward)
        head_name, head = _head(module, order)
        if _spread(head, forward) <= SPREAD:
            raise CannotAttackError(
                f"Expected an input of the final layer `{head_name}` that depends on the sample but it is the same for "
                "all of the batch: give two or more different samples, or train the module a little."
            )
        norms = [(name, part) for name, part in order if isinstance(part, NORMS) and _is_affine(part)]
        cuts = [(name, norm) for name, norm in norms if _cuts(norm, head, forward)]
    if not cuts:
        raise CannotAttackError(_why_none(module, [name for name, _ in norms], head_name))
    return Target(head, head_name, cuts[-1][1], cuts[-1][0], tuple(name for name, _ in cuts))


def _running_order(module: nn.Module, forward: Forward) -> list[tuple[str, nn.Module]]:
    """Return the parts with parameters of their own in the order in which they last began to run."""
    ran: dict[str, nn.Module] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, *_: object) -> None:
            ran.pop(name, None)
            ran[name] = part

        return hook

    own = [(name, part) for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))]
    handles = [part.register_forward_pre_hook(note(name)) for name, part in own]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return list(ran.items())


def _head(module: nn.Module, order: list[tuple[str, nn.Module]]) -> tuple[str, nn.Linear]:
    if not order or not isinstance(order[-1][1], nn.Linear):
        last = f"`{order[-1][0]}`, a {type(order[-1][1]).__name__}" if order else "nothing that ran"
        raise CannotAttackError(f"Expected an nn.Linear as the last layer with parameters but got {last}.")
    name, head = order[-1]
    assert isinstance(head, nn.Linear)
    if "lora_" in name:
        raise CannotAttackError(f"Expected a final layer that is trained as it is but `{name}` is a LoRA factor of it.")
    if not head.weight.requires_grad:
        raise CannotAttackError(f"Expected a trained final layer but `{name}` is frozen: no gradient of it is sent.")
    if head.out_features < 2:
        raise CannotAttackError(f"Expected two or more classes but `{name}` has one output, as in regression.")
    if sum(p is head.weight for part in module.modules() for p in part._parameters.values()) > 1:
        raise CannotAttackError(f"Expected a weight of `{name}` of its own but another layer shares it (tied weights).")
    return name, head


def _is_affine(norm: nn.Module) -> bool:
    return isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)


def _spread(head: nn.Module, forward: Forward) -> float:
    """Return the largest difference between samples at the head's input, relative to its size."""
    with capture_input(head) as seen:
        forward()
    rows = seen[-1].detach().float().flatten(0, -2)  # (samples or tokens, features)
    if not bool(torch.isfinite(rows).all()):
        return float("inf")
    return float((rows - rows[:1]).abs().max() / rows.abs().max().clamp(min=1e-12))


def _cuts(norm: nn.Module, head: nn.Module, forward: Forward) -> bool:
    weight, bias = norm.weight, norm.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    before = weight.clone(), bias.clone()
    weight.zero_()
    bias.copy_(torch.rand_like(bias) + 0.5)  # positive, so that no ReLU hides what else arrives
    spread = _spread(head, forward)
    weight.copy_(before[0])
    bias.copy_(before[1])
    return spread <= SPREAD


def _why_none(module: nn.Module, affine: list[str], head_name: str) -> str:
    if affine:
        return (
            f"Expected a normalisation layer through which every path to `{head_name}` runs but none of {affine} is "
            "one: a residual connection passes each by."
        )
    found = sorted({type(part).__name__ for part in module.modules() if "norm" in type(part).__name__.lower()})
    if any("rms" in name.lower() for name in found):
        return f"Expected a normalisation layer with a bias but got only {', '.join(found)}: its output cannot be set."
    if found:
        return f"Expected a normalisation layer with weight and bias but got only {', '.join(found)} without them."
    return "Expected a normalisation layer but the module has none."
