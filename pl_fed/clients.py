"""What clients can afford: device profiles, rank caps, simulated seconds; and what a client keeps between rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.updates import Slots


@dataclass(frozen=True)
class DeviceProfile:
    """A client's machine and link.

    Args:
        name: What the machine is called in tables.
        memory_gb: Memory for training, in GiB.
        gflops: Sustained speed of training, in 10^9 floating-point operations a second.
        uplink_mbps: Speed of sending, in 10^6 bits a second.
        downlink_mbps: Speed of receiving, in 10^6 bits a second.
        jitter: Spread of the round's time: it is multiplied by exp(jitter * N(0, 1)), drawn per round and client.
    """

    name: str = "device"
    memory_gb: float = 8.0
    gflops: float = 100.0
    uplink_mbps: float = 10.0
    downlink_mbps: float = 50.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Check that every budget is positive."""
        if not self.jitter >= 0:  # so that NaN is refused, here and below
            raise FederatedConfigError(f"Expected `jitter` of device `{self.name}` of 0 or more but got {self.jitter}.")
        for key in ("memory_gb", "gflops", "uplink_mbps", "downlink_mbps"):
            if not getattr(self, key) > 0:
                raise FederatedConfigError(
                    f"Expected `{key}` of device `{self.name}` above 0 but got {getattr(self, key)}."
                )

    def seconds(self, flops: float, download_bytes: float, upload_bytes: float) -> float:
        """Return the simulated seconds of download, training and upload, one after the other."""
        transfer = download_bytes * 8e-6 / self.downlink_mbps + upload_bytes * 8e-6 / self.uplink_mbps
        return flops * 1e-9 / self.gflops + transfer


@dataclass(frozen=True)
class ClientCost:
    """What one round costs a client as a function of its rank r.

    Args:
        base_bytes: Memory of the frozen base model.
        activation_bytes: Memory of the activations of one batch (estimate).
        dense_params: Trained parameters outside the low-rank layers.
        params_per_rank: Trained parameters per slot.
        flops: Operations of the local training without the adapter.
        flops_per_rank: Operations of the local training per slot.
        download_bytes_per_rank: Bytes received per slot.
        upload_bytes_per_rank: Bytes sent per slot.
        upload_bytes_per_value: Bytes sent per trained number outside the low-rank layers, as encoded.
        download_bytes_per_value: Bytes received for each of these.
        download_bytes: Bytes received whatever the rank, such as a change to the base model.
    """

    base_bytes: float
    activation_bytes: float
    dense_params: float
    params_per_rank: float
    flops: float
    flops_per_rank: float
    download_bytes_per_rank: float
    upload_bytes_per_rank: float
    upload_bytes_per_value: float = 4.0
    download_bytes_per_value: float = 4.0
    download_bytes: float = 0.0

    def memory_bytes(self, rank: int) -> float:
        """Return the peak memory: base, activations, and 16 bytes per trained parameter.

        These are a float32 parameter, its gradient and Adam's two moments.
        """
        return self.base_bytes + self.activation_bytes + 16 * (self.dense_params + self.params_per_rank * rank)

    def upload_bytes(self, rank: int) -> float:
        """Return the bytes sent in a round."""
        return self.upload_bytes_per_value * self.dense_params + self.upload_bytes_per_rank * rank

    def seconds(self, rank: int, device: DeviceProfile) -> float:
        """Return the simulated seconds of a round."""
        download = self.download_bytes_per_value * self.dense_params + self.download_bytes_per_rank * rank
        download += self.download_bytes
        return device.seconds(self.flops + self.flops_per_rank * rank, download, self.upload_bytes(rank))


