"""Running statistics of normalisation layers: federated with what is trained, though no optimizer moves them."""

from torch import Tensor, nn

from pl_fed.errors import FederatedConfigError

STATISTICS = ("running_mean", "running_var")


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return the running mean and variance of every layer that keeps them (batch and instance norms), by name.

    Raises:
        FederatedConfigError: If a layer's statistics are cumulative.
    """
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        statistics = {key: getattr(module, key, None) for key in STATISTICS}
        if not all(isinstance(value, Tensor) for value in statistics.values()):
            continue
        if getattr(module, "momentum", 0.1) is None:
            raise FederatedConfigError(
                f"Expected `{name}` to have a momentum but it is None: cumulative statistics depend on the order of "
                "the clients."
            )
        found.update({f"{name}.{key}".lstrip("."): value for key, value in statistics.items() if value is not None})
    return found


def is_statistic(name: str) -> bool:
    """Tell whether a tensor is a running statistic, which no optimizer moves, by its name."""
    return name.rpartition(".")[2] in STATISTICS
