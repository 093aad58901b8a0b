"""What public refinement must leave alone, what clients download after it, and what it refuses."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from pl_fed.adapters import Adapter
from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT
from tests.helpers.refinement import SEED, equal, fit
from tests.helpers.tiny import TinyLM, Tokens, eval_loader, make_strategy, make_trainer, round_loader


@pytest.mark.parametrize("rule", [AFLoRA, FedIT])
@pytest.mark.parametrize("sides", [["a"], ["a", "b"]], ids=["a", "ab"])
def test_nothing_else_is_left_changed(rule: Any, sides: list[str]) -> None:
    """Flags, gradients, the random state, the training mode, and the module's own `log`."""
    before, after, _, _ = fit(PublicRefinement(steps=2, sides=sides), rule())
    assert len(before.surroundings) == 2
    for first, second in zip(before.surroundings, after.surroundings, strict=True):
        assert first[0] == second[0] and any(first[0].values())
        assert any(gradient is not None for gradient in first[1].values())
        for name, gradient in first[1].items():
            other = second[1][name]
            assert (gradient is None) == (other is None) and (gradient is None or torch.equal(gradient, other)), name
        assert torch.equal(first[2], second[2]) and first[3] is second[3] is True
        assert first[4] == second[4] == {}


def test_a_failing_step_leaves_the_flags_as_they_were() -> None:
    class Fails(TinyLM):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            if "log" in vars(self):
                raise RuntimeError("public batch is broken")
            return super().training_step(batch, batch_idx)

    modules: list[TinyLM] = []

    def make() -> TinyLM:
        modules.append(Fails())
        return modules[0]

    with pytest.raises(RuntimeError, match="public batch is broken"):
        fit(PublicRefinement(), make=make)
    flags = {name: p.requires_grad for name, p in modules[0].named_parameters() if "lora_" in name}
    assert all(flag == ("lora_A.default.weight" not in name) for name, flag in flags.items())
    assert "log" not in vars(modules[0])


def test_the_clients_train_as_without_it_until_a_moves() -> None:
    """Round 0 is the same bit for bit; round 1 starts from another A."""
    with_it, _, _, _ = fit(PublicRefinement(steps=2))
    without, _, _, _ = fit(None)
    assert equal(with_it.states[0], without.states[0])
    assert not equal(with_it.states[1], without.states[1])


def test_the_log_holds_the_clients_steps_only(tmp_path: Path) -> None:
    """One row of `train/loss` for each step of a client, and the same ones as without refinement in round 0."""
    losses = {}
    for name, refinement in (("with", PublicRefinement(steps=4)), ("without", None)):
        logger = CSVLogger(tmp_path, name=name, version="run")
        *_, trainer = fit(refinement, logger=logger, log_every_n_steps=1)
        with open(tmp_path / name / "run" / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        losses[name] = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
        assert len(losses[name]) == trainer.global_step
        public = [row["server/public_loss"] for row in rows if row.get("server/public_loss")]
        assert len(public) == (2 if refinement else 0)
    first_round = round_batches()[0]
    assert losses["with"][:first_round] == losses["without"][:first_round]
    assert losses["with"] != losses["without"]


def round_batches() -> list[int]:
    loader = round_loader()
    loader.plan.bind(CohortConfig(clients=3), make_strategy().config.local, SEED)
    return [loader.plan.schedule(r).num_batches for r in range(2)]


@pytest.mark.parametrize(
    ("refinement", "with_a"),
    [
        (None, [True, False, False, False]),
        (PublicRefinement(steps=1), [True, True, True, True]),
        (PublicRefinement(steps=1, every_n_rounds=2), [True, True, False, True]),
        (PublicRefinement(steps=1, sides=["b"]), [True, False, False, False]),
    ],
    ids=["off", "every round", "rounds 0 and 2", "B alone"],
)
def test_clients_download_a_again_after_it_moved(refinement: PublicRefinement | None, with_a: list[bool]) -> None:
    """Rank r on two layers of 8 x 24: B 2 * 24 * 4 r bytes, ids 2 * 2 r, and A 2 * 8 * 4 r where it is sent."""
    *_, journal, _ = fit(refinement, max_epochs=4, strategy={"cohort": CohortConfig()})
    for client_id, rank in enumerate([4, 3, 2, 1]):
        expected = [rank * (192 + 4 + 64 * sent) for sent in with_a]
        assert [journal.download[round_idx, client_id] for round_idx in range(4)] == expected


def test_a_plain_trainer_ignores_it() -> None:
    """Centralised training ends as without the callback."""
    ends = []
    for callbacks in ([PublicRefinement()], []):
        module = TinyLM()
        torch.manual_seed(1)
        make_trainer("auto", max_epochs=1, callbacks=callbacks).fit(module, round_loader(), eval_loader())
        ends.append(Adapter(module).read())
    assert equal(*ends) and not equal(ends[0], Adapter(TinyLM()).read())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` and `every_n_rounds` of 1 or more but got 0 and 1"),
        ({"every_n_rounds": 0}, "`steps` and `every_n_rounds` of 1 or more but got 10 and 0"),
        ({"lr": 0.0}, "`lr` and `lr_scale` above 0 but got 0.0 and 0.1"),
        ({"lr_scale": -1.0}, "`lr` and `lr_scale` above 0 but got None and -1.0"),
        ({"sides": ["a", "c", "diagonal"]}, r"`sides` out of a, b and dense but got \['c', 'diagonal'\]"),
        ({"sides": []}, "`sides` out of a, b and dense but got none"),
        ({"server_only": True}, "b or dense in `sides` with `server_only` but got a alone"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        PublicRefinement(**arguments)


class NoData(TinyLM):
    public_dataloader = None  # type: ignore[assignment]


class NothingInIt(TinyLM):
    def public_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Tokens(2), batch_size=3, drop_last=True)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (NoData, {}, "Expected a public split for PublicRefinement but the data has none: set"),
        (NothingInIt, {}, "Expected public examples for PublicRefinement but its loader has no batch"),
        (TinyLM, {"sides": ["dense"]}, r"Expected tensors to train but the module has none of `sides`=\('dense',\)"),
    ],
)
def test_refusals_during_a_run(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        fit(PublicRefinement(**options), make=make)
