"""Rank pruning in runs: what clients hold and get back, and slots that stay zero under a plain Trainer."""

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from pl_fed.adapters import Adapter
from pl_fed.callbacks._slot_importance import slot_energy
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT, FFALoRA
from tests.helpers.tiny import RANK, TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


class Watch(pl.Callback):
    """Notes what every client receives and sends, and the server's energy at its start."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, str, list[int], list[int]]] = []
        self.energy: dict[tuple[int, str], Tensor] = {}
        self.caps: dict[int, int] = {}

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.received = {name: part.slots.tolist() for name, part in context.client.broadcast.layers.items()}
        for name, layer in context.server.layers.items():
            self.energy[context.round_idx, name] = slot_energy(layer.a, layer.b)

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        self.caps[client.client_id] = client.rank_cap
        for name, part in client.update.layers.items():
            self.rows.append((context.round_idx, client.client_id, name, self.received[name], part.slots.tolist()))


def watched(pruning: RankPruning, num_rounds: int, rule: Any = None, **options: Any) -> Watch:
    watch = Watch()
    strategy = make_strategy(rule or AFLoRA(), cohort=CohortConfig(), **options)
    trainer = make_trainer(strategy, max_epochs=num_rounds, callbacks=[pruning, watch])
    trainer.fit(TinyLM(), round_loader(), eval_loader())
    return watch


def test_no_pruning_in_the_warm_up_and_the_last_tenth() -> None:
    """Eta 0 drops what `max_share` allows (half of four is two, of two one): in rounds 1, 2 and 3 of 5 only."""
    pruning = RankPruning(eta=0.0, max_share=0.5, warmup_rounds=1, final_share=0.1)
    watch = watched(pruning, 5, clients=ClientsConfig(ranks=[4]))
    for round_idx, client_id, name, received, sent in watch.rows:
        expected = {0: (4, 4), 1: (4, 2), 2: (2, 1), 3: (1, 1), 4: (1, 1)}[round_idx]
        assert (len(received), len(sent)) == expected, (client_id, name)


@pytest.mark.parametrize("importance", ["energy", "lambda"])
def test_the_kept_slots_are_the_strongest_of_the_client(importance: Any) -> None:
    """Recomputed from what the client has at the end of its training: the dense terms of B diag(lam) A, or |lam|."""

    class Check(pl.Callback):
        seen = 0

        def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
            client = context.client
            self.expected = {}
            for name, ids in client.slots.items():
                layer, lam = client.after.layers[name], client.diagonals[name]
                norms = {i: float((lam[i] * torch.outer(layer.b[:, i], layer.a[i])).norm()) for i in ids.tolist()}
                norms = norms if importance == "energy" else {i: abs(float(lam[i])) for i in ids.tolist()}
                self.expected[name] = sorted(sorted(norms, key=norms.get)[math.floor(0.5 * len(norms)) :])

        def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
            for name, part in context.client.update.layers.items():
                assert part.slots.tolist() == self.expected[name]
                self.seen += len(part.slots) < RANK

    check = Check()
    pruning = RankPruning(eta=0.0, max_share=0.5, warmup_rounds=0, final_share=0.0, importance=importance)
    strategy = make_strategy(clients=ClientsConfig(ranks=[4]))
    make_trainer(strategy, callbacks=[check, pruning]).fit(TinyLM(), round_loader(), eval_loader())
    assert check.seen == 2 * 3 * 2


@pytest.mark.parametrize("regrow", [False, True])
def test_the_cubic_budget_is_followed_to_its_end(regrow: bool) -> None:
    """From 4 to 1 in four rounds: ceil(1 + 3 (3/4)^3) = 3, ceil(1 + 3/8) = 2, ceil(1 + 3/64) = 2, 1; then it stays."""
    pruning = RankPruning(schedule="cubic", warmup_rounds=0, final_share=0.2, regrow=regrow)
    watch = watched(pruning, 5, clients=ClientsConfig(ranks=[4]))
    assert {(round_idx, len(sent)) for round_idx, _, _, _, sent in watch.rows} == {
        (0, 3),
        (1, 2),
        (2, 2),
        (3, 1),
        (4, 1),
    }


def test_regrowth_gives_back_the_strongest_slots_up_to_the_cap() -> None:
    """Caps 4, 3, 2, 1; every round drops down to one slot. Then a client gets back max(1, 0.5 * cap) slots: those of
    the server's strongest that it does not hold."""
    pruning = RankPruning(eta=0.0, max_share=0.5, warmup_rounds=1, final_share=0.0, regrow=True)
    watch = watched(pruning, 5)
    held: dict[tuple[int, str], list[int]] = {}
    grown = 0
    for round_idx, client_id, name, received, sent in watch.rows:
        before, cap = held.get((client_id, name), list(range(watch.caps[client_id]))), watch.caps[client_id]
        assert len(received) <= cap and set(before) <= set(received) and received == sorted(set(received))
        if round_idx >= 1:
            energy = watch.energy[round_idx, name]
            others = sorted(set(range(RANK)) - set(before), key=lambda i: (-float(energy[i]), i))
            room = min(cap - len(before), max(1, cap // 2))
            assert set(received) - set(before) == set(others[:room])
            grown += room
        held[client_id, name] = sent
    assert watch.caps == {0: 4, 1: 3, 2: 2, 3: 1} and grown > 20


def test_regrowth_stays_within_a_layer_that_is_smaller_than_the_cap() -> None:
    """A layer of two slots (`rank_pattern`) of a client with a cap of four has nothing to give back."""

    class Uneven(TinyLM):
        def __init__(self) -> None:
            super().__init__()
            layer = self.model.base_model.model.transformer.h[1].attn.c_attn
            layer.lora_A["default"], layer.lora_B["default"] = nn.Linear(8, 2, bias=False), nn.Linear(2, 24, bias=False)
            nn.init.zeros_(layer.lora_B["default"].weight)

    watch = Watch()
    pruning = RankPruning(eta=1.0, warmup_rounds=0, final_share=0.0, regrow=True)
    strategy = make_strategy(clients=ClientsConfig(ranks=[4]))
    make_trainer(strategy, callbacks=[pruning, watch]).fit(Uneven(), round_loader(), eval_loader())
    received = {name: slots for _, _, name, slots, _ in watch.rows}
    assert sorted(received.values()) == [[0, 1], [0, 1, 2, 3]]


def test_without_regrowth_nothing_comes_back() -> None:
    watch = watched(RankPruning(eta=0.0, max_share=0.5, warmup_rounds=0, final_share=0.0), 3)
    held: dict[tuple[int, str], list[int]] = {}
    for _, client_id, name, received, sent in watch.rows:
        assert received == held.get((client_id, name), received) and set(sent) <= set(received)
        held[client_id, name] = sent


@pytest.mark.parametrize("rule", [FedIT(), FFALoRA(), AFLoRA(train_diagonal=False)], ids=lambda r: type(r).__name__)
def test_lambda_needs_a_diagonal(rule: Any) -> None:
    with pytest.raises(FederatedConfigError, match="learnable diagonal for `importance: lambda` but this one has none"):
        watched(RankPruning(importance="lambda", warmup_rounds=0, final_share=0.0), 1, rule)


# ---------------------------------------------------------------- under a plain Trainer


class Plain(TinyLM):
    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__(optimizer, dropout=0.0)
        for layer in Adapter(self).layers.values():
            nn.init.normal_(layer.b, std=0.1)


def plain_loader() -> Any:
    """Without a strategy of rounds, a `RoundLoader` is an ordinary loader of ten batches."""
    return round_loader()


class Zeros(pl.Callback):
    """Checks after every batch that what was pruned is still zero, and notes how many slots are left."""

    def __init__(self) -> None:
        self.active: list[list[int]] = []
        self.gone: dict[str, set[int]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for name, layer in Adapter(pl_module).layers.items():
            for slot in self.gone.get(name, ()):
                assert not layer.a[slot].any() and not layer.b[:, slot].any(), f"slot {slot} came back"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for name, layer in Adapter(pl_module).layers.items():
            zero = {i for i in range(RANK) if not layer.a[i].any() and not layer.b[:, i].any()}
            assert zero >= self.gone.get(name, set())
            self.gone[name] = zero
        self.active.append([RANK - len(zero) for zero in self.gone.values()])


def plain_fit(
    module: Plain, pruning: RankPruning, max_epochs: int, *callbacks: Any, **options: Any
) -> tuple[pl.Trainer, Zeros]:
    zeros = Zeros()
    trainer = make_trainer("auto", max_epochs=max_epochs, callbacks=[pruning, zeros, *callbacks])
    trainer.fit(module, plain_loader(), eval_loader(), **options)
    return trainer, zeros


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_pruned_slots_stay_zero_under_a_plain_trainer(optimizer: str) -> None:
    """Both optimizers carry momentum, which would move a slot that was only set to zero once."""
    module = Plain(optimizer)
    pruning = RankPruning(eta=0.0, max_share=0.5, warmup_rounds=1, final_share=0.2)
    _, zeros = plain_fit(module, pruning, 5)
    assert zeros.active == [[4, 4], [2, 2], [1, 1], [1, 1], [1, 1]]
    small = nn.ModuleList()  # the same output from a network that only has the slots that are left
    batch = next(iter(eval_loader()))
    expected = module.model(input_ids=batch["input_ids"]).logits
    for layer in Adapter(module).layers.values():
        (kept,) = (layer.b.any(0)).nonzero().tolist()
        lora_a, lora_b = nn.Linear(8, 1, bias=False), nn.Linear(1, 24, bias=False)
        lora_a.weight, lora_b.weight = nn.Parameter(layer.a[kept].detach()), nn.Parameter(layer.b[:, kept].detach())
        layer.module.lora_A["default"], layer.module.lora_B["default"] = lora_a, lora_b
        small.append(lora_a)
    assert len(small) == 2
    found = module.model(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - Plain(optimizer).model(input_ids=batch["input_ids"]).logits).abs().max() > 1e-3


class SaveEachEpoch(Checkpoint):
    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("importance", ["energy", "sensitivity"])
def test_a_plain_run_resumes_bit_for_bit(importance: Any, tmp_path: Any) -> None:
    """From each epoch's checkpoint, the pruned slots and the smoothed scores included."""

    def fit(*callbacks: Any, ckpt_path: Any = None) -> dict[str, Tensor]:
        module = Plain()
        pruning = RankPruning(eta=0.0, max_share=0.3, warmup_rounds=0, final_share=0.2, importance=importance)
        plain_fit(module, pruning, 4, *callbacks, ckpt_path=ckpt_path)
        return adapter_tensors(module)

    expected = fit(SaveEachEpoch(tmp_path))
    for path in sorted(tmp_path.iterdir())[:3]:
        found = fit(ckpt_path=path)
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), path.name
    assert len(list(tmp_path.iterdir())) == 4


def test_one_callback_serves_several_runs() -> None:
    """First rounds, then a plain run, then another module: each as with a callback of its own."""
    options: dict[str, Any] = {"eta": 0.0, "max_share": 0.5, "warmup_rounds": 0, "final_share": 0.0}
    shared = RankPruning(**options)
    watched(shared, 1)
    for pruning in (shared, shared, RankPruning(**options)):
        _, zeros = plain_fit(Plain(), pruning, 1)
        assert zeros.active == [[2, 2]]
