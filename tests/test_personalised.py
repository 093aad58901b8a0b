"""Personalised evaluation: every client is tested with the adapter that it kept, loaded by hand for comparison."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT
from tests.helpers.tiny import TinyLM, Tokens, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader

HELD = [[0, 1, 2], [3, 4], [], [5, 6, 7, 8]]  # client 2 has no test examples
KEEP = ClientsConfig(ranks=[4, 3, 2, 1], keep_adapters=True)
Adapters = dict[int, dict[str, Tensor]]  # of clients, by parameter name


class Held(Dataset[dict[str, Tensor]]):
    """Test examples that name their client."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        (owner,) = [client_id for client_id, shard in enumerate(HELD) if index in shard]
        return {"input_ids": Tokens(9).ids[index], "client_id": torch.tensor(owner)}


def loader(personalised: bool, dataset: Any = None) -> ClientLoader:
    return ClientLoader(Held() if dataset is None else dataset, HELD, batch_size=2, personalised=personalised)


class Probe(TinyLM):
    """Notes the logits of every test batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, Tensor]] = []

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        client_id = int(batch["client_id"][0]) if "client_id" in batch else -1
        assert "client_id" not in batch or (batch["client_id"] == client_id).all()
        self.seen.append((dataloader_idx, client_id, self.model(input_ids=batch["input_ids"]).logits))


class Own(pl.Callback):
    """Notes each client's adapter at the end of its training, with its diagonal folded, and the server's after it."""

    def __init__(self) -> None:
        self.by_round: list[dict[int, dict[str, Tensor]]] = []
        self.servers: list[dict[str, Tensor]] = []

    def on_round_start(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.by_round.append(dict(self.by_round[-1]) if self.by_round else {})

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        own = {}
        for name, module in pl_module.named_modules():
            if "default" in getattr(module, "lora_A", {}):
                a, b = module.lora_A["default"], module.lora_B["default"]
                own[f"{name}.lora_A.default.weight"] = a.weight.detach().clone()
                own[f"{name}.lora_B.default.weight"] = (b.weight * getattr(a, "diagonal", 1.0)).detach().clone()
        self.by_round[-1][context.client.client_id] = own

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.servers.append(adapter_tensors(pl_module))


def fit(rule: Any = None, max_epochs: int = 2, clients: ClientsConfig = KEEP) -> tuple[pl.Trainer, Probe, Own]:
    """Train two clients in each round."""
    module, own = Probe(), Own()
    strategy = make_strategy(rule or AFLoRA(), cohort=CohortConfig(clients=2), clients=clients)
    trainer = make_trainer(strategy, max_epochs=max_epochs, callbacks=[own])
    trainer.fit(module, round_loader(), eval_loader())
    return trainer, module, own


def by_hand(adapters: Adapters, server: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield the logits of every batch of the loader, from a fresh network with the client's adapter loaded."""
    for client_id, shard in enumerate(HELD):
        for start in range(0, len(shard), 2):
            network = TinyLM().eval()
            network.load_state_dict(adapters.get(client_id, server), strict=False)
            batch = default_collate([Held()[i] for i in shard[start : start + 2]])
            with torch.no_grad():
                yield client_id, network.model(input_ids=batch["input_ids"]).logits


def check(
    seen: list[tuple[int, int, Tensor]], adapters: dict[int, dict[str, Tensor]], server: dict[str, Tensor]
) -> None:
    expected = list(by_hand(adapters, server))
    assert [client_id for _, client_id, _ in seen] == [client_id for client_id, _ in expected] == [0, 0, 1, 3, 3]
    for (_, client_id, found), (_, logits) in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6, msg=f"client {client_id}")


@pytest.mark.parametrize("rule", [AFLoRA, FedIT])
def test_each_client_is_tested_with_its_own_adapter(rule: Any) -> None:
    """One round of two clients: these with theirs, the others, which never took part, with the server's."""
    trainer, module, own = fit(rule(), max_epochs=1)
    server = adapter_tensors(module)
    trainer.test(module, loader(True), verbose=False)
    (adapters,) = own.by_round
    assert len(adapters) == 2 and set(adapters) & {0, 1, 3}
    check(module.seen, adapters, server)
    plain = [logits for _, logits in by_hand({}, server)]
    differs = [
        bool((found - logits).abs().max() > 1e-4) for (_, _, found), logits in zip(module.seen, plain, strict=True)
    ]
    assert differs == [client_id in adapters for _, client_id, _ in module.seen]
    assert all(torch.equal(value, server[name]) for name, value in adapter_tensors(module).items())


def test_only_the_personalised_loader_gets_them() -> None:
    """Before it, after it, and in a list or a dict of loaders; then the server is back."""
    trainer, module, own = fit()
    server = adapter_tensors(module)
    several = [loader(False), loader(True), eval_loader(), loader(True), loader(False)]
    for loaders in (several, dict(enumerate(several))):
        module.seen = []
        trainer.test(module, loaders, verbose=False)
        for i, adapters in ((0, {}), (1, own.by_round[-1]), (3, own.by_round[-1]), (4, {})):
            check([row for row in module.seen if row[0] == i], adapters, server)
        plain = [logits for i, _, logits in module.seen if i == 2]
        network = TinyLM().eval()
        network.load_state_dict(server, strict=False)
        expected = [network.model(input_ids=batch["input_ids"]).logits.detach() for batch in eval_loader()]
        torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(value, server[name]) for name, value in adapter_tensors(module).items())


