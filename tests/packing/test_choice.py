"""`auto` says which engine it takes and why; `packed` refuses in one sentence what it cannot do."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from pl_fed.callbacks.communication_monitor import CommunicationMonitor
from pl_fed.callbacks.fishing_tripwire import FishingTripwire
from pl_fed.callbacks.progress import FederatedProgressBar
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.chunks import Packing, chunk_batches, chunks_of
from pl_fed.engines.choice import watches_steps, why_not
from pl_fed.errors import FederatedConfigError
from pl_fed.modules import LoraCausalLM, LoraModule, LoraSettings
from pl_fed.rounds import ClientWork, LocalTraining
from pl_fed.rules import FedIT
from tests.helpers.packed import federation, loader, module_of, run
from tests.helpers.tiny import TinyLM, adapter_tensors, make_strategy, make_trainer, round_loader
from tests.packing.test_packed_resume import PackedLM

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Folder = Callable[..., str]


class OwnStep(LoraCausalLM):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 2 * super().training_step(batch, batch_idx)


class OwnClipping(LoraCausalLM):
    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)


class OwnTransfer(LoraCausalLM):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Watcher(Callback):
    def on_client_end(self, trainer: Any, pl_module: Any, context: Any) -> None: ...

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None: ...


def checkpointing(module: LoraModule) -> None:
    module.configure_model()
    module.model.get_base_model().activation_checkpointing_enable()


def upcast(module: LoraModule) -> None:
    module.configure_model()
    module.model.config.reorder_and_upcast_attn = True


def flash(module: LoraModule) -> None:
    module.configure_model()
    module.model.config._attn_implementation = "flex_attention"


def train_norms(module: LoraModule) -> None:
    module.configure_model()
    module.model.get_submodule("base_model.model.transformer.wpe").requires_grad_(True)


def unfederated(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(1))], lr=0.1)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "own step": ({"cls": OwnStep}, "OwnStep changes `training_step` but not `packed_losses`"),
    "own clipping": ({"cls": OwnClipping}, "OwnClipping has a `configure_gradient_clipping` of its own"),
    "own transfer": ({"cls": OwnTransfer}, "OwnTransfer has a `on_after_batch_transfer` of its own"),
    "kept": ({"strategy": {"local": LocalTraining(optimizer="kept")}}, "optimizers are kept from round to round"),
    "lbfgs": ({"optimizer": torch.optim.LBFGS}, "LBFGS is not known to treat every number by itself"),
    "unfederated": ({"optimizer": unfederated}, "the optimizer has parameters that are not federated"),
    "watcher": ({"trainer": {"callbacks": [Watcher()]}}, "Watcher watches the steps of single clients"),
    "checkpointing": ({"start": checkpointing}, "gradient checkpointing would run the forward pass again"),
    "upcast": ({"start": upcast}, "its attention is not the ordinary one"),
    "flash": ({"start": flash}, "its attention is `flex_attention`, expected `eager` or `sdpa`"),
    "embedding": ({"start": train_norms}, "wpe.weight` is trained and belongs to Embedding"),
    "dora": ({"lora": LoraSettings(r=3, extra={"use_dora": True})}, "is no plain LoRA layer"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_what_cannot_be_packed_is_refused_with_the_reason(name: str, folder: Folder) -> None:
    case, reason = CASES[name]
    optimizer = case.get("optimizer", torch.optim.AdamW)
    module = case.get("cls", LoraCausalLM)(folder("gpt2"), case.get("lora", LoraSettings(r=3)), optimizer)
    strategy = federation(FedIT(), "packed", **case.get("strategy", {}))
    with pytest.raises(FederatedConfigError, match=f"{reason}.*: set `engine: sequential`, or `auto`"):
        run(module, strategy, loader("gpt2"), case.get("start"), **case.get("trainer", {}))


@pytest.mark.parametrize(
    ("make", "watches"),
    [
        (FederatedProgressBar, False),
        (CommunicationMonitor, False),
        (RankPruning, False),
        (lambda: RankPruning(importance="sensitivity"), True),
        (FishingTripwire, True),
        (Watcher, True),
    ],
)
def test_which_callbacks_watch_steps(make: Any, watches: bool) -> None:
    assert watches_steps(make()) == watches


def test_auto_falls_back_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """A module of one's own trains as ever."""
    strategy = make_strategy(engine="auto")
    with caplog.at_level(logging.INFO):
        make_trainer(strategy).fit(TinyLM(), round_loader())
    assert strategy.engine.name == "sequential"
    assert "Engine `sequential`, since TinyLM has no `packed_losses`." in caplog.text


