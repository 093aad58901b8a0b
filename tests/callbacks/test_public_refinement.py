"""Public-data refinement against a plain-torch loop on the same batches, and everything it must leave alone.

The reference shares with the callback only the seeds: of round r, s = derive_seed(seed, r, 0xAB) seeds dropout, and
derive_seed(s, e) the order of the e-th pass over the public data.
"""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pl_fed.adapters import Adapter
from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.rounds import derive_seed
from pl_fed.rules import FedIT
from pl_fed.updates import AdapterState
from tests.helpers.refinement import SEED, Watch, equal, fit
from tests.helpers.tiny import TinyLM, Tokens, eval_loader, make_strategy, make_trainer, round_loader


def refined(start: AdapterState, round_idx: int, steps: int, lr: float, sides: str, decay: float = 0.0) -> AdapterState:
    """Train the chosen sides of an adapter on the public data in plain torch; dropout is on."""
    module = TinyLM()
    pairs = {}
    for name, layer in module.named_modules():
        if name in start.layers:
            pairs[name] = {"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight}
    with torch.no_grad():
        for name, pair in pairs.items():
            pair["a"].copy_(start.layers[name].a)
            pair["b"].copy_(start.layers[name].b)
    module.requires_grad_(False)
    trained = [pair[side].requires_grad_() for side in sides for pair in pairs.values()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=decay)
    seed = derive_seed(SEED, round_idx, 0xAB)
    torch.manual_seed(seed)
    batches: list[dict[str, Tensor]] = []
    epoch = 0
    while len(batches) < steps:
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        batches += list(DataLoader(Tokens(9), batch_size=3, shuffle=True, generator=generator))
        epoch += 1
    for batch in batches[:steps]:
        optimizer.zero_grad()
        module.loss(batch).backward()
        optimizer.step()
    tensors = {f"{name}/{side}": p.detach() for name, pair in pairs.items() for side, p in pair.items()}
    return AdapterState.from_tensors(tensors)


@pytest.mark.parametrize("steps", [2, 7], ids=["part of a pass", "more than two passes"])
def test_it_is_a_plain_adamw_loop_on_a(steps: int) -> None:
    """Bit for bit, with a tenth of the clients' rate of 0.02; only A moves, and the server takes it over."""
    before, after, journal, _ = fit(PublicRefinement(steps=steps), max_epochs=3)
    assert len(before.states) == 3
    for round_idx, (start, end, server) in enumerate(zip(before.states, after.states, journal.servers, strict=True)):
        assert equal(end, refined(start, round_idx, steps, 0.1 * 2e-2, "a"))
        assert equal(end, server)
        for name, layer in start.layers.items():
            assert torch.equal(layer.b, end.layers[name].b) and not torch.equal(layer.a, end.layers[name].a)


def test_rate_decay_and_sides_are_those_that_were_asked_for() -> None:
    """With FedIT, both factors, a rate of its own and weight decay."""
    refinement = PublicRefinement(steps=3, lr=0.05, weight_decay=0.1, sides=["b", "a"])
    before, after, _, _ = fit(refinement, FedIT())
    for round_idx, (start, end) in enumerate(zip(before.states, after.states, strict=True)):
        assert equal(end, refined(start, round_idx, 3, 0.05, "ab", decay=0.1))
        assert not any(torch.equal(value, end.tensors()[name]) for name, value in start.tensors().items())


def test_the_loss_of_the_steps_is_a_figure_of_the_round() -> None:
    """The mean over the steps: of one step, the loss of the start on the first public batch."""
    before, _, journal, trainer = fit(PublicRefinement(steps=1), make=lambda: TinyLM(dropout=0.0))
    for round_idx, start in enumerate(before.states):
        module = TinyLM(dropout=0.0)
        Adapter(module).write(start)
        generator = torch.Generator().manual_seed(derive_seed(derive_seed(SEED, round_idx, 0xAB), 0))
        batch = next(iter(DataLoader(Tokens(9), batch_size=3, shuffle=True, generator=generator)))
        assert journal.metrics[round_idx]["server/public_loss"] == pytest.approx(module.loss(batch).item(), rel=1e-6)
    logged = float(trainer.callback_metrics["server/public_loss"])
    assert logged == pytest.approx(journal.metrics[-1]["server/public_loss"])


class NoGradient(TinyLM):
    """On clients the loss does not depend on the adapter."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        trained = [p for p in self.parameters() if p.requires_grad]
        if "log" not in vars(self):  # a client's step, not the server's
            return sum((p * 0.0).sum() for p in trained)  # type: ignore[return-value]
        return self.loss(batch)


def test_it_is_skipped_while_b_is_zero() -> None:
    """A has no gradient then: nothing is trained and no figure is logged. B alone has one."""
    start = Adapter(TinyLM()).read().clone()
    _, after, journal, _ = fit(PublicRefinement(steps=2, lr=0.1), make=NoGradient)
    assert all(equal(state, start) for state in (*after.states, *journal.servers)) and journal.metrics == [{}, {}]
    _, after, journal, _ = fit(PublicRefinement(steps=2, lr=0.1, sides=["b"]), make=NoGradient)
    assert not equal(after.states[0], start) and "server/public_loss" in journal.metrics[0]


def test_every_n_rounds() -> None:
    """Of four rounds with n = 2 the first and the third."""
    before, after, journal, _ = fit(PublicRefinement(steps=1, every_n_rounds=2), max_epochs=4)
    moved = [not equal(first, second) for first, second in zip(before.states, after.states, strict=True)]
    assert moved == [True, False, True, False]
    assert ["server/public_loss" in metrics for metrics in journal.metrics] == moved


def test_server_only_is_a_server_that_trains_alone() -> None:
    """Three times two steps on A and B, from the module's start, whatever the clients send."""
    refinement = PublicRefinement(steps=2, lr=0.03, sides=["a", "b", "dense"], server_only=True)
    _, _, journal, _ = fit(refinement, max_epochs=3)
    server = Adapter(TinyLM()).read().clone()
    for round_idx, found in enumerate(journal.servers):
        server = refined(server, round_idx, 2, 0.03, "ab")
        assert equal(found, server)


def test_server_only_keeps_its_own_adapter_between_refinements() -> None:
    refinement = PublicRefinement(steps=2, sides=["b"], server_only=True, every_n_rounds=2)
    *_, journal, _ = fit(refinement, max_epochs=3)
    assert equal(journal.servers[0], journal.servers[1]) and not equal(journal.servers[1], journal.servers[2])


class WithHead(TinyLM):
    """Has a dense tensor beside the adapter."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.bias = nn.Parameter(torch.zeros(32))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"]).logits + self.bias
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def test_dense_tensors_are_trained_when_asked_for() -> None:
    before, after, _, _ = fit(PublicRefinement(steps=1, sides=["dense"]), make=WithHead)
    for start, end in zip(before.states, after.states, strict=True):
        moved = {name for name, value in start.tensors().items() if not torch.equal(value, end.tensors()[name])}
        assert moved == {"bias"}


class WithDictLoss(TinyLM):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx)}


def test_a_step_may_return_a_dict_and_the_data_may_be_the_datamodules() -> None:
    """A datamodule's public data goes before the module's own; here it has the same examples."""

    class Data(pl.LightningDataModule):
        asked = 0

        def train_dataloader(self) -> Any:
            return round_loader()

        def val_dataloader(self) -> Any:
            return eval_loader()

        def public_dataloader(self) -> Any:
            self.asked += 1
            return DataLoader(Tokens(9), batch_size=3, shuffle=True, generator=torch.Generator())

    data, after = Data(), Watch()
    trainer = make_trainer(make_strategy(seed=SEED), callbacks=[PublicRefinement(steps=2), after])
    trainer.fit(WithDictLoss(), data)
    _, expected, _, _ = fit(PublicRefinement(steps=2))
    assert data.asked == 2 and all(equal(x, y) for x, y in zip(after.states, expected.states, strict=True))
