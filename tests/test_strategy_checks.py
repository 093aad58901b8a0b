"""What rounds cannot be trained with is refused in a sentence."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)

from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import LocalTraining
from pl_fed.rules import FedIT
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


def fit(module: TinyLM | None = None, local: LocalTraining | None = None, **kwargs: Any) -> pl.Trainer:
    strategy = make_strategy() if local is None else make_strategy(local=local)
    trainer = make_trainer(strategy, max_epochs=2, **kwargs)
    trainer.fit(module or TinyLM(), round_loader(), eval_loader())
    return trainer


class OwnAveraging(EMAWeightAveraging):
    """A project's own kind of it."""


@pytest.mark.parametrize(
    "callback",
    [StochasticWeightAveraging(swa_lrs=1e-2), EMAWeightAveraging(), WeightAveraging(), OwnAveraging()],
    ids=lambda c: type(c).__name__,
)
@pytest.mark.parametrize("source", ["loader", "datamodule"])
@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
def test_weight_averaging(callback: pl.Callback, source: str, num_sanity_val_steps: int) -> None:
    """Also before the sanity check, where averages of a network without AFLoRA's diagonals do not fit it."""
    trainer = make_trainer(make_strategy(), callbacks=[callback], num_sanity_val_steps=num_sanity_val_steps)
    expected = f"no weight averaging over steps but got `{type(callback).__name__}`"
    with pytest.raises(FederatedConfigError, match=expected):
        if source == "loader":
            trainer.fit(TinyLM(), round_loader(), eval_loader())
        else:
            trainer.fit(TinyLM(), datamodule=Data(round_loader()))


class Data(pl.LightningDataModule):
    """Hands out a training loader, and counts how often it is asked."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader, self.asked = loader, 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        torch.rand(1)
        return self.loader

    def val_dataloader(self) -> Any:
        return eval_loader()


def averaged(strategy: Any, *callbacks: pl.Callback) -> tuple[dict[str, torch.Tensor], Data]:
    torch.manual_seed(1)
    module, data = TinyLM(dropout=0.0), Data(eval_loader())
    make_trainer(strategy, callbacks=[*callbacks], num_sanity_val_steps=2).fit(module, datamodule=data)
    return adapter_tensors(module), data


def test_weight_averaging_with_ordinary_loaders() -> None:
    """It is Lightning's own there: the same numbers as with the strategy for one device; they are averages."""
    expected, plain = averaged("auto", EMAWeightAveraging())
    found, data = averaged(make_strategy(FedIT()), EMAWeightAveraging())
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    last, once = averaged(make_strategy(FedIT()))
    assert any(not torch.equal(value, found[name]) for name, value in last.items())
    assert (plain.asked, data.asked, once.asked) == (1, 2, 1)  # once more only where there is something to refuse


def test_manual_optimization() -> None:
    module = TinyLM()
    module.automatic_optimization = False
    with pytest.raises(FederatedConfigError, match="Expected automatic optimization"):
        fit(module)


class ChangesAccumulation(pl.Callback):
    """Doubles `accumulate_grad_batches` once in one hook, and notes whose batches the optimizer's steps hold."""

    def __init__(self, hook: str = "") -> None:
        self.hook, self.windows, self.batches = hook, [], []

    def change(self, trainer: pl.Trainer, hook: str) -> None:
        if hook == self.hook and trainer.current_epoch == 0:
            trainer.accumulate_grad_batches = 2

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.change(trainer, "on_train_epoch_start")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.change(trainer, "on_train_batch_end")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.change(trainer, "on_train_epoch_end")

    def on_before_backward(self, trainer: Any, *_: Any) -> None:
        self.batches.append((trainer.current_epoch, trainer.strategy.loop.federation.current.client.client_id))

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.windows.append(self.batches)
        self.batches = []


def test_a_schedule_of_accumulation() -> None:
    """It would change the number after the round is planned: a window of two batches mixes two clients of three."""
    expected = "one `accumulate_grad_batches` for all rounds but got `GradientAccumulationScheduler`.*: set `trainer"
    with pytest.raises(FederatedConfigError, match=expected):
        fit(callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_end"])
def test_accumulation_changed_in_a_round(hook: str) -> None:
    changes = ChangesAccumulation(hook)
    expected = "Expected `accumulate_grad_batches`=1, with which the round was planned, but got 2: change it between"
    with pytest.raises(FederatedConfigError, match=expected):
        fit(callbacks=[changes])
    assert len(changes.windows) == (hook == "on_train_batch_end")  # nothing was trained with it


def test_accumulation_changed_between_rounds() -> None:
    """The next round is planned with it: every window holds two batches of one client."""
    changes = ChangesAccumulation("on_train_epoch_end")
    fit(callbacks=[changes], local=LocalTraining(remainder="cut"))
    first, second = ([w for w in changes.windows if w[0][0] == round_idx] for round_idx in (0, 1))
    assert first and {len(window) for window in first} == {1}
    assert second and {len(window) for window in second} == {2}
    assert all(len(set(window)) == 1 for window in changes.windows)
