"""A network without LoRA: every trainable parameter is federated, and the run is federated averaging."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy
from tests.helpers.tiny import make_trainer


class Points(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.x, self.y = torch.randn(12, 3), torch.randn(12, 2)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class LinearModel(pl.LightningModule):
    """Linear regression 3 -> 2; a frozen layer is no part of the federation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear, self.fixed = nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.fixed(self.linear(batch["x"])) - batch["y"]).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.tested = {**getattr(self, "tested", {}), int(batch["client_id"][0]): self.linear.weight.detach().clone()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.linear.parameters(), lr=0.1, momentum=0.5)


def trained(start: dict[str, Tensor], data: Points, batches: list[list[int]]) -> dict[str, Tensor]:
    """Return a client's network after its batches."""
    client = LinearModel()
    client.load_state_dict(start)
    optimizer = client.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        client.loss(default_collate([data[i] for i in batch])).backward()
        optimizer.step()
    return client.state_dict()


def test_a_network_without_lora_is_federated_averaging() -> None:
    """Two rounds of three clients with 2, 3 and 7 examples: w <- sum n_k / 12 w_k, each w_k trained in plain torch."""
    shards, data = [[0, 1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11]], Points()
    module, loader = LinearModel(), RoundLoader(data, shards, batch_size=2)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    make_trainer(FederatedStrategy(FedIT(), CohortConfig(), seed=1)).fit(module, loader)

    server = {name: value.clone() for name, value in start.items()}
    for round_idx in range(2):
        mean = {name: torch.zeros_like(value) for name, value in server.items()}
        for work in loader.plan.schedule(round_idx).work:
            for name, value in trained(server, data, work.batches).items():
                mean[name] += len(shards[work.client_id]) / 12 * value
        server = mean
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, server[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, start[name]) == name.startswith("fixed")


def test_personalised_evaluation_takes_each_clients_own_network() -> None:
    """What a client has after its training, in plain torch; the fourth client never took part and has the server's."""
    shards, data = [[0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11]], Points()
    module, loader = LinearModel(), RoundLoader(data, shards, batch_size=2)
    strategy = FederatedStrategy(FedIT(), CohortConfig(clients=3), clients=ClientsConfig(keep_adapters=True), seed=1)
    trainer = make_trainer(strategy, max_epochs=1)
    trainer.fit(module, loader)
    rows = [{**data[i], "client_id": torch.tensor(k)} for k, shard in enumerate(shards) for i in shard]
    trainer.test(module, ClientLoader(rows, shards, personalised=True), verbose=False)
    expected = dict.fromkeys(range(4), module.linear.weight)
    for work in loader.plan.schedule(0).work:
        expected[work.client_id] = trained(LinearModel().state_dict(), data, work.batches)["linear.weight"]
    assert set(module.tested) == set(range(4)) and len(loader.plan.schedule(0).work) == 3
    for client_id, weight in expected.items():
        torch.testing.assert_close(module.tested[client_id], weight.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(module.tested[0], module.tested[1], rtol=1e-3)