@dataclass(frozen=True)
class ClientsConfig:
    """What the population can afford; lists are dealt out in turn, client k gets entry ``k % len``.

    Args:
        ranks: Rank cap of each client, for example the ladder [16, 8, 4, 4, 2, 2, 1, 1, 1, 1].
        devices: Machine of each client. With devices, the cap is the largest rank of `ladder` that fits its memory,
            `round_seconds` and `uplink_mb` (and at most its entry in `ranks`).
        ladder: Ranks that caps are chosen from.
        round_seconds: Time budget: a client whose simulated round takes longer is left out. Needs `devices`.
        uplink_mb: Upload budget of a round, in 10^6 bytes.
        num_clients: Expected size of the population, checked against the data; None takes what the data has.
        keep_adapters: Keep each client's adapter after its local training, for personalised evaluation.
        local_norms: Leave normalisation layers on the clients (FedBN: Xiaoxiao Li et al., ICLR 2021, arXiv 2102.07623):
            their parameters and statistics are neither sent nor taken from the server. Each client's own model is then
            the one to look at (`keep_adapters`); the server's keeps the norms that it began with.
        store: File for what clients keep from round to round, when there are too many of them for memory: then only the
            cohort's states are in memory, and checkpoints refer to the file. It grows with every round.
    """

    ranks: Sequence[int] | None = None
    devices: Sequence[DeviceProfile] | None = None
    ladder: Sequence[int] = (64, 32, 16, 8, 4, 2, 1)
    round_seconds: float | None = None
    uplink_mb: float | None = None
    num_clients: int | None = None
    keep_adapters: bool = False
    local_norms: bool = False
    store: str | None = None

    def __post_init__(self) -> None:
        """Check the budgets."""
        for key in ("round_seconds", "uplink_mb", "num_clients"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise FederatedConfigError(f"Expected `clients.{key}` above 0 but got {value}.")
        if self.round_seconds is not None and not self.devices:
            raise FederatedConfigError("Expected `clients.devices` with `clients.round_seconds`: time needs a device.")
        if not self.ladder or self.ranks == []:
            raise FederatedConfigError("Expected at least one rank in `clients.ladder` and `clients.ranks`.")
        for key in ("ranks", "ladder"):
            for rank in getattr(self, key) or ():
                if rank < 1:
                    raise FederatedConfigError(
                        f"Expected every entry of `clients.{key}` to be 1 or more but got {rank}."
                    )

    def device(self, client_id: int) -> DeviceProfile | None:
        """Return a client's machine, or None when there are no devices."""
        return self.devices[client_id % len(self.devices)] if self.devices else None

    def check_population(self, population: int) -> None:
        """Raise `FederatedConfigError` if the data has another number of clients than was stated."""
        if self.num_clients is not None and self.num_clients != population:
            raise FederatedConfigError(
                f"Expected {self.num_clients} clients (`clients.num_clients`) but the data is partitioned into "
                f"{population}: change one of them."
            )

    def check_ranks(self, server_rank: int) -> None:
        """Raise `FederatedConfigError` if a stated rank is larger than the server's."""
        top = max(self.ranks or (0,))
        if server_rank and top > server_rank:
            raise FederatedConfigError(
                f"Expected client ranks of at most the server's {server_rank} (`lora.r`) but got {top} in "
                "`clients.ranks`: lower it or raise `lora.r`."
            )

    def rank_cap(self, client_id: int, server_rank: int, cost: ClientCost) -> int:
        """Return the largest rank of the ladder that the client can afford.

        A client that is too slow even for the smallest rank gets that rank; the clock leaves it out round by round.

        Raises:
            FederatedConfigError: If not even the ladder's smallest rank fits its memory and uplink.
        """
        if server_rank == 0:  # nothing low-rank to train: plain federated averaging
            return 0
        stated = self.ranks[client_id % len(self.ranks)] if self.ranks else server_rank
        device = self.device(client_id)
        if device is None and self.uplink_mb is None:
            return stated
        possible = [rank for rank in self.ladder if rank <= stated and not self.over_budget(rank, cost, device)]
        if not possible:
            smallest = min(self.ladder)
            raise FederatedConfigError(
                f"Expected client {client_id} to afford at least rank {smallest} but it does not: "
                f"{self.over_budget(smallest, cost, device) or 'its entry in `clients.ranks` is below the ladder'}. "
                "Raise the budget, use a smaller model, or extend `clients.ladder`."
            )
        in_time = [rank for rank in possible if not self._too_slow(rank, cost, device)]
        return max(in_time) if in_time else min(possible)

    def _too_slow(self, rank: int, cost: ClientCost, device: DeviceProfile | None) -> bool:
        return device is not None and self.round_seconds is not None and cost.seconds(rank, device) > self.round_seconds

    def over_budget(self, rank: int, cost: ClientCost, device: DeviceProfile | None) -> str:
        """Say which of memory and uplink a rank breaks; empty if it fits both."""
        if device is not None and cost.memory_bytes(rank) > device.memory_gb * 2**30:
            needed = _above(cost.memory_bytes(rank) / 2**30, device.memory_gb)
            return f"{needed} GiB of memory, `{device.name}` has {device.memory_gb} GiB"
        if self.uplink_mb is not None and cost.upload_bytes(rank) > self.uplink_mb * 1e6:
            needed = _above(cost.upload_bytes(rank) / 1e6, self.uplink_mb)
            return f"{needed} MB of upload, `clients.uplink_mb` is {self.uplink_mb}"
        return ""


def _above(value: float, budget: float) -> str:
    """Write a value above a budget with three significant digits, or with as many as show that it is above.

    Example:
        >>> _above(0.0002563, 1e-05), _above(2.0004, 2.0), _above(12345.0, 1.0)
        ('0.000256', '2.0004', '12345')
    """
    digits = range(max(3, len(str(int(value)))), 17)
    return next((text for n in digits if float(text := f"{value:.{n}g}") > budget), repr(value))


@dataclass
class ClientState:
    """What one client keeps from round to round; made when it first takes part.

    Args:
        slots: Its active slots by layer.
        versions: Version of the server's ``a`` and ``b`` that it has; -1 where it has none, or has trained its own.
        num_merges: How many of the server's changes to the base model it has.
        kept: What the rule leaves on the client (flat tensors).
        control: Its control variate (flat tensors), with SCAFFOLD.
        optimizer: State of its optimizer and schedule, with `local.optimizer` ``kept``.
        adapter: Its adapter after its last local training (flat tensors), with `keep_adapters`.
    """

    slots: Slots
    versions: dict[str, int] = field(default_factory=lambda: {"a": -1, "b": -1})
    num_merges: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    control: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and primitives."""
        return dict(vars(self))

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "ClientState":
        """Rebuild a state, its slots on `device`."""
        return cls(**{**state, "slots": {name: ids.to(device) for name, ids in state["slots"].items()}})