def test_auto_packs_where_it_can(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    strategy = federation(FedIT(), "auto")
    with caplog.at_level(logging.INFO):
        run(module_of("gpt2", folder("gpt2")), strategy, loader("gpt2"))
    assert strategy.engine.name == "packed"
    assert "Engine `packed`, since a client's step has about 18 tokens at width 8" in caplog.text


def test_half_precision_with_a_scaler(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaler skips steps for all clients at once."""
    strategy = federation(FedIT(), "packed")
    module = module_of("gpt2", folder("gpt2"))
    run(module, strategy, loader("gpt2"))
    federated = strategy.loop.federation
    assert federated is not None
    monkeypatch.setattr(type(strategy.trainer), "precision", "16-mixed")
    found = why_not(module, federated.adapter, strategy.optimizers, LocalTraining(), strategy.trainer, [])
    assert found is not None and found.startswith("the precision is `16-mixed`")


def test_values_for_the_base_model_are_refused(folder: Folder) -> None:
    class Sends(Callback):
        def on_broadcast(self, trainer: Any, pl_module: Any, context: Any) -> None:
            name = next(name for name, p in pl_module.named_parameters() if not p.requires_grad)
            context.client.broadcast.base[name] = dict(pl_module.named_parameters())[name].detach().clone()

    with pytest.raises(FederatedConfigError, match="no values for frozen tensors with `engine: packed`"):
        run(module_of("gpt2", folder("gpt2")), federation(FedIT(), "packed"), loader("gpt2"), callbacks=[Sends()])


@pytest.mark.parametrize("key", ["clients", "tokens"])
def test_packing_is_checked(key: str) -> None:
    with pytest.raises(FederatedConfigError, match=f"`engine.{key}` to be at least 1 but got 0"):
        Packing(**{key: 0})


def test_chunks() -> None:
    """Clients with 1, 3 and 2 batches in chunks of two: the second and third together, then the first."""
    work = [ClientWork(k, 1, [[10 * k + s] for s in range(n)]) for k, n in enumerate((1, 3, 2))]
    assert chunks_of(work, 2) == ((1, 2), (0,))
    assert chunk_batches(work, (1, 2)) == [[[10], [20]], [[11], [21]], [[12]]]


class Hooks(Callback):
    """Notes who begins and ends, and what each client's round cost."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.figures: list[Any] = []

    def on_client_start(self, trainer: Any, pl_module: Any, context: Any) -> None:
        self.order.append("start")

    def on_upload(self, trainer: Any, pl_module: Any, context: Any) -> None:
        self.order.append("end")

    def on_round_end(self, trainer: Any, pl_module: Any, context: Any) -> None:
        figures = [(c.client_id, c.num_tokens, c.upload_bytes, c.download_bytes, c.flops) for c in context.finished]
        self.figures = sorted(figures)


def test_hooks_see_every_client(folder: Folder) -> None:
    """All clients of a chunk begin, then train, then end; each with its own figures, as with one at a time."""
    alone, together = Hooks(), Hooks()
    for engine, hooks in (("sequential", alone), (Packing(clients=3), together)):
        module = module_of("gpt2", folder("gpt2"))
        run(module, federation(FedIT(), engine), loader("gpt2"), callbacks=[hooks], max_epochs=1)
    assert alone.order == ["start", "end"] * 4
    assert together.order == ["start"] * 3 + ["end"] * 3 + ["start", "end"]
    assert alone.figures == together.figures


def test_max_steps_inside_a_chunk_leave_the_server(folder: Folder) -> None:
    """The optimizer has the network's parameters again, and the server its adapter."""
    module, strategy = module_of("gpt2", folder("gpt2")), federation(FedIT(), "packed")
    module.configure_model()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    run(module, strategy, loader("gpt2"), max_steps=2)
    assert all(torch.equal(p, start[name]) for name, p in module.named_parameters())
    assert {id(p) for p in strategy.optimizers[0].param_groups[0]["params"]} <= {id(p) for p in module.parameters()}
    assert "clip_grad_by_norm" not in vars(strategy.precision_plugin)


@pytest.mark.parametrize("engine", ["sequential", "packed"])
def test_a_fit_after_one_that_failed(engine: str) -> None:
    """It begins its round anew, with clients and optimizer of its own."""

    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise KeyError

    strategy, module, fails = make_strategy(engine=engine), PackedLM(), Fails()
    trainer = make_trainer(strategy, callbacks=[fails], max_epochs=1)
    with pytest.raises(KeyError):
        trainer.fit(module, round_loader())
    start = adapter_tensors(module)
    Fails.on_train_batch_end = Callback.on_train_batch_end  # type: ignore[method-assign,assignment]
    trainer.fit(module, round_loader())
    assert not strategy.loop.mid_round
    assert any(not torch.equal(value, start[name]) for name, value in adapter_tensors(module).items())


def test_the_network_is_as_before(folder: Folder) -> None:
    """After a run no layer has a forward of its own, and attention is what it was."""
    module = module_of("bert", folder("bert"))
    run(module, federation(FedIT(), "packed"), loader("bert"))
    assert not [m for m in module.modules() if "forward" in vars(m) or "pl_fed_pass" in vars(m)]
    assert module.model.config._attn_implementation == "sdpa"


def test_logged_loss_is_that_of_all_examples(folder: Folder) -> None:
    """The mean over a round, weighed by examples, before anything has moved."""
    found = []
    for engine in ("sequential", "packed"):
        module = module_of("gpt2", folder("gpt2"), lambda p: torch.optim.SGD(p, lr=0.0))
        module.log_training_loss = lambda loss, size, m=module: m.log(  # type: ignore[method-assign]
            "train/loss", loss, on_step=False, on_epoch=True, batch_size=size
        )
        strategy = federation(FedIT(), engine)
        run(module, strategy, loader("gpt2"), max_epochs=1)
        found.append(float(strategy.trainer.callback_metrics["train/loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
