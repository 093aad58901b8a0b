"""A run that is resumed from a checkpoint at any batch ends bit for bit where the uninterrupted run ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.corrections import FedProx, Scaffold
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import (
    AFLoRA,
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    LocalOnly,
    LoRAFAIR,
    Median,
    RoLoRA,
)
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.wire import Codecs
from tests.helpers.resume import SaveEveryBatch, run
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fedit-sgd": {"rule": FedIT, "optimizer": "sgd"},
    "ffa-kept-optimizer": {"rule": FFALoRA, "strategy": {"local": LocalTraining(epochs=1, optimizer="kept")}},
    "accumulation-clipping": {
        "strategy": {"local": LocalTraining(epochs=1, remainder="pad")},
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    },
    "bf16-mixed": {"trainer": {"precision": "bf16-mixed"}},
    "bf16-true": {"trainer": {"precision": "bf16-true"}},
    "workers": {"loader": {"num_workers": 1}, "shards": [list(range(4)), list(range(4, 9)), list(range(9, 14))]},
    "schedule-in-client": {"module": {"schedule": "step"}},
    "schedule-over-rounds": {"module": {"schedule": "epoch"}},
    "kept-schedule": {
        "module": {"schedule": "step"},
        "strategy": {"local": LocalTraining(epochs=1, optimizer="kept")},
    },
    "server-adam-int8-dropout": {
        "strategy": {
            "server_optimizer": ServerOptimizer("adam", lr=0.01),
            "codecs": Codecs(up="int8", down="int8"),
            "cohort": CohortConfig(clients=3, dropout=0.3),
            "seed": 11,
        }
    },
    "pruning-refinement": {
        "callbacks": [
            lambda: RankPruning(eta=0.6, max_share=0.5, warmup_rounds=0, final_share=0.0),
            lambda: PublicRefinement(steps=2),
        ]
    },
    "sensitivity-regrowth": {
        "callbacks": [
            lambda: RankPruning(
                eta=0.6, max_share=0.5, warmup_rounds=0, final_share=0.0, importance="sensitivity", regrow=True
            )
        ]
    },
    "validation-inside-rounds": {"trainer": {"val_check_interval": 3}},
}
SHORT = {"shards": [list(range(0, 6)), list(range(6, 9)), list(range(9, 14)), list(range(14, 18))]}  # 1 or 2 batches
PEERS: dict[str, dict[str, Any]] = {
    "flora": {"rule": FLoRA},
    "flora-server-momentum": {"rule": FLoRA, "strategy": {"server_optimizer": ServerOptimizer(momentum=0.5)}},
    "hetlora": {"rule": lambda: HetLoRA(gamma=0.5, penalty=0.5)},
    "flex": {"rule": FlexLoRA},
    "fedsa": {"rule": FedSALoRA},
    "fedsa-kept-optimizer": {"rule": FedSALoRA, "strategy": {"local": LocalTraining(epochs=1, optimizer="kept")}},
    "rolora": {"rule": RoLoRA},
    "fedex-bf16": {"rule": FedExLoRA, "trainer": {"precision": "bf16-true"}},
    "fedex": {"rule": FedExLoRA},
    "fair": {"rule": LoRAFAIR},
    "fedsvd": {"rule": FedSVD},
    "local": {"rule": LocalOnly},
    "fedit-scaffold": {"rule": FedIT, "strategy": {"local": LocalTraining(epochs=1, correction=Scaffold())}},
    "aflora-fedprox": {"strategy": {"local": LocalTraining(epochs=1, correction=FedProx(0.5))}},
    "fedit-median": {"rule": lambda: FedIT(mean=Median())},
    "refactor-pruning": {
        "rule": lambda: AFLoRA(refactor=True),
        "callbacks": [lambda: RankPruning(eta=0.6, max_share=0.5, warmup_rounds=0, final_share=0.0)],
    },
}


@pytest.mark.parametrize("name", list(CASES))
def test_resume_at_every_batch_is_bit_exact(name: str, tmp_path: Path) -> None:
    check_every_checkpoint(CASES[name], tmp_path)


@pytest.mark.parametrize("name", list(PEERS))
def test_resume_of_every_peer_is_bit_exact(name: str, tmp_path: Path) -> None:
    """Every third batch: inside a client, at its end, at the end of a round, in the first and in later ones."""
    check_every_checkpoint({**SHORT, **PEERS[name]}, tmp_path, every=3)


def check_every_checkpoint(case: dict[str, Any], folder: Path, every: int = 1) -> None:
    expected = run(case, callbacks=[SaveEveryBatch(folder)])
    checkpoints = sorted(folder.iterdir())
    assert len(checkpoints) >= 12
    for checkpoint in checkpoints[::every]:
        found = run(case, checkpoint)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), f"{checkpoint.name}: {key}"


class FailOnce(Exception):
    pass


def failing(at_batch: int) -> Callable[..., Any]:
    def training_step(self: TinyLM, batch: Any, batch_idx: int) -> torch.Tensor:
        self.count = getattr(self, "count", 0) + 1
        loss = TinyLM.training_step(self, batch, batch_idx)
        if self.count == at_batch:
            raise FailOnce
        return loss

    return training_step


@pytest.mark.filterwarnings("ignore:.*(was called without a model|but there is no last checkpoint)")  # of the first fit
@pytest.mark.parametrize("at_batch", [1, 2, 4, 5, 11])
def test_resume_after_an_exception(at_batch: int, tmp_path: Path) -> None:
    """The step that failed is repeated, with the same dropout; memory holds the server's model meanwhile."""
    expected = run({})
    module = type("Failing", (TinyLM,), {"training_step": failing(at_batch)})()
    trainer = make_trainer(make_strategy(), max_epochs=3, callbacks=[OnExceptionCheckpoint(tmp_path, "broken")])
    with pytest.raises(FailOnce):
        trainer.fit(module, round_loader(), eval_loader())
    found = run({}, tmp_path / "broken.ckpt")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_checkpoint_holds_only_adapter_and_state(tmp_path: Path) -> None:
    """It loads with `weights_only=True`, and its module state is the server's adapter, also inside a round."""
    module, strategy = TinyLM(), make_strategy()
    start = adapter_tensors(module)
    run_one = make_trainer(strategy, max_steps=2, callbacks=[SaveEveryBatch(tmp_path)])
    run_one.fit(module, round_loader(), eval_loader())
    first = torch.load(tmp_path / "000.ckpt", weights_only=True)
    assert set(first["state_dict"]) == set(start)
    assert all(torch.equal(value, start[name]) for name, value in first["state_dict"].items())
    assert all(torch.equal(value, adapter_tensors(module)[name]) for name, value in start.items()), (
        "server after max_steps"
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_model_checkpoint_resumes_from_last(tmp_path: Path) -> None:
    """`save_last` with a monitored metric, as users have it."""
    expected = run({})
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/loss", save_last=True, every_n_train_steps=None)
    module = TinyLM()
    make_trainer(make_strategy(), max_epochs=2, callbacks=[checkpoint]).fit(module, round_loader(), eval_loader())
    found = run({}, tmp_path / "last.ckpt")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
