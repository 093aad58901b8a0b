"""A packed run that is resumed from a checkpoint at any batch ends bit for bit where the uninterrupted run ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import Tensor
from torch.nn import functional as F

from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.chunks import Packing
from pl_fed.corrections import Scaffold
from pl_fed.errors import CheckpointMismatchError
from pl_fed.packing import TokenRows
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import FedExLoRA, FedIT, FLoRA, HetLoRA, LocalOnly, RoLoRA
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.wire import Codecs
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader
from tests.test_resume import FailOnce, SaveEveryBatch, check_every_checkpoint, run


class PackedLM(TinyLM):
    """The tiny GPT-2 of the other tests, dropout included."""

    def packed_losses(self, rows: TokenRows) -> Tensor:
        logits = self.model(input_ids=rows.pick("input_ids"), position_ids=rows.positions).logits[0]
        places = torch.tensor([i for i in range(len(logits)) if i + 1 not in {*rows.segments.starts, len(logits)}])
        losses = F.cross_entropy(logits[places], rows.pick("input_ids")[0, places + 1], reduction="none")
        return rows.token_means(losses, places)


def packed(case: dict[str, Any]) -> dict[str, Any]:
    strategy = {"engine": Packing(clients=2), **case.get("strategy", {})}
    return {**case, "network": PackedLM, "strategy": strategy}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation-clipping": {
        "strategy": {"local": LocalTraining(epochs=1, remainder="pad"), "engine": Packing(clients=3)},
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    },
    "bf16-true": {"rule": FedIT, "optimizer": "sgd", "trainer": {"precision": "bf16-true"}},
    "bf16-mixed-workers": {
        "trainer": {"precision": "bf16-mixed"},
        "loader": {"num_workers": 1},
        "shards": [list(range(12)), list(range(4, 13)), list(range(9, 14))],
    },
    "schedule-in-client": {"module": {"schedule": "step"}},
    "server-adam-int8-dropout": {
        "strategy": {
            "server_optimizer": ServerOptimizer("adam", lr=0.01),
            "codecs": Codecs(up="int8", down="int8"),
            "cohort": CohortConfig(clients=4, dropout=0.2),
            "seed": 11,
        }
    },
    "validation-inside-rounds": {"trainer": {"val_check_interval": 2}},
}
MORE: dict[str, dict[str, Any]] = {
    "flora": {"rule": FLoRA},
    "hetlora": {"rule": lambda: HetLoRA(gamma=0.5, penalty=0.5)},
    "rolora": {"rule": RoLoRA},
    "fedex": {"rule": FedExLoRA},
    "local": {"rule": LocalOnly},
    "fedit-scaffold": {"rule": FedIT, "strategy": {"local": LocalTraining(epochs=1, correction=Scaffold())}},
    "pruning-refinement": {
        "callbacks": [
            lambda: RankPruning(eta=0.6, max_share=0.5, warmup_rounds=0, final_share=0.0),
            lambda: PublicRefinement(steps=2),
        ]
    },
}


@pytest.mark.parametrize("name", list(CASES))
def test_resume_at_every_batch_is_bit_exact(name: str, tmp_path: Path) -> None:
    check_every_checkpoint(packed(CASES[name]), tmp_path)


@pytest.mark.parametrize("name", list(MORE))
def test_resume_with_other_rules_is_bit_exact(name: str, tmp_path: Path) -> None:
    check_every_checkpoint(packed(MORE[name]), tmp_path, every=4)


@pytest.mark.filterwarnings("ignore:.*(was called without a model|but there is no last checkpoint)")  # of the first fit
@pytest.mark.parametrize("at_batch", [1, 3, 6])
def test_resume_after_an_exception(at_batch: int, tmp_path: Path) -> None:
    """The step that failed is repeated with the same dropout; memory holds the server's model meanwhile."""

    class Failing(PackedLM):
        count = 0

        def packed_losses(self, rows: TokenRows) -> Tensor:
            self.count += 1
            if self.count == at_batch:
                raise FailOnce
            return super().packed_losses(rows)

    expected, module = run(packed({})), Failing()
    start = adapter_tensors(module)
    strategy = make_strategy(engine=Packing(clients=2))
    trainer = make_trainer(strategy, max_epochs=3, callbacks=[OnExceptionCheckpoint(tmp_path, "broken")])
    with pytest.raises(FailOnce):
        trainer.fit(module, round_loader(), eval_loader())
    if at_batch == 3:  # in the first round
        assert all(torch.equal(value, start[name]) for name, value in adapter_tensors(module).items())
    found = run(packed({}), tmp_path / "broken.ckpt")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_another_engine_in_the_middle_of_a_round_is_refused(tmp_path: Path) -> None:
    """Between rounds it may change; the batches of a round are other ones."""
    trainer = make_trainer(make_strategy(engine=Packing(clients=2)), max_epochs=1, callbacks=[SaveEveryBatch(tmp_path)])
    trainer.fit(PackedLM(), round_loader(), eval_loader())
    first, last = tmp_path / "000.ckpt", sorted(tmp_path.iterdir())[-1]
    with pytest.raises(CheckpointMismatchError, match="accumulation, engine and data"):
        run({"network": PackedLM}, first)
    run({"network": PackedLM}, last)
