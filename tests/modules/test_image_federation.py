"""`ImageClassifier` in a federation is federated averaging of whole networks, against plain torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import ClientLoader, RoundLoader, RoundPlan
from pl_fed.modules.networks import build_network
from pl_fed.rounds import CohortConfig, LocalTraining
from tests.modules.tiny_images import SHARDS, federation, image_rows, loader, make, sgd

pytestmark = [
    # `load_from_checkpoint` calls what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),  # the driver of rounds
]
Make = Callable[..., pl.Trainer]


def trained(start: dict[str, Tensor], batches: list[list[int]], architecture: str) -> dict[str, Tensor]:
    """Return a client's network after its batches, in plain torch."""
    network = build_network(architecture, 1, (8, 8), 3, dict(make(architecture).settings.options))
    network.load_state_dict(start)
    optimizer, rows = sgd(network.parameters()), image_rows()
    for indices in batches:
        batch = default_collate([rows[i] for i in indices])
        optimizer.zero_grad()
        F.cross_entropy(network(batch["images"]), batch["labels"]).backward()
        optimizer.step()
    return network.state_dict()


def averaged(start: dict[str, Tensor], data: RoundLoader, architecture: str, rounds: int = 1) -> dict[str, Tensor]:
    """Return the example-weighted mean of the clients' whole states, buffers included, after some rounds."""
    server = start
    for round_idx in range(rounds):
        work = data.plan.schedule(round_idx).work
        ends = {w.client_id: trained(server, w.batches, architecture) for w in work}
        shares = {k: len(SHARDS[k]) / 24 for k in ends}
        server = {name: sum(shares[k] * end[name] for k, end in ends.items()) for name in start}  # type: ignore[misc]
    return server


def test_a_federation_is_federated_averaging(trainer: Make) -> None:
    """Two rounds of three clients with 8, 5 and 11 images, of a network that keeps no statistics."""
    module, data = make("groupnorm_cnn"), loader()
    module.configure_model()
    start = {name: value.clone() for name, value in module.network.state_dict().items()}
    trainer(strategy=federation(local=LocalTraining(epochs=2)), max_epochs=2).fit(module, data)
    expected = averaged(start, data, "groupnorm_cnn", rounds=2)
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, start[name])


class Reversed(RoundPlan):
    """The same work of the same clients, the last first."""

    def _schedule(self, round_idx: int) -> Any:
        found = super()._schedule(round_idx)
        return replace(found, work=found.work[::-1])


def after_a_round(plan: type[RoundPlan], trainer: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Return a network with BatchNorm after a federated round, the states that are expected, and its parameters."""
    monkeypatch.setattr("pl_fed.loaders.RoundPlan", plan)
    module, data = make("small_cnn"), loader()
    assert type(data.plan) is plan
    module.configure_model()
    start = {name: value.clone() for name, value in module.network.state_dict().items()}
    trainer(strategy=federation(), max_epochs=1).fit(module, data)
    return module.network.state_dict(), averaged(start, data, "small_cnn"), dict(module.network.named_parameters())


@pytest.mark.parametrize("plan", [RoundPlan, Reversed])
def test_parameters_beside_statistics(plan: type[RoundPlan], trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training BatchNorm looks at the batch alone, so the parameters do not see what statistics a client found."""
    found, expected, parameters = after_a_round(plan, trainer, monkeypatch)
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", [RoundPlan, Reversed])
def test_running_statistics_are_averaged(plan: type[RoundPlan], trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round they are the example-weighted mean of the clients', each from the server's, in any order."""
    found, expected, _ = after_a_round(plan, trainer, monkeypatch)
    statistics = [name for name in found if name.endswith(("running_mean", "running_var"))]
    for name in statistics:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_personalised_figures_are_apart(trainer: Make) -> None:
    """Each client's own network is what it had after its training."""
    module, data = make("groupnorm_cnn"), loader()
    module.configure_model()
    start = {name: value.clone() for name, value in module.network.state_dict().items()}
    run = trainer(strategy=federation(clients=ClientsConfig(keep_adapters=True)))
    run.fit(module, data)
    loaders = [ClientLoader(image_rows(), SHARDS, 4, personalised=own) for own in (False, True)]
    figures = {k: v for part in run.test(module, loaders, verbose=False) for k, v in part.items()}
    assert figures["test_clients/loss"] != figures["test_personalised/loss"]
    losses, network = [], build_network("groupnorm_cnn", 1, (8, 8), 3, {"width": 4, "num_groups": 2})
    for work in data.plan.schedule(0).work:
        network.load_state_dict(trained(start, work.batches, "groupnorm_cnn"))
        batch = default_collate([image_rows()[i] for i in SHARDS[work.client_id]])
        losses.append(F.cross_entropy(network(batch["images"]), batch["labels"], reduction="sum").detach())
    assert figures["test_personalised/loss"] == pytest.approx(float(sum(losses)) / 24, rel=1e-4)


# Resume.


class SaveEveryBatch(Checkpoint):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{len(list(self.folder.iterdir())):03}.ckpt")


@pytest.mark.parametrize("architecture", ["groupnorm_cnn", "small_cnn"])
def test_resume_is_bit_exact(architecture: str, trainer: Make, tmp_path: Path) -> None:
    def run(ckpt: Path | None = None, callbacks: Any = ()) -> dict[str, Tensor]:
        module = make(architecture)
        strategy = federation(cohort=CohortConfig(clients=2))
        saves = {"callbacks": list(callbacks), "enable_checkpointing": bool(callbacks)}
        trainer(strategy=strategy, max_epochs=2, **saves).fit(module, loader(), ckpt_path=ckpt)
        return module.state_dict()

    folder = tmp_path / "saved"
    folder.mkdir()
    expected = run(callbacks=[SaveEveryBatch(folder)])
    checkpoints = sorted(folder.iterdir())
    assert len(checkpoints) >= 7
    for checkpoint in checkpoints[:-1]:
        found = run(checkpoint)
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), checkpoint.name