def test_from_a_checkpoint_with_a_new_trainer(tmp_path: Path) -> None:
    """Nothing of the run is left but the file; the strategy need not say `keep_adapters`."""
    trainer, module, own = fit()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh = Probe()
    make_trainer(make_strategy()).test(fresh, loader(True), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    server = adapter_tensors(module)
    check(fresh.seen, own.by_round[-1], server)
    assert all(torch.equal(value, server[name]) for name, value in adapter_tensors(fresh).items())


def test_a_checkpoint_brings_its_own_adapters(tmp_path: Path) -> None:
    """The first round's checkpoint is tested after the second round, in the same Trainer."""

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    module, own = Probe(), Own()
    strategy = make_strategy(cohort=CohortConfig(clients=3), clients=KEEP)
    trainer = make_trainer(strategy, callbacks=[own, Save()])
    trainer.fit(module, round_loader(), eval_loader())
    trainer.test(module, loader(True), verbose=False)
    check(module.seen, own.by_round[1], own.servers[1])
    module.seen = []
    trainer.test(module, loader(True), ckpt_path=tmp_path / "0.ckpt", verbose=False)
    check(module.seen, own.by_round[0], own.servers[0])
    module.seen = []
    trainer.test(module, loader(True), verbose=False)  # the network is still that of the first round
    check(module.seen, own.by_round[0], own.servers[0])


def test_a_resumed_run_goes_over_to_its_own_adapters(tmp_path: Path) -> None:
    first, _, _ = fit(max_epochs=1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    _, _, expected = fit()
    module, own = Probe(), Own()
    strategy = make_strategy(cohort=CohortConfig(clients=2), clients=KEEP)
    trainer = make_trainer(strategy, callbacks=[own])
    trainer.fit(module, round_loader(), eval_loader(), ckpt_path=tmp_path / "a.ckpt")
    trainer.test(module, loader(True), verbose=False)
    check(module.seen, expected.by_round[1], adapter_tensors(module))


def test_the_server_is_back_after_a_failed_test() -> None:
    trainer, module, _ = fit()
    server = adapter_tensors(module)

    class Fails(pl.Callback):
        def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            own = adapter_tensors(pl_module)
            assert any(not torch.equal(value, server[name]) for name, value in own.items()), "no client's adapter"
            raise RuntimeError("broken")

    trainer.callbacks.append(Fails())  # type: ignore[attr-defined]
    shards = ClientLoader(Held(), HELD, personalised=True)
    trained = {k for k, state in trainer.strategy.loop.federation.states.items() if state.adapter}  # type: ignore[attr-defined]
    shards.batch_sampler.shards = [HELD[k] if k in trained else [] for k in range(4)]  # begin with one of them
    with pytest.raises(RuntimeError, match="broken"):
        trainer.test(module, shards, verbose=False)
    assert all(torch.equal(value, server[name]) for name, value in adapter_tensors(module).items())


# ---------------------------------------------------------------- refusals


def test_no_kept_adapters_are_an_error(tmp_path: Path) -> None:
    """After a run without `keep_adapters`, from its checkpoint, and without any run; other loaders are tested."""
    message = "Expected clients' own adapters .* but none were kept: train with `clients.keep_adapters: true`"
    trainer, module, _ = fit(clients=ClientsConfig())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(FederatedConfigError, match=message):
        trainer.test(module, loader(True), verbose=False)
    trainer.test(module, loader(False), verbose=False)
    with pytest.raises(FederatedConfigError, match=message):
        make_trainer(make_strategy()).test(Probe(), loader(True), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    with pytest.raises(FederatedConfigError, match=message):
        make_trainer(make_strategy()).test(Probe(), loader(True), verbose=False)


def test_a_checkpoint_without_adapters_does_not_borrow_those_of_the_last_run(tmp_path: Path) -> None:
    other, _, _ = fit(clients=ClientsConfig())
    other.save_checkpoint(tmp_path / "none.ckpt")
    trainer, module, _ = fit()
    with pytest.raises(FederatedConfigError, match="none were kept"):
        trainer.test(module, loader(True), ckpt_path=tmp_path / "none.ckpt", verbose=False)


def test_batches_must_name_their_client() -> None:
    trainer, module, _ = fit()
    for dataset in (Tokens(9), [Tokens(9).ids[i] for i in range(9)]):
        with pytest.raises(FederatedConfigError, match="name their client .* but got none with a `client_id`"):
            trainer.test(module, loader(True, dataset), verbose=False)


def test_validation_with_clients_own_adapters() -> None:
    """The figure is that of the test loop, it differs from the server's, and training does not notice."""

    def run(validation: Any) -> tuple[pl.Trainer, TinyLM]:
        module = TinyLM()
        trainer = make_trainer(make_strategy(AFLoRA(), clients=KEEP), max_epochs=2, val_check_interval=2)
        trainer.fit(module, round_loader(), validation)
        return trainer, module

    trainer, module = run(loader(True))
    expected = adapter_tensors(run(eval_loader())[1])
    assert all(torch.equal(value, expected[name]) for name, value in adapter_tensors(module).items())
    (own,), (server,) = (trainer.validate(module, loader(own), verbose=False) for own in (True, False))
    assert own["val/loss"] == trainer.test(module, loader(True), verbose=False)[0]["test/loss"]
    assert own["val/loss"] != server["val/loss"]
    assert all(torch.equal(value, expected[name]) for name, value in adapter_tensors(module).items())
