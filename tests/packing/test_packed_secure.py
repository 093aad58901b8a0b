"""Clients that train together, behind secure aggregation: the server's sum is that of clients who train alone.

Rounding draws by (seed, round, client) and sums are of integers, so neither the order in which clients end nor who is
in a chunk has a part in it: updates that agree to 1e-12 in float64 become the same integers, but for a value that lies
within 1e-12 of where rounding turns, which the grid's step of 4e-6 makes one in millions.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor

from pl_fed.chunks import Packing
from pl_fed.context import RoundContext
from pl_fed.privacy import mean_error_bound
from pl_fed.privacy.pairwise.errors import ModelMismatchError
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT
from pl_fed.secure_round import SecureAggregation
from tests.helpers.packed import federation, in_float64, largest_difference, loader, module_of, randomise, run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Folder = Callable[..., str]
PACKING = Packing(clients=3, tokens=60)  # two chunks, in another order than that of the cohort


class Seen(pl.Callback):
    """Notes how many single updates the server's hooks can see, and every client's bytes."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []
        self.bytes: list[dict[int, int]] = []

    def on_aggregate(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        tensors = sum(client.update is not None or client.after is not None for client in context.finished)
        self.updates.append((len(context.updates), tensors))
        self.bytes.append({client.client_id: client.upload_bytes for client in context.finished})


def trained(kind: str, folder: Folder, rule: Any, engine: Any, secure: Any, **changes: Any) -> dict[str, Tensor]:
    module = in_float64(module_of(kind, folder(kind)))
    trainer = {"callbacks": changes.pop("callbacks", []), "max_epochs": changes.pop("rounds", 2)}
    strategy = federation(rule, engine, secure_aggregation=secure, **changes)
    found = run(module, strategy, loader(kind), randomise, precision="64-true", **trainer)
    assert strategy.engine.name == ("sequential" if engine == "sequential" else "packed")
    return found


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
@pytest.mark.parametrize(("kind", "rule"), [("bert", FedIT), ("gpt2", AFLoRA), ("vit", FedIT)])
def test_the_sum_is_the_same(kind: str, rule: Any, backend: Any, folder: Folder) -> None:
    """Two rounds, unequal ranks and numbers of batches, a head: equal integers, so equal adapters after both."""
    seen = [Seen(), Seen()]
    found = [
        trained(kind, folder, rule(), engine, backend, callbacks=[hooks])
        for engine, hooks in zip(("sequential", PACKING), seen, strict=True)
    ]
    assert largest_difference(*found) < 1e-9
    assert [hooks.updates for hooks in seen] == [[(0, 0)] * 2] * 2, "the server sees no single update"
    assert seen[0].bytes == seen[1].bytes and len(seen[0].bytes[0]) == 4


def test_a_round_is_that_of_the_open_server_up_to_a_step(folder: Folder) -> None:
    """With a client that drops out: the sum is rounded, to the same integers with both engines."""
    settings: dict[str, Any] = {"cohort": CohortConfig(dropout=0.2), "rounds": 1}
    secure = SecureAggregation(bits=16)
    opened, packed = (trained("bert", folder, FedIT(), PACKING, value, **settings) for value in (None, secure))
    assert 1e-9 < largest_difference(opened, packed) < 1.01 * mean_error_bound(secure.fixed_point)
    alone = trained("bert", folder, FedIT(), "sequential", secure, callbacks=[seen := Seen()], **settings)
    assert largest_difference(alone, packed) < 1e-9 and len(seen.bytes[0]) == 3


class Fishing(pl.Callback):
    """A server that sends one client of a chunk another B."""

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.round_idx == 1 and context.client.client_id == 2:
            part = next(iter(context.client.broadcast.layers.values()))
            part.b = part.b + 1e-3


def test_a_client_with_another_model_stops_the_round(folder: Folder) -> None:
    """Every client of a chunk hashes what it received itself."""
    with pytest.raises(ModelMismatchError, match=r"round 1.*client.* 2"):
        trained("gpt2", folder, AFLoRA(), PACKING, "ideal", callbacks=[Fishing()])
