"""The tripwire in rounds, where a server crafts one client's model, and in a plain Lightning project."""

import copy
import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pl_fed.callbacks import FishingTripwire, LabelInferenceAttack
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError, FishedModelError
from pl_fed.rounds import LocalTraining
from pl_fed.secure_round import SecureAggregation
from tests.helpers.audited import mlp
from tests.helpers.audited_runs import Net, fit, loader
from tests.helpers.tiny import TinyLM, make_strategy, make_trainer, round_loader
from tests.modules.tiny_images import federation, make
from tests.modules.tiny_images import loader as rounds

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Malicious(pl.Callback):
    """A server that sends some clients a crafted last norm layer, and notes what becomes of the round."""

    def __init__(self, *clients: int) -> None:
        self.clients, self.contexts, self.hooks = clients, [], []  # type: ignore[var-annotated]

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.client.client_id in self.clients:
            norms = [name for name, part in pl_module.named_modules() if isinstance(part, nn.BatchNorm2d)]
            dense = {name: value.clone() for name, value in context.client.broadcast.dense.items()}
            dense[f"{norms[-1]}.weight"].zero_()
            dense[f"{norms[-1]}.bias"].fill_(1.0)
            context.client.broadcast.dense = dense

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.hooks.append(sum(len(part._forward_pre_hooks) for part in pl_module.modules()))

    def on_aggregate(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.contexts.append(copy.copy(context))


def run(tripwire: FishingTripwire, *fished: int, rounds_: int = 2, **strategy: Any) -> tuple[Malicious, pl.Trainer]:
    server, module = Malicious(*fished), make("small_cnn")
    trainer = make_trainer(federation(**strategy), max_epochs=rounds_, callbacks=[tripwire, server])
    trainer.fit(module, rounds(batch_size=2))
    return server, trainer


def test_honest_rounds_are_quiet() -> None:
    server, trainer = run(FishingTripwire(action="stop"))
    assert trainer.callback_metrics["server/tripwire_alarms"] == 0.0
    assert [context.failures for context in server.contexts] == [{}, {}]
    assert server.hooks and not any(server.hooks), "no hook outlives its batch"


def test_a_warning() -> None:
    with pytest.warns(UserWarning, match="Round [01]: the model of client 1 looks crafted .* 100% of the final"):
        server, trainer = run(FishingTripwire(), 1)
    assert trainer.callback_metrics["server/tripwire_alarms"] == 1.0
    assert [context.num_updates for context in server.contexts] == [3, 3]


def test_drop() -> None:
    """The client sends nothing, in each round anew; the others go on."""
    with pytest.warns(UserWarning, match="looks crafted"):
        server, trainer = run(FishingTripwire(action="drop"), 0, 2)
    assert [context.failures for context in server.contexts] == [{0: "fished", 2: "fished"}] * 2
    assert [[update.client_id for update in context.updates] for context in server.contexts] == [[1], [1]]
    assert trainer.callback_metrics["server/tripwire_alarms"] == 2.0
    assert trainer.callback_metrics["server/failed_fished"] == 2.0


def test_stop(tmp_path: Path) -> None:
    tripwire, server, module = FishingTripwire(action="stop"), Malicious(1), make("small_cnn")
    trainer = make_trainer(federation(), max_epochs=1, callbacks=[tripwire, server])
    with pytest.raises(FishedModelError, match="Round 0: the model of client 1 looks crafted .* Nothing was sent"):
        trainer.fit(module, rounds())
    assert not any(part._forward_pre_hooks for part in module.modules())
    fit(Net(), loader(), tmp_path, tripwire, max_epochs=1)
    assert tripwire.alarms == [], "another run starts anew"


def test_a_live_attack_is_seen(tmp_path: Path) -> None:
    """The attack of our own audit: every client of the attacked round rings, none of the next; and labels leak."""
    attack, tripwire, counted = LabelInferenceAttack(when="live"), FishingTripwire(), []

    class Count(pl.Callback):
        def on_round_end(self, trainer: Any, pl_module: Any, context: Any) -> None:
            counted.append(context.metrics["server/tripwire_alarms"])

    with pytest.warns(UserWarning, match="Round 0: the model of client [012] looks crafted .* only counted") as caught:
        trainer = make_trainer(
            federation(local=LocalTraining(steps=1)),
            max_epochs=2,
            callbacks=[attack, tripwire, Count()],
            default_root_dir=tmp_path,
        )
        trainer.fit(make("small_cnn", optimizer=lambda p: torch.optim.SGD(p, lr=0.5)), rounds(batch_size=32))
    assert sum("looks crafted" in str(w.message) for w in caught) == 1 and tripwire.alarms == []
    assert counted == [3.0, 0.0]
    assert attack.reports[0].exact_match == 1.0


def test_with_secure_aggregation() -> None:
    """A dropped client does not take part in the sum, so that the echo has nothing to refuse."""
    secure = SecureAggregation(threshold=2)
    with pytest.warns(UserWarning, match="client 1 looks crafted"):
        server, _ = run(FishingTripwire(action="drop"), 1, rounds_=1, secure_aggregation=secure)
    assert server.contexts[0].failures == {1: "fished"} and server.contexts[0].num_updates == 2


def test_resume_inside_a_client(tmp_path: Path) -> None:
    """A checkpoint after the first batch of the fished client: it is still dropped, though its first batch is over."""

    class Save(pl.callbacks.Checkpoint):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    strategy: Any = {"seed": 2}
    with pytest.warns(UserWarning, match="client 0 looks crafted"):
        callbacks = [FishingTripwire(action="drop"), Malicious(0), Save()]
        make_trainer(federation(**strategy), max_epochs=1, callbacks=callbacks).fit(make("small_cnn"), rounds())
    tripwire, server = FishingTripwire(action="drop"), Malicious()
    trainer = make_trainer(federation(**strategy), max_epochs=1, callbacks=[tripwire, server])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")
        warnings.filterwarnings("error", ".*looks crafted")
        trainer.fit(make("small_cnn"), rounds(), ckpt_path=tmp_path / "saved.ckpt")
    assert server.contexts[0].failures == {0: "fished"}


def test_a_plain_trainer(tmp_path: Path) -> None:
    """One warning an epoch, whatever the action; training goes on."""
    net = mlp(32)
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.fill_(1.0)
    for parameter in net[2].parameters():
        parameter.requires_grad_(False)
    tripwire = FishingTripwire(action="stop", head="net.5")
    with pytest.warns(UserWarning, match="^The model looks crafted to reveal labels: 100%") as caught:
        trainer = fit(Net(net), loader(), tmp_path, tripwire, max_epochs=2)
    assert trainer.current_epoch == 2 and sum("crafted" in str(w.message) for w in caught) == 2
    assert tripwire.alarms == [] and not any(part._forward_pre_hooks for part in net.modules())


def test_honest_and_lora_heads_are_quiet(tmp_path: Path) -> None:
    fit(Net(), loader(), tmp_path, FishingTripwire(), max_epochs=1)
    trainer = make_trainer(make_strategy(), max_epochs=1, callbacks=[FishingTripwire(action="stop")])
    trainer.fit(TinyLM(), round_loader())
    assert trainer.callback_metrics["server/tripwire_alarms"] == 0.0


def test_one_sample_is_said_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.warns(UserWarning, match=r"cannot judge a batch of 1 row\(s\)") as caught:
        fit(Net(net), loader(4, batch_size=1), tmp_path, FishingTripwire(), max_epochs=3)
    assert sum("cannot judge" in str(w.message) for w in caught) == 1


def test_no_linear_layer_is_said_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.warns(UserWarning, match="found no linear layer .*: set `head`") as caught:
        fit(Net(net), loader(64), tmp_path, FishingTripwire(), max_epochs=3)
    assert sum("no linear layer" in str(w.message) for w in caught) == 1


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match=r"such as one of \['net.1', 'net.5'\], but got `classifier`"):
        fit(Net(), loader(), tmp_path, FishingTripwire(head="classifier"))
    with pytest.raises(FederatedConfigError, match=r"`threshold` of FishingTripwire in \(0, 1\) but got 1.0"):
        FishingTripwire(1.0)
    with pytest.raises(FederatedConfigError, match=r"`action` out of .*'drop'.* but got `panic`"):
        inspect.unwrap(FishingTripwire.__init__)(object.__new__(FishingTripwire), **{"action": "panic"})
    assert pickle.loads(pickle.dumps(FishingTripwire(1e-4))).threshold == 1e-4
