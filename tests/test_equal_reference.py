"""A federated run under Lightning equals a plain-torch loop to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from pl_fed.clients import ClientsConfig
from pl_fed.rounds import LocalTraining, derive_seed
from pl_fed.rules import AFLoRA, FedIT, FFALoRA
from tests.helpers.reference import Visit, federate
from tests.helpers.tiny import (
    SHARDS,
    TinyLM,
    Tokens,
    adapter_tensors,
    eval_loader,
    make_strategy,
    make_trainer,
    round_loader,
)

RULES = {
    "aflora": AFLoRA,
    "aflora-rank": lambda: AFLoRA(rank_weights=True),
    "fedit": FedIT,
    "ffa": FFALoRA,
}
SEED = 5


def visits(loader: Any, ranks: list[int], num_rounds: int) -> list[list[Visit]]:
    """Lay the schedule open as tensors."""
    data = Tokens()
    rounds = []
    for round_idx in range(num_rounds):
        work = loader.plan.schedule(round_idx).work
        rounds.append(
            [
                Visit(
                    client.client_id,
                    ranks[client.client_id],
                    len(SHARDS[client.client_id]),
                    [default_collate([data[i] for i in batch]) for batch in client.batches],
                    derive_seed(SEED, round_idx, client.client_id, 0x5E),
                )
                for client in work
            ]
        )
    return rounds


def optimizers(name: str) -> Callable[[list[Any]], torch.optim.Optimizer]:
    if name == "adamw":
        return lambda parameters: torch.optim.AdamW(parameters, lr=2e-2)
    return lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


@pytest.mark.parametrize("ranks", [[4, 4, 4, 4], [4, 3, 2, 1]], ids=["equal", "ladder"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", list(RULES))
def test_run_equals_plain_torch(method: str, optimizer: str, ranks: list[int]) -> None:
    """Three rounds with dropout on, unequal shards: the difference is exactly zero in float32."""
    strategy = make_strategy(RULES[method](), clients=ClientsConfig(ranks=ranks))
    module, loader = TinyLM(optimizer), round_loader()
    before = adapter_tensors(module)
    make_trainer(strategy, max_epochs=3).fit(module, loader, eval_loader())

    reference = TinyLM(optimizer)
    federate(reference.model, reference.loss, visits(loader, ranks, 3), method, optimizers(optimizer))

    expected, found = adapter_tensors(reference), adapter_tensors(module)
    assert any(not torch.equal(before[name], found[name]) for name in found), "nothing was trained"
    for name, value in expected.items():
        assert torch.equal(value, found[name]), f"{name}: {(value - found[name]).abs().max()}"


def test_accumulation_and_clipping_equal_plain_torch() -> None:
    """Windows of two batches and a clipped gradient norm, per client."""
    strategy = make_strategy(AFLoRA(), local=LocalTraining(steps=2))
    module, loader = TinyLM("adamw"), round_loader()
    make_trainer(strategy, accumulate_grad_batches=2, gradient_clip_val=0.05).fit(module, loader, eval_loader())

    reference = TinyLM("adamw")
    rounds = visits(loader, [4, 3, 2, 1], 2)
    federate(reference.model, reference.loss, rounds, "aflora", optimizers("adamw"), accumulate=2, clip=0.05)
    for name, value in adapter_tensors(reference).items():
        assert torch.equal(value, adapter_tensors(module)[name]), name
