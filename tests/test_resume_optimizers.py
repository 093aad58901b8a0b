"""A checkpoint is refused by a run whose clients or server train with another optimizer, in one sentence."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_fed.errors import CheckpointMismatchError
from pl_fed.rounds import LocalTraining
from pl_fed.server_optimizer import ServerOptimizer
from tests.helpers.tiny import TinyLM, eval_loader, make_strategy, make_trainer, round_loader

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")


class Other(TinyLM):
    """A network with any optimizer."""

    def __init__(self, kind: type[torch.optim.Optimizer], **options: Any) -> None:
        super().__init__()
        self.kind, self.options = kind, options

    def configure_optimizers(self) -> Any:
        return self.kind([p for p in self.parameters() if p.requires_grad], **{"lr": 2e-2, **self.options})


def saved_inside_a_round(folder: Path, **strategy: Any) -> Path:
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(make_strategy(**strategy), max_epochs=1, callbacks=[saver])
    trainer.fit(TinyLM("adamw"), round_loader(), eval_loader())
    return folder / "step=2.ckpt"


def resume(path: Path, module: TinyLM | None = None, **strategy: Any) -> pl.Trainer:
    trainer = make_trainer(make_strategy(**strategy))
    trainer.fit(module or TinyLM(), round_loader(), eval_loader(), ckpt_path=path)
    return trainer


@pytest.mark.parametrize("optimizer", ["kept", "fresh"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.SGD])
def test_another_optimizer_is_refused(kind: type[torch.optim.Optimizer], optimizer: Any, tmp_path: Path) -> None:
    """AdamW's parameter groups have all that those of Adam, RAdam and Adamax have; its state may not."""
    local = LocalTraining(optimizer=optimizer)
    path = saved_inside_a_round(tmp_path, local=local)
    name = f"{kind.__module__}.{kind.__qualname__}"
    expected = f"clients that train with {name} but got one of clients with torch.optim.adamw.AdamW: resume with the"
    with pytest.raises(CheckpointMismatchError, match=expected):
        resume(path, Other(kind), local=local)


def test_other_arguments_of_the_same_optimizer_are_accepted(tmp_path: Path) -> None:
    path = saved_inside_a_round(tmp_path)
    trainer = resume(path, Other(torch.optim.AdamW, lr=5e-3))
    assert trainer.current_epoch == 2


def test_checkpoints_that_do_not_name_their_optimizer(tmp_path: Path) -> None:
    """Of earlier versions: parameter groups tell SGD from AdamW, and the same optimizer goes on."""
    checkpoint = torch.load(saved_inside_a_round(tmp_path), weights_only=True)
    del checkpoint["callbacks"]["FederatedLoop"]["optimizers"]
    del checkpoint["callbacks"]["FederatedLoop"]["server_optimizer"]["kind"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointMismatchError, match="state of SGD in the checkpoint but it has no .'dampening'"):
        resume(tmp_path / "old.ckpt", TinyLM("sgd"))
    assert resume(tmp_path / "old.ckpt").current_epoch == 2


KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd with momentum": {"momentum": 0.9},
    "adam": {"name": "adam", "lr": 0.01},
    "yogi": {"name": "yogi", "lr": 0.01},
}


@pytest.mark.parametrize("there", list(KINDS))
def test_another_server_optimizer_is_refused(there: str, tmp_path: Path) -> None:
    """Also where the checkpoint has no moments yet; another learning rate or strength of momentum is accepted."""
    path = saved_inside_a_round(tmp_path, server_optimizer=ServerOptimizer(**KINDS[there]))
    for here in KINDS.keys() - {there}:
        expected = f"the server optimizer `{here}` but got one with `{there}`: resume with the same `server_optimizer"
        with pytest.raises(CheckpointMismatchError, match=expected):
            resume(path, server_optimizer=ServerOptimizer(**KINDS[here]))
    other = ServerOptimizer(**{**KINDS[there], "lr": 0.5, "momentum": KINDS[there].get("momentum", 0.0) / 2})
    assert resume(path, server_optimizer=other).current_epoch == 2
