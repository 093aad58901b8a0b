"""From the name of an architecture to a network: one of ours, a class path, or one of timm's."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pl_fed.errors import FederatedConfigError

# short names of our own; any other network goes by its class path
NAMES = {
    "small_cnn": "pl_fed.modules.networks.small_cnn.SmallCNN",
    "icnet": "pl_fed.modules.networks.icnet.ICNet",
    "groupnorm_cnn": "pl_fed.modules.networks.groupnorm_cnn.GroupNormCNN",
    "lenet": "pl_fed.modules.networks.lenet.LeNet",
    "vgg": "pl_fed.modules.networks.vgg.VGG",
    "preact_resnet": "pl_fed.modules.networks.preact_resnet.PreActResNet",
    "vit": "pl_fed.modules.networks.vit.TinyViT",
}
TIMM = "timm:"


def build_network(
    architecture: str,
    in_channels: int,
    image_size: tuple[int, int],
    num_labels: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return a network that maps images (batch, channels, height, width) to scores (batch, labels).

    Args:
        architecture: A name of `NAMES`, the class path of a `torch.nn.Module`, or ``timm:`` and a model of timm.
        in_channels: Channels of an image.
        image_size: Height and width of an image.
        num_labels: Number of classes.
        options: More arguments of the network's constructor.

    Raises:
        FederatedConfigError: If there is no such network or it cannot be made of these arguments.

    Example:
        >>> network = build_network("small_cnn", 1, (28, 28), 10, {"width": 8})
        >>> type(network).__name__
        'SmallCNN'
    """
    known: dict[str, Any] = {"in_channels": in_channels, "image_size": image_size, "num_labels": num_labels}
    make, arguments = _maker(architecture, known)
    if doubled := sorted(set(options) & {*known, *arguments}):
        raise FederatedConfigError(
            f"Expected `network.options` without {doubled}, which comes from the data or has a setting: take it out."
        )
    try:
        network: nn.Module = make(**arguments, **options)
    except (TypeError, RuntimeError) as error:
        raise FederatedConfigError(
            f"Expected `architecture`='{architecture}' to be made of {arguments} and {dict(options)} but got: {error}. "
            "Change `network.options`."
        ) from error
    _try(network, architecture, (in_channels, *image_size), num_labels)
    return network


def _maker(architecture: str, known: Mapping[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Return what makes a network, and what it is told of the data."""
    if architecture.startswith(TIMM):
        name = architecture.removeprefix(TIMM)
        return _timm(), {"model_name": name, "in_chans": known["in_channels"], "num_classes": known["num_labels"]}
    make = find_network(architecture)
    accepted = inspect.signature(make).parameters
    return make, {name: value for name, value in known.items() if name in accepted}


@torch.no_grad()
def _try(network: nn.Module, architecture: str, shape: tuple[int, int, int], num_labels: int) -> None:
    """Run a network once on a black image: what is wrong with its shapes is said before any training."""
    device = next((parameter.device for parameter in network.parameters()), None)
    was_training = network.training
    try:
        found = tuple(network.eval()(torch.zeros(1, *shape, device=device)).shape)
    except (RuntimeError, ValueError) as error:
        raise FederatedConfigError(
            f"Expected `architecture`='{architecture}' to take images of (channels, height, width) = {shape} but got: "
            f"{error}. Change `network.options`, or resize the images."
        ) from error
    finally:
        network.train(was_training)
    if found != (1, num_labels):
        raise FederatedConfigError(
            f"Expected `architecture`='{architecture}' to give scores of shape (1, {num_labels}) for one image but got "
            f"{found}: let its constructor take `num_labels`, or set `network.options`."
        )


def find_network(architecture: str) -> Any:
    """Return the class of a network by its short name or its class path.

    Raises:
        FederatedConfigError: If there is no such class, or it is no network.
    """
    module, _, name = NAMES.get(architecture, architecture).rpartition(".")
    reason = ""
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        found, reason = None, f" ({error})"
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FederatedConfigError(
            f"Expected `architecture` to be one of {', '.join(NAMES)}, the class path of a torch.nn.Module, or "
            f"'{TIMM}' and a model of timm but got '{architecture}'{reason}: check the spelling."
        )
    return found


def _timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        raise FederatedConfigError(
            f"Expected timm to be installed for an `architecture` that begins with '{TIMM}' but it is not: "
            "pip install timm."
        )
    return importlib.import_module("timm").create_model
