"""Clients that train together end where they end alone, in float64, for every rule and family."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pl_fed.chunks import Packing
from pl_fed.clients import ClientsConfig
from pl_fed.corrections import FedProx, Scaffold
from pl_fed.modules import LoraCausalLM
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import (
    AFLoRA,
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HeadOnly,
    HetLoRA,
    LocalOnly,
    LoRAFAIR,
    RoLoRA,
)
from tests.helpers.packed import KINDS, federation, in_float64, largest_difference, loader, module_of, randomise, run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Folder = Callable[..., str]
PACKING = Packing(clients=3, tokens=60)  # two chunks, and more than one pass where texts are long
RULES: dict[str, Any] = {
    "aflora": AFLoRA,
    "fedit": FedIT,
    "ffa": FFALoRA,
    "rolora": RoLoRA,
    "flora": FLoRA,
    "hetlora": lambda: HetLoRA(gamma=0.5, penalty=0.5),
    "flex": FlexLoRA,
    "fedsa": FedSALoRA,
    "fedex": FedExLoRA,
    "fair": LoRAFAIR,
    "fedsvd": FedSVD,
    "local": LocalOnly,
    "aflora-penalty": lambda: AFLoRA(diagonal_penalty=0.1),
}


def both(kind: str, folder: Folder, rule: Any, trainer: dict[str, Any] | None = None, **changes: Any) -> float:
    """Return the largest difference of the two engines' runs."""
    optimizer, shards = changes.pop("optimizer", None), changes.pop("data", {})
    found = []
    for engine in ("sequential", PACKING):
        module = in_float64(module_of(kind, folder(kind), optimizer, **changes.get("module", {})))
        settings = {key: value for key, value in changes.items() if key != "module"}
        strategy = federation(rule(), engine, **settings)
        data = loader(kind, **shards)
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        found.append(run(module, strategy, data, randomise, precision="64-true", **(trainer or {})))
        assert strategy.engine.name == ("sequential" if engine == "sequential" else "packed")
        assert any(not torch.equal(value, start[n]) for n, value in found[-1].items() if n in start)
    return largest_difference(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str, folder: Folder) -> None:
    """One step of plain SGD at rate 1: what each client's tensors move by are its gradients."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731
    clients = ClientsConfig(ranks=[3, 1, 2, 3], keep_adapters=True)
    settings = {"local": LocalTraining(steps=1), "clients": clients, "optimizer": sgd}
    assert both(kind, folder, AFLoRA, {"max_epochs": 1}, **settings) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["aflora", "fedit"])
def test_every_family(kind: str, rule: str, folder: Folder) -> None:
    """Unequal ranks and numbers of batches, ragged texts, AdamW; a classifier's head."""
    assert both(kind, folder, RULES[rule]) < 1e-9


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_losses_in_chunks_of_tokens(kind: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraCausalLM, "logits_at_once", 50)
    assert both(kind, folder, FedIT) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_parts_padded_as_on_a_gpu(kind: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged texts, unequal ranks: one padded product and one padded attention, without a loop."""
    monkeypatch.setattr("pl_fed.packing.padding.LOOPS_ON", ())
    assert both(kind, folder, AFLoRA) < 1e-9


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule(rule: str, folder: Folder) -> None:
    """SGD with momentum, so that a difference of gradients stays one of its size."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # noqa: E731
    assert both("gpt2", folder, RULES[rule], optimizer=sgd) < 1e-11


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_head_alone(kind: str, folder: Folder) -> None:
    assert both(kind, folder, HeadOnly) < 1e-9


@pytest.mark.parametrize("correction", [FedProx(0.5), Scaffold()], ids=["fedprox", "scaffold"])
def test_corrections(correction: Any, folder: Folder) -> None:
    assert both("bert", folder, FedIT, local=LocalTraining(correction=correction)) < 1e-9


@pytest.mark.parametrize(("kind", "algorithm"), [("bert", "norm"), ("bert", "value"), ("vit", "norm")])
def test_accumulation_and_clipping(kind: str, algorithm: str, folder: Folder) -> None:
    """Windows of two batches; gradients are clipped client by client."""
    trainer = {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-2, "gradient_clip_algorithm": algorithm}
    local = LocalTraining(epochs=1, remainder="pad")
    assert both(kind, folder, AFLoRA, trainer, local=local) < 1e-9


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Rprop", "Adadelta"])
def test_optimizers(name: str, folder: Folder) -> None:
    optimizer = lambda parameters: getattr(torch.optim, name)(parameters, lr=1e-2)  # noqa: E731
    assert both("gpt2", folder, FedIT, optimizer=optimizer) < 1e-9


def test_schedule_within_clients(folder: Folder) -> None:
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    assert both("gpt2", folder, FedIT, module={"lr_scheduler": schedule}) < 1e-9


@pytest.mark.parametrize(("kind", "shard"), [("llama", [0]), ("vit", [0, 1, 2])])
def test_steps_and_uniform_lengths(kind: str, shard: list[int], folder: Folder) -> None:
    """All clients with as many sequences of one length: batched products instead of segments."""
    local, clients = LocalTraining(steps=2), ClientsConfig(ranks=[3])
    shards = {"shards": [shard] * 4, "batch_size": len(shard)}
    assert both(kind, folder, FedIT, local=local, clients=clients, data=shards) < 1e-9


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_other_chunks_give_the_same(kind: str, folder: Folder) -> None:
    """One client at a time, in chunks, all together, in small passes: also with dropout everywhere."""
    found = []
    for packing in (Packing(1), Packing(2), Packing(16), Packing(16, tokens=8)):
        module = in_float64(module_of(kind, folder(kind, 0.2), dropout=0.2))
        found.append(run(module, federation(AFLoRA(), packing), loader(kind), randomise, precision="64-true"))
    assert max(largest_difference(found[0], other) for other in found[1:]) < 1e-9


def test_a_limited_round(folder: Folder) -> None:
    """`limit_train_batches` cuts a chunk; the clients of the next are left out."""
    module, strategy = module_of("gpt2", folder("gpt2")), federation(FedIT(), Packing(2))
    run(module, strategy, loader("gpt2"), limit_train_batches=2, max_epochs=1)
    federated = strategy.loop.federation
    assert federated is not None and sorted(federated.states) == [0, 2]


def test_clients_that_drop_out(folder: Folder) -> None:
    assert both("gpt2", folder, FedIT, cohort=CohortConfig(dropout=0.5)) < 1e-9
