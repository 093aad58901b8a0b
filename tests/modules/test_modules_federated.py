"""The modules in a federation: they know nothing of it, and the strategy needs nothing else of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_fed.adapters import Adapter
from pl_fed.clients import ClientsConfig
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.modules import LoraCausalLM, LoraModule, LoraSequenceClassifier, LoraSettings, export_adapter
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA
from pl_fed.strategy import FederatedStrategy
from tests.modules.tiny_models import class_rows, collate_classes, collate_language, language_rows

Make = Callable[..., pl.Trainer]


def federation() -> FederatedStrategy:
    clients = ClientsConfig(ranks=[1, 3, 2], keep_adapters=True)
    return FederatedStrategy(AFLoRA(), cohort=CohortConfig(clients=2), clients=clients, seed=4)


def setting(kind: str, request: pytest.FixtureRequest) -> tuple[LoraModule, list[Any], Any]:
    folder = request.getfixturevalue(kind)
    if kind == "bert":
        return LoraSequenceClassifier(folder, LoraSettings(r=3), adamw, num_labels=3), class_rows(12), collate_classes
    return LoraCausalLM(folder, LoraSettings(r=3), adamw), language_rows(12), collate_language


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")  # the driver of rounds, in a plain test
def test_rounds_tests_and_checkpoints(kind: str, request: pytest.FixtureRequest, trainer: Make, tmp_path: Path) -> None:
    """Global and personalised figures are apart; a checkpoint needs no federation; an export has no diagonal."""
    module, rows, collate = setting(kind, request)
    shards = [list(range(start, 12, 3)) for start in range(3)]
    rows = [{**row, "client_id": i % 3} for i, row in enumerate(rows)]
    run = trainer(strategy=federation(), max_epochs=2)
    run.fit(module, RoundLoader(rows, shards, batch_size=2, collate_fn=collate))
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaders = [ClientLoader(rows, shards, 4, personalised=own, collate_fn=collate) for own in (False, True)]
    figures = run.test(module, loaders, verbose=False)[0] | run.test(module, loaders, verbose=False)[1]
    assert figures["test_clients/loss"] != figures["test_personalised/loss"]
    assert set(module.client_metrics["test_clients"]) == set(module.client_metrics["test_personalised"]) == {0, 1, 2}
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if name in before)
    assert Adapter(module).diagonals()

    again, _, _ = setting(kind, request)
    plain = trainer()
    plain.test(again, loaders[:1], ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert float(plain.callback_metrics["test_clients/loss"]) == figures["test_clients/loss"]
    folders = [export_adapter(m, tmp_path / name) for m, name in ((module, "federated"), (again, "plain"))]
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == second
