"""Rank caps from budgets, by hand, and every refusal of a population."""

import pytest

from pl_fed.clients import ClientCost, ClientsConfig, DeviceProfile
from pl_fed.errors import FederatedConfigError

# One slot: 100 parameters to train (1,600 bytes of memory), 400 bytes up and down, 1e6 operations.
COST = ClientCost(
    base_bytes=2.0**30,
    activation_bytes=0,
    dense_params=0,
    params_per_rank=100,
    flops=1e9,
    flops_per_rank=1e6,
    download_bytes_per_rank=400,
    upload_bytes_per_rank=400,
)
LADDER = (16, 8, 4, 2, 1)


def cap(device: DeviceProfile, **kwargs: float) -> int:
    return ClientsConfig(devices=[device], ladder=LADDER, **kwargs).rank_cap(0, 16, COST)


def test_memory_decides() -> None:
    """1 GiB + 1,600 bytes a slot: with 1 GiB + 7,000 bytes four slots fit, five would not, and 4 is on the ladder."""
    assert cap(DeviceProfile(memory_gb=1 + 7000 / 2**30)) == 4
    assert cap(DeviceProfile(memory_gb=2)) == 16


def test_time_decides() -> None:
    """1 GFLOP/s: 1.0 s + 0.001 s a slot; links of 3.2 kbit/s both ways: 2 s a slot. 9.1 s allow 4 slots."""
    device = DeviceProfile(gflops=1.0, uplink_mbps=0.0032, downlink_mbps=0.0032)
    assert device.seconds(1e9, 400, 400) == pytest.approx(1.0 + 1.0 + 1.0)
    assert cap(device, round_seconds=9.1) == 4
    assert cap(device, round_seconds=0.5) == 1, "too slow for any: the smallest, and the clock leaves it out"


def test_uplink_decides() -> None:
    """400 bytes a slot: 3,300 bytes allow 8 slots."""
    assert cap(DeviceProfile(), uplink_mb=0.0033) == 8


def test_stated_ranks_bind_and_are_dealt_out_in_turn() -> None:
    clients = ClientsConfig(ranks=[8, 2], devices=[DeviceProfile(memory_gb=2)], ladder=LADDER)
    assert [clients.rank_cap(k, 16, COST) for k in range(4)] == [8, 2, 8, 2]
    assert [ClientsConfig(ranks=[3]).rank_cap(k, 16, COST) for k in range(2)] == [3, 3]
    assert ClientsConfig().rank_cap(5, 16, COST) == 16


@pytest.mark.parametrize(("memory", "uplink_mb"), [(0.5, None), (8.0, 1e-6), (1.00000001, None)])
def test_what_is_needed_is_shown_to_be_more(memory: float, uplink_mb: float | None) -> None:
    """Read back from the sentence, the need is above the budget, and near what the cost says in bytes."""
    device = DeviceProfile(memory_gb=memory)
    found = ClientsConfig(devices=[device], uplink_mb=uplink_mb).over_budget(1, COST, device)
    needed, budget = (float(found.split()[0]), memory) if uplink_mb is None else (float(found.split()[0]), uplink_mb)
    exact = COST.memory_bytes(1) / 2**30 if uplink_mb is None else COST.upload_bytes(1) / 1e6
    assert needed > budget and needed == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeviceProfile("phone", memory_gb=-1), "Expected `memory_gb` of device `phone` above 0 but got -1"),
        (lambda: DeviceProfile("phone", uplink_mbps=0), "`uplink_mbps` of device `phone` above 0 but got 0"),
        (lambda: DeviceProfile("phone", jitter=-1), "`jitter` of device `phone` of 0 or more but got -1"),
        (lambda: DeviceProfile(gflops=float("nan")), "`gflops` of device `device` above 0 but got nan"),
        (lambda: DeviceProfile(jitter=float("nan")), "`jitter` of device `device` of 0 or more but got nan"),
        (lambda: ClientsConfig(uplink_mb=float("nan")), "`clients.uplink_mb` above 0 but got nan"),
        (lambda: ClientsConfig(uplink_mb=-2.0), "Expected `clients.uplink_mb` above 0 but got -2"),
        (lambda: ClientsConfig(round_seconds=3.0), "`clients.devices` with `clients.round_seconds`"),
        (lambda: ClientsConfig(ranks=[4, 0]), "every entry of `clients.ranks` to be 1 or more but got 0"),
        (lambda: ClientsConfig(ranks=[8]).check_ranks(4), "at most the server's 4 .`lora.r`. but got 8"),
        (lambda: ClientsConfig(num_clients=3).check_population(5), "Expected 3 clients .* partitioned into 5"),
        (lambda: cap(DeviceProfile("tiny", memory_gb=0.5)), "client 0 to afford at least rank 1 .* `tiny` has 0.5 GiB"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make()  # type: ignore[operator]
