"""Running statistics of normalisation layers are federated like parameters; a plain-torch loop says what comes out."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from pl_fed.server_optimizer import ServerOptimizer
from tests.helpers.tiny import make_strategy, make_trainer

SHARDS = [list(range(0, 8)), list(range(8, 20)), list(range(20, 24))]


def make_network(**options: Any) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, **options), nn.ReLU(), nn.Linear(5, 3))


class Net(pl.LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = make_network(**options)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 6, generator=generator) + torch.arange(24)[:, None] / 8  # clients' means differ
    return TensorDataset(x, torch.randint(0, 3, (24,), generator=generator))


def fit(rounds: int = 2, ckpt: Path | None = None, **options: Any) -> tuple[pl.Trainer, Net]:
    module, more = Net(**options.pop("network", {})), options.pop("trainer", {})
    strategy = make_strategy(FedIT(), cohort=CohortConfig(), seed=4, **options)
    trainer = make_trainer(strategy, max_epochs=rounds, **more)
    trainer.fit(module, RoundLoader(make_data(), SHARDS, batch_size=4), ckpt_path=ckpt)
    return trainer, module


def reference(trainer: pl.Trainer, rounds: int) -> nn.Sequential:
    """Train every client from a copy of the server's network, and average parameters and statistics by examples."""
    server, data = make_network(), make_data()
    for round_idx in range(rounds):
        before = copy.deepcopy(server.state_dict())
        total = {name: torch.zeros_like(value) for name, value in before.items()}
        for work in trainer.strategy.loop.plan.schedule(round_idx).work:  # type: ignore[attr-defined]
            client = make_network()
            client.load_state_dict(before)
            optimizer = torch.optim.SGD(client.parameters(), lr=0.1)
            for indices in work.batches:
                x, y = (torch.stack(column) for column in zip(*(data[i] for i in indices), strict=True))
                optimizer.zero_grad()
                nn.functional.cross_entropy(client(x), y).backward()
                optimizer.step()
            for name, value in client.state_dict().items():
                if value.is_floating_point():
                    total[name] += (value - before[name]) * work.num_examples / 24
        after = {name: value + total[name] for name, value in before.items()}
        server.load_state_dict(after)
    return server


def floats(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


def test_statistics_are_averaged_like_parameters() -> None:
    """In the reference no client sees another's; they would otherwise run on from client to client, in its order."""
    trainer, module = fit()
    expected = floats(reference(trainer, 2))
    assert {"1.running_mean", "1.running_var"} <= set(expected)
    for name, value in floats(module.net).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_resume_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """Six batches a round: the eighth is inside the second."""
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    _, expected = fit(3, trainer={"callbacks": [checkpoint]})
    _, resumed = fit(3, ckpt=tmp_path / "step=8.ckpt")
    assert all(torch.equal(value, floats(resumed.net)[name]) for name, value in floats(expected.net).items())


def test_the_server_optimizer_leaves_statistics_alone() -> None:
    """Adam's step on a variance of one could make it negative; the variance is the clients' mean."""
    plain, adam = fit(1)[1], fit(1, server_optimizer=ServerOptimizer("adam", lr=5.0))[1]
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(floats(plain.net)[name], floats(adam.net)[name])
    assert not torch.equal(floats(plain.net)["0.weight"], floats(adam.net)["0.weight"])


def test_cumulative_statistics_are_refused() -> None:
    with pytest.raises(FederatedConfigError, match=r"`net.1` to have a momentum but it is None"):
        fit(1, network={"momentum": None})
