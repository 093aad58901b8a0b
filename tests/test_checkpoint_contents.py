"""A checkpoint refuses a run that it does not belong to, and is as large as the adapter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pl_fed.clients import ClientsConfig
from pl_fed.errors import CheckpointMismatchError
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FFALoRA
from tests.helpers.tiny import SHARDS, TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of AFLoRA with four clients."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = make_trainer(make_strategy(), max_epochs=1)
    trainer.fit(TinyLM(), round_loader(), eval_loader())
    trainer.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (FedIT(), "checkpoint of the rule FedIT but got one of AFLoRA: resume"),
        (FFALoRA(), "checkpoint of the rule FFALoRA but got one of AFLoRA: resume"),
        (AFLoRA(aggregation="literal"), "AFLoRA, `aggregation`='literal', .* but got one of AFLoRA, `ag.*='delta'"),
        (AFLoRA(train_diagonal=False), "AFLoRA, `train_diagonal`=False but got one of AFLoRA, .*=True:"),
    ],
    ids=["FedIT", "FFA-LoRA", "other mode", "frozen diagonal"],
)
def test_another_rule_is_refused_with_both_names(rule: Any, message: str, saved: Path) -> None:
    """Whatever the optimizer's parameters would say: FFA-LoRA trains half as many as AFLoRA, FedIT as many."""
    with pytest.raises(CheckpointMismatchError, match=message):
        make_trainer(make_strategy(rule)).fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=saved)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_another_version_s_checkpoint_is_refused_by_its_format(stage: str, saved: Path, tmp_path: Path) -> None:
    """The first layout had no number."""
    checkpoint = torch.load(saved, weights_only=True)
    (state,) = (state for state in checkpoint["callbacks"].values() if "versions" in state)
    del state["format"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    trainer = make_trainer(make_strategy())
    with pytest.raises(CheckpointMismatchError, match="in format 1 but the checkpoint has format 0"):
        if stage == "fit":
            trainer.fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=tmp_path / "old.ckpt")
        else:
            trainer.test(TinyLM(), eval_loader(), ckpt_path=tmp_path / "old.ckpt")


def test_another_population_is_refused_with_both_numbers(saved: Path) -> None:
    loader = round_loader([*SHARDS[:3], [24, 25], [26, 27, 28, 29]])
    with pytest.raises(CheckpointMismatchError, match="checkpoint's population of 4 clients but the data has 5"):
        make_trainer(make_strategy()).fit(TinyLM(), loader, eval_loader(), ckpt_path=saved)


def test_another_rank_is_refused_with_both_shapes(saved: Path) -> None:
    """For a module of one's own (those of `pl_fed.modules` say it themselves); nothing is trained."""

    class Narrow(TinyLM):
        def __init__(self) -> None:
            super().__init__()
            for layer in [m for m in self.modules() if hasattr(m, "lora_A")]:
                layer.lora_A["default"] = nn.Linear(8, 2, bias=False)
                layer.lora_B["default"] = nn.Linear(2, 24, bias=False)

    module, clients = Narrow(), ClientsConfig(ranks=[2])
    start = adapter_tensors(module)
    message = r"lora_A.* of shape \(2, 8\) but the checkpoint's is \(4, 8\): use the rank"
    with pytest.raises(CheckpointMismatchError, match=message):
        make_trainer(make_strategy(clients=clients)).fit(module, round_loader(), eval_loader(), ckpt_path=saved)
    assert all(torch.equal(value, start[name]) for name, value in adapter_tensors(module).items())


def test_the_same_run_is_accepted(saved: Path) -> None:
    """Another cohort may follow, and another seed."""
    trainer = make_trainer(make_strategy(cohort=CohortConfig(clients=2), seed=6), max_epochs=2)
    trainer.fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=saved)
    assert trainer.current_epoch == 2


# ---------------------------------------------------------------- size


class Heavy(TinyLM):
    """The same adapter on a base model that is 4 MB larger."""

    def __init__(self) -> None:
        super().__init__()
        self.model.ballast = nn.Parameter(torch.ones(1_000_000), requires_grad=False)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def test_a_checkpoint_is_as_large_as_the_adapter(tmp_path: Path) -> None:
    """The adapter and Adam's two moments of B and the diagonal; nothing of the base model, whatever its size.

    Two layers of rank 4: A 2 * 4 * 8, B 2 * 24 * 4, diagonals 2 * 4 numbers. The slots of three clients are 64-bit:
    ranks of at most 4, 3 and 2 in two layers.
    """
    sizes = {}
    for kind in (TinyLM, Heavy):
        trainer = make_trainer(make_strategy(), max_epochs=1)
        trainer.fit(kind(), round_loader(), eval_loader())
        path = tmp_path / f"{kind.__name__}.ckpt"
        trainer.save_checkpoint(path)
        sizes[kind] = path.stat().st_size
    assert abs(sizes[Heavy] - sizes[TinyLM]) < 1000
    assert sizes[Heavy] < 40_000 < 4_000_000
    loaded = torch.load(tmp_path / "Heavy.ckpt", weights_only=True)
    a, b, diagonal = 2 * 4 * 8, 2 * 24 * 4, 2 * 4
    numbers = [value for value in tensors(loaded) if value.is_floating_point() and value.dim() > 0]
    assert sum(value.numel() for value in numbers) == a + b + 2 * (b + diagonal)
    assert sum(value.numel() for value in loaded["state_dict"].values()) == a + b


def test_other_shards_of_as_many_clients_are_refused(saved: Path) -> None:
    """The same number of clients, but the first one holds other examples."""
    shards = [list(range(1, 8)), *SHARDS[1:]]
    with pytest.raises(CheckpointMismatchError, match="population of 4 clients .* or other examples for them"):
        make_trainer(make_strategy(), max_epochs=2).fit(TinyLM(), round_loader(shards), eval_loader(), ckpt_path=saved)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"cohort": CohortConfig(clients=2)}, {"local": LocalTraining(steps=2)}]
)
def test_inside_a_round_the_schedule_must_be_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    """Else the client in progress would go on with another client's examples."""
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(make_strategy(), max_epochs=1, callbacks=[saver])
    trainer.fit(TinyLM(), round_loader(), eval_loader())
    with pytest.raises(CheckpointMismatchError, match="schedule of round 0 that the checkpoint was taken in"):
        again = make_trainer(make_strategy(**change))
        again.fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=tmp_path / "step=2.ckpt")
