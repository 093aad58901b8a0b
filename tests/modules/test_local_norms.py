"""Normalisation layers that stay on the clients, and frozen tensors that a server sends to one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from pl_fed._lightning import Callback
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.frozen import FrozenTensors, norm_names
from pl_fed.modules import ImageClassifier
from pl_fed.privacy.pairwise.errors import ModelMismatchError
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA
from tests.helpers.tiny import TinyLM, eval_loader, make_strategy, make_trainer, round_loader
from tests.modules.tiny_images import SHARDS, federation, image_rows, loader, make

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

LOCAL = ClientsConfig(local_norms=True, keep_adapters=True)
NORM = "model.base_model.model.transformer.ln_f"


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


def test_names() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2), LlamaRMSNorm(), nn.GroupNorm(1, 2))
    expected = {f"{i}.{key}" for i in (1, 2, 4) for key in ("weight", "bias")}
    assert norm_names(network) == expected | {"1.running_mean", "1.running_var", "3.weight"}


@pytest.fixture
def image_trainer(trainer: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
    return lambda strategy, rounds, *callbacks: trainer(strategy=strategy, max_epochs=rounds, callbacks=list(callbacks))


def step(module: ImageClassifier, network: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """Train a network by one plain step of SGD on some images, and return all its tensors."""
    module.network.load_state_dict(network)
    module.network.train()
    optimizer = torch.optim.SGD(module.network.parameters(), lr=0.1, momentum=0.5)
    images = torch.stack([image_rows()[i]["images"] for i in ids])
    labels = torch.stack([image_rows()[i]["labels"] for i in ids])
    optimizer.zero_grad()
    nn.functional.cross_entropy(module.network(images), labels).backward()
    optimizer.step()
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def test_clients_keep_their_norms_and_share_the_rest(image_trainer: Callable[..., pl.Trainer]) -> None:
    """FedBN by hand: two rounds of one step; the server averages all but the norms, which stay."""
    module, data = make("small_cnn"), loader(batch_size=32)
    module.configure_model()
    server = {name: value.clone() for name, value in module.network.state_dict().items()}
    strategy = federation(clients=LOCAL, local=LocalTraining(steps=1))
    image_trainer(strategy, 2).fit(module, data)
    found = {name: value.clone() for name, value in module.network.state_dict().items()}

    local = {name.removeprefix("network.") for name in norm_names(module)}
    own: dict[int, dict[str, Tensor]] = {k: {} for k in range(3)}
    reference = make("small_cnn")
    reference.configure_model()
    for round_idx in range(2):
        after = {}
        for work in data.plan.schedule(round_idx).work:
            after[work.client_id] = step(reference, server | own[work.client_id], work.batches[0])
        own = {k: {name: value for name, value in state.items() if name in local} for k, state in after.items()}
        shared = [name for name in server if name not in local and "num_batches" not in name]
        server |= {n: sum(len(SHARDS[k]) / 24 * after[k][n] for k in range(3)) for n in shared}  # type: ignore[misc]
    for name, value in server.items():
        if "num_batches" not in name:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    kept = strategy.loop.federation.states  # type: ignore[union-attr]
    for client_id, norms in own.items():
        assert kept[client_id].kept.keys() == {f"network.{n}" for n in norms if "num_batches" not in n}
        for name, value in kept[client_id].kept.items():
            torch.testing.assert_close(value, norms[name.removeprefix("network.")], rtol=1e-5, atol=1e-6)


class Fishing(Callback):
    """A server that sends client 1 another norm, federated or frozen."""

    def __init__(self, name: str) -> None:
        self.name, self.seen, self.bytes = name, [], []  # type: ignore[var-annotated]

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.client is not None
        live = dict(pl_module.named_parameters())[self.name]
        sent = context.client.broadcast
        if context.client.client_id == 1:
            (sent.dense if live.requires_grad else sent.base)[self.name] = torch.full_like(live, 3.0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        live = dict(pl_module.named_parameters())[self.name]
        self.seen.append((trainer.strategy.loop.federation.context.client.client_id, bool((live == 3.0).all())))

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.bytes.append(context.client.download_bytes)  # type: ignore[union-attr]


def test_a_norm_from_the_server_is_refused(image_trainer: Callable[..., pl.Trainer]) -> None:
    """With local norms nothing that is sent in their place arrives."""
    for clients, arrives in ((LOCAL, False), (ClientsConfig(), True)):
        fishing, module = Fishing("network.features.1.bias"), make("small_cnn")
        strategy = federation(clients=clients, local=LocalTraining(steps=1))
        image_trainer(strategy, 1, fishing).fit(module, loader(batch_size=32))
        assert dict(fishing.seen) == {0: False, 1: arrives, 2: False}


def lora_run(fishing: Fishing, tmp_path: Path | None = None, ckpt: Path | None = None, **options: Any) -> Any:
    module = TinyLM()
    strategy = make_strategy(AFLoRA(), cohort=CohortConfig(), **options)
    trainer = make_trainer(strategy, max_epochs=1, callbacks=[fishing], val_check_interval=2)
    trainer.fit(module, round_loader(), eval_loader(), ckpt_path=ckpt)
    return module


def frozen_norm() -> str:
    return next(n for n, p in TinyLM().named_parameters() if n in norm_names(TinyLM()) and not p.requires_grad)


def test_a_frozen_tensor_reaches_one_client_and_no_validation() -> None:
    """It holds for that client alone; the base model is as before after it and while the server is validated."""
    name, validated = frozen_norm(), []

    class Watch(Fishing):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
            validated.append(bool((dict(pl_module.named_parameters())[name] == 3.0).any()))

    fishing, plain = Watch(name), Fishing(name)
    plain.on_broadcast = lambda *_: None  # type: ignore[method-assign]
    before = dict(TinyLM().named_parameters())[name].clone()
    module = lora_run(fishing)
    lora_run(plain)
    assert {k for k, there in fishing.seen if there} == {1} and (1, False) not in fishing.seen
    assert torch.equal(dict(module.named_parameters())[name], before)
    assert validated and not any(validated)
    more = [x - y for x, y in zip(fishing.bytes, plain.bytes, strict=True)]
    assert sorted(more) == [0] * (len(more) - 1) + [4 * before.numel()]


def test_local_norms_refuse_a_frozen_one() -> None:
    fishing = Fishing(frozen_norm())
    lora_run(fishing, clients=LOCAL)
    assert not any(there for _, there in fishing.seen)


def test_binding_covers_frozen_tensors() -> None:
    with pytest.raises(ModelMismatchError, match=r"client.* 1"):
        lora_run(Fishing(frozen_norm()), secure_aggregation="ideal")


def test_frozen_tensors() -> None:
    linear = nn.Linear(2, 2).requires_grad_(False)
    frozen, before = FrozenTensors.of(linear, {"bias"}), linear.weight.clone()
    assert frozen.tensors.keys() == {"weight"}
    frozen.put({"weight": torch.zeros(2, 2)})
    frozen.resume()
    assert not linear.weight.any()
    frozen.suspend()
    assert torch.equal(linear.weight, before)
    frozen.resume()
    assert not linear.weight.any()
    frozen.restore()
    frozen.resume()
    assert torch.equal(linear.weight, before)
    with pytest.raises(FederatedConfigError, match=r"`Broadcast.base` but got `bias` of shape \(2,\), where .* no su"):
        frozen.put({"bias": torch.zeros(2)})
    with pytest.raises(FederatedConfigError, match=r"`weight` of shape \(2,\), where the model has shape \(2, 2\)"):
        frozen.put({"weight": torch.zeros(2)})
