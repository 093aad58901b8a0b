"""Rank pruning with optimizers that clients keep: moments of slots that a client does not hold are gone."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pl_fed.adapters import Adapter
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FedSALoRA, HetLoRA, Rule
from tests.helpers.tiny import RANK, TinyLM, eval_loader, make_strategy, make_trainer, round_loader

Moments = dict[str, Tensor]


def others(slots: Tensor) -> list[int]:
    return sorted(set(range(RANK)) - set(slots.tolist()))


def fit(rule: Rule, optimizer: str, max_epochs: int, *callbacks: pl.Callback) -> None:
    strategy = make_strategy(
        rule,
        cohort=CohortConfig(),
        clients=ClientsConfig(ranks=[4]),
        local=LocalTraining(optimizer="kept"),
    )
    trainer = make_trainer(strategy, max_epochs=max_epochs, callbacks=[*callbacks])
    trainer.fit(TinyLM(optimizer), round_loader(), eval_loader())


class Outside(pl.Callback):
    """Checks at the end of every client's training that nothing is where it was sent no slot."""

    checked = 0

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        assert client is not None and client.after is not None
        for name, part in client.broadcast.layers.items():
            layer, ids, gone = client.after.layers[name], part.slots, others(part.slots)
            assert not layer.a[gone].any() and not layer.b[:, gone].any(), (context.round_idx, client.client_id, name)
            if name in client.diagonals:
                assert not client.diagonals[name][gone].any()
            assert layer.a[ids].any(1).all() and layer.b[:, ids].any(0).all()
            self.checked += len(gone) > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("rule", [FedIT, FedSALoRA, AFLoRA], ids=lambda rule: rule.__name__)
def test_pruned_slots_stay_zero(rule: Any, optimizer: str) -> None:
    """Half of four slots go in round 0: four clients of two layers have slots to stay out of in rounds 1 and 2.

    Momentum of A and of B, which both had, would move both sides of a slot away from zero.
    """
    check = Outside()
    fit(rule(), optimizer, 3, check, RankPruning(eta=0.0, max_share=0.5, warmup_rounds=0, final_share=0.0))
    assert check.checked == 2 * 4 * 2


def test_slots_that_the_rule_prunes_stay_zero() -> None:
    """HetLoRA prunes by itself; it has pruned somebody, or nothing was checked."""
    check = Outside()
    fit(HetLoRA(gamma=0.99, penalty=0.5), "adamw", 5, check)
    assert check.checked > 0


class Moved(pl.Callback):
    """Compares what a client's optimizer begins with with what it ended with, slot by slot."""

    def __init__(self) -> None:
        self.ended: dict[int, Moments] = {}
        self.held: dict[int, dict[str, Tensor]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.regrown = self.carried = 0

    def moments(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Moments:
        """Return every moment with its slots in front."""
        found, (optimizer,) = {}, trainer.optimizers
        for name, layer in Adapter(pl_module).layers.items():
            for side, parameter in (("a", layer.a), ("b", layer.b.T), ("diagonal", layer.diagonal)):
                live = layer.b if side == "b" else parameter
                for key, value in optimizer.state.get(live, {}).items():
                    if value.dim():
                        found[f"{name}/{side}/{key}"] = (value.T if side == "b" else value).clone()
        return found

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        federation = trainer.strategy.loop.federation
        client, round_idx = federation.current.client, federation.context.round_idx
        if client.client_id not in self.ended or (round_idx, client.client_id) in self.seen:
            return
        self.seen.add((round_idx, client.client_id))
        ended = self.ended[client.client_id]
        for name, value in self.moments(trainer, pl_module).items():
            ids, held = client.slots[name.split("/")[0]], self.held[client.client_id][name.split("/")[0]].tolist()
            for slot in range(RANK):
                if slot in held:
                    assert slot in ids and torch.equal(value[slot], ended[name][slot])
                    self.carried += bool(value[slot].any())
                else:
                    assert not value[slot].any(), (round_idx, client.client_id, name, slot)
                    self.regrown += slot in ids and bool(ended[name][slot].any())

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.client is not None
        self.ended[context.client.client_id] = self.moments(trainer, pl_module)

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.client is not None
        self.held[context.client.client_id] = dict(context.client.slots)


@pytest.mark.parametrize(("rule", "optimizer"), [(FedIT, "sgd"), (FedIT, "adamw"), (AFLoRA, "adamw")])
def test_regrown_slots_begin_with_zero_moments(rule: Any, optimizer: str) -> None:
    """Those that stayed go on with theirs, bit for bit."""
    check = Moved()
    pruning = RankPruning(eta=0.0, max_share=0.5, warmup_rounds=0, final_share=0.0, regrow=True)
    fit(rule(), optimizer, 3, check, pruning)
    assert check.regrown > 0 and check.carried > 0
