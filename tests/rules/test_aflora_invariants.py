"""The eight invariants of AFLoRA, in float64, on random slot sets and non-square layers (Linear and Conv1D)."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pl_fed.adapters import Adapter
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.rules import AFLoRA, FFALoRA
from pl_fed.updates import AdapterState, LayerSlots, LayerState, Update
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader

RANK = 6
SHAPES = {"wide": (5, 9), "tall": (11, 4), "square": (7, 7)}  # (d_out, d_in)


def random_server(generator: torch.Generator) -> AdapterState:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = {name: LayerState(normal(RANK, d_in), normal(d_out, RANK)) for name, (d_out, d_in) in SHAPES.items()}
    return AdapterState(layers, {"head": normal(3, 2)})


def random_slots(generator: torch.Generator) -> dict[str, Tensor]:
    """One to six random slots, other ones in every layer."""
    slots = {}
    for name in SHAPES:
        count = int(torch.randint(1, RANK + 1, (1,), generator=generator))
        slots[name] = torch.sort(torch.randperm(RANK, generator=generator)[:count]).values
    return slots


def random_updates(server: AdapterState, generator: torch.Generator, num_clients: int) -> list[Update]:
    updates = []
    for client_id in range(num_clients):
        layers = {
            name: LayerSlots(
                ids, None, torch.randn(SHAPES[name][0], len(ids), generator=generator, dtype=torch.float64)
            )
            for name, ids in random_slots(generator).items()
        }
        dense = {"head": torch.randn(3, 2, generator=generator, dtype=torch.float64)}
        num_examples = int(torch.randint(1, 50, (1,), generator=generator))
        updates.append(Update(client_id, num_examples, layers, dense))
    return updates


def weight(updates: list[Update], name: str, k: int, by_rank: bool) -> float:
    mass = [update.num_examples * (len(update.layers[name].slots) if by_rank else 1) for update in updates]
    return mass[k] / sum(mass)


@given(seed=st.integers(0, 10_000), num_clients=st.integers(1, 6), by_rank=st.booleans())
@settings(max_examples=60, deadline=None)
def test_1_aggregate_is_the_weighted_sum_of_dense_updates(seed: int, num_clients: int, by_rank: bool) -> None:
    """C' A - C A = sum_k w_k (U_k - C[:, I_k]) A[I_k], with every product written out densely."""
    generator = torch.Generator().manual_seed(seed)
    server = random_server(generator)
    updates = random_updates(server, generator, num_clients)
    new = AFLoRA(rank_weights=by_rank).aggregate(server, updates)
    for name, layer in server.layers.items():
        dense = torch.zeros(SHAPES[name], dtype=torch.float64)
        for k, update in enumerate(updates):
            part = update.layers[name]
            for column, slot in enumerate(part.slots.tolist()):
                dense += weight(updates, name, k, by_rank) * torch.outer(part.b[:, column], layer.a[slot])
        moved = new.layers[name].b @ new.layers[name].a - layer.b @ layer.a
        assert (moved - dense).norm() <= 1e-13 * max(1.0, float(dense.norm()))
    total = sum(update.num_examples for update in updates)
    head = server.dense["head"] + sum(u.num_examples / total * u.dense["head"] for u in updates)
    torch.testing.assert_close(new.dense["head"], head, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
def test_1_holds_in_the_network(transposed: bool) -> None:
    """The network's output moves by the weighted sum of the clients' dense updates, for both kinds of layer."""
    generator = torch.Generator().manual_seed(0)
    linear = Conv1D(5, 9) if transposed else nn.Linear(9, 5)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"], fan_in_fan_out=transposed)
    network = get_peft_model(nn.Sequential(linear), config).double()
    adapter = Adapter(network)
    adapter.add_diagonals()
    (name,) = adapter.layers
    state = adapter.read().clone()
    state.layers[name].b = torch.randn(5, RANK, generator=generator, dtype=torch.float64)
    adapter.write(state)
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    before = network(x).detach()
    slots = [torch.tensor([0, 2, 5]), torch.tensor([1, 2])]
    sent = [torch.randn(5, len(ids), generator=generator, dtype=torch.float64) for ids in slots]
    updates = [
        Update(k, 3 + k, {name: LayerSlots(ids, None, b)}) for k, (ids, b) in enumerate(zip(slots, sent, strict=False))
    ]
    adapter.write(AFLoRA(rank_weights=True).aggregate(state, updates))
    mass = [3 * 3, 4 * 2]
    delta = sum(m / sum(mass) * b @ state.layers[name].a[ids] for m, ids, b in zip(mass, slots, sent, strict=False))
    torch.testing.assert_close(network(x).detach(), before + 2.0 * x @ delta.T, rtol=1e-12, atol=1e-12)


def trained_client(seed: int = 0) -> tuple[TinyLM, Adapter, dict[str, Tensor]]:
    """A float64 GPT-2 in the middle of local training on slots 0, 2, 3."""
    module = TinyLM(dropout=0.0).double()
    adapter = Adapter(module)
    adapter.add_diagonals()
    generator = torch.Generator().manual_seed(seed)
    state = adapter.read().clone()
    slots = {name: torch.tensor([0, 2, 3]) for name in state.layers}
    for layer in state.layers.values():
        layer.b = torch.randn(layer.b.shape, generator=generator, dtype=torch.float64)
        layer.a[1], layer.b[:, 1] = 0.0, 0.0
    adapter.write(state, slots)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.diagonal.mul_(1.5 + torch.rand(4, generator=generator, dtype=torch.float64))
    return module, adapter, slots


def logits(module: TinyLM) -> Tensor:
    batch = next(iter(eval_loader()))
    return module.model(input_ids=batch["input_ids"]).logits.detach()


def test_2_folding_the_diagonal_keeps_the_logits() -> None:
    module, adapter, slots = trained_client()
    expected = logits(module)
    assert (logits(TinyLM(dropout=0.0).double()) - expected).abs().max() > 1e-3, "the adapter does nothing"
    folded = adapter.read().clone()
    for name, layer in folded.layers.items():
        layer.b = layer.b * adapter.diagonals()[name]
    adapter.write(folded, slots)  # resets the diagonal to one
    assert all(set(d.tolist()) == {0.0, 1.0} for d in adapter.diagonals().values())
    torch.testing.assert_close(logits(module), expected, rtol=1e-12, atol=1e-12)


def test_3_pruning_changes_no_surviving_slot() -> None:
    """The update on the kept slots is the same with and without pruning, bit for bit."""
    _, adapter, slots = trained_client()
    rule, sides = AFLoRA(), frozenset({"b", "diagonal"})
    before = adapter.read().clone()
    after, diagonals = adapter.read().clone(), {n: d.clone() for n, d in adapter.diagonals().items()}
    whole = rule.update(before, after, diagonals, slots, sides)
    kept = {name: ids[[0, 2]] for name, ids in slots.items()}
    pruned = rule.update(before, after, diagonals, kept, sides)
    for name in slots:
        assert torch.equal(whole[name].b[:, [0, 2]], pruned[name].b)
        assert pruned[name].slots.tolist() == [0, 3]


class Watch(Callback):
    """Records what every client holds and checks A while it trains."""

    def __init__(self) -> None:
        self.held: dict[int, list[dict[str, list[int]]]] = {}
        self.caps: dict[int, int] = {}

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        for name, part in client.broadcast.layers.items():
            if part.a is not None:
                assert torch.equal(part.a, context.server.layers[name].a[part.slots])

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        context = trainer.strategy.loop.federation.context
        for name, layer in trainer.strategy.loop.federation.adapter.layers.items():
            ids = context.client.slots[name]
            assert layer.a.grad is None
            assert torch.equal(layer.a[ids], context.server.layers[name].a[ids])
            assert not layer.a[[i for i in range(4) if i not in ids.tolist()]].any()

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        client = context.client
        self.caps[client.client_id] = client.rank_cap
        held = {name: part.slots.tolist() for name, part in client.update.layers.items()}
        self.held.setdefault(client.client_id, []).append(held)


def test_4_and_5_ranks_stay_in_bounds_and_a_is_shared() -> None:
    """Active slots within [min_rank, cap] and never growing; A without gradient and equal everywhere."""
    watch, pruning = Watch(), RankPruning(eta=0.5, max_share=0.5, warmup_rounds=1, final_share=0.0, min_rank=2)
    clients = ClientsConfig(ranks=[4, 4, 3, 2])
    trainer = make_trainer(make_strategy(AFLoRA(), clients=clients), max_epochs=6, callbacks=[pruning, watch])
    module = TinyLM()
    start = adapter_tensors(module)
    trainer.fit(module, round_loader(), eval_loader())
    shrunk = 0
    for client_id, rounds in watch.held.items():
        for earlier, later in itertools.pairwise(rounds):
            for name in later:
                assert set(later[name]) <= set(earlier[name])
                assert 2 <= len(later[name]) <= watch.caps[client_id]
                shrunk += len(later[name]) < len(earlier[name])
    assert shrunk > 0, "nothing was pruned"
    end = adapter_tensors(module)
    assert all(torch.equal(start[name], end[name]) for name in start if "lora_A" in name)


def test_6_bytes_counted_are_bytes_of_the_tensors_sent() -> None:
    """Upload: U on the surviving slots and their ids; download: C on the slots, A once."""

    class Count(Callback):
        def __init__(self) -> None:
            self.rows: list[tuple[int, int, int, int]] = []

        def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
            client = context.client
            up = sum(p.b.numpy().nbytes + 2 * len(p.slots) for p in client.update.layers.values())
            down = sum(
                p.b.numpy().nbytes + 2 * len(p.slots) + (p.a.numpy().nbytes if p.a is not None else 0)
                for p in client.broadcast.layers.values()
            )
            self.rows.append((client.upload_bytes, up, client.download_bytes, down))

    count = Count()
    make_trainer(make_strategy(), max_epochs=3, callbacks=[count]).fit(TinyLM(), round_loader(), eval_loader())
    assert len(count.rows) == 9
    assert all(sent == up and received == down for sent, up, received, down in count.rows)
    # rank 4, two layers of 8 x 24: 2 * (24 * 4 * 4 bytes + 4 ids of 2 bytes)
    assert max(row[0] for row in count.rows) == 2 * (24 * 4 * 4 + 8)


def test_7_reduces_to_ffa_lora() -> None:
    """Equal ranks, the diagonal frozen at 1, no pruning, no public step: FFA-LoRA bit for bit."""
    results = []
    for rule in (AFLoRA(train_diagonal=False), FFALoRA()):
        module = TinyLM()
        strategy = make_strategy(rule, clients=ClientsConfig(ranks=[4]))
        make_trainer(strategy, max_epochs=3).fit(module, round_loader(), eval_loader())
        results.append(adapter_tensors(module))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_8_slots_nobody_holds_do_not_change(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    server = random_server(generator)
    updates = random_updates(server, generator, 2)
    new = AFLoRA().aggregate(server, updates)
    for name, layer in server.layers.items():
        held = {slot for update in updates for slot in update.layers[name].slots.tolist()}
        for slot in set(range(RANK)) - held:
            assert torch.equal(new.layers[name].b[:, slot], layer.b[:, slot])
        assert torch.equal(new.layers[name].a, layer.a)


def test_literal_and_slot_modes_by_hand() -> None:
    """Two clients, one layer of 1 x 1 with two slots; C = (10, 20), n = (1, 3);
    client 0 holds both slots, client 1 the first.

    w = (1*2, 3*1) / 5. Client 0 sends U = (12, 24), client 1 U = (8).
    literal: slot 0 = .4*12 + .6*8 = 9.6, slot 1 = .4*24 = 9.6.  slot: slot 0 = 9.6, slot 1 = 24.
    delta: slot 0 = 10 + .4*2 + .6*(-2) = 9.6, slot 1 = 20 + .4*4 = 21.6.
    """
    c = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    server = AdapterState({"x": LayerState(torch.ones(2, 1, dtype=torch.float64), c)})
    first = LayerSlots(torch.tensor([0, 1]), None, torch.tensor([[2.0, 4.0]], dtype=torch.float64))
    second = LayerSlots(torch.tensor([0]), None, torch.tensor([[-2.0]], dtype=torch.float64))
    updates = [Update(0, 1, {"x": first}), Update(1, 3, {"x": second})]
    expected = {"literal": [9.6, 9.6], "slot": [9.6, 24.0], "delta": [9.6, 21.6]}
    for mode, values in expected.items():
        found = AFLoRA(mode, rank_weights=True).aggregate(server, updates).layers["x"].b  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor([values], dtype=torch.float64), rtol=1e-14, atol=1e-14)
