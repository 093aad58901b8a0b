"""Federated rounds behind secure aggregation: the same model up to the rounding, and no update on the server."""

import copy
import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_fed.context import RoundContext
from pl_fed.corrections import Scaffold
from pl_fed.errors import ClientFailureError, FederatedConfigError
from pl_fed.privacy import FixedPoint, mean_error_bound
from pl_fed.privacy.pairwise.errors import ModelMismatchError, TooFewSurvivorsError
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FedSALoRA, FedSVD, FLoRA, HetLoRA, LocalOnly, LoRAFAIR, Median, RoLoRA
from pl_fed.secure_round import SecureAggregation
from pl_fed.strategy import FederatedStrategy
from pl_fed.wire import Codecs
from tests.helpers.tiny import TinyLM, adapter_tensors, eval_loader, make_strategy, make_trainer, round_loader
from tests.test_resume import SaveEveryBatch


class Spy(pl.Callback):
    """Notes what the server's hooks can see of the clients."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.bytes: list[int] = []

    def on_aggregate(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        tensors = sum(client.update is not None or client.after is not None for client in context.finished)
        self.seen.append((len(context.updates), tensors, context.num_updates))
        self.bytes += [client.upload_bytes for client in context.finished]


def run(rule: Any, secure: Any, rounds: int = 1, **kwargs: Any) -> tuple[dict[str, torch.Tensor], Spy, pl.Trainer]:
    module, spy = TinyLM(), Spy()
    callbacks = [spy, *kwargs.pop("callbacks", [])]
    trainer = make_trainer(
        make_strategy(rule, secure_aggregation=secure), max_epochs=rounds, callbacks=callbacks, **kwargs
    )
    trainer.fit(module, round_loader(), eval_loader())
    return adapter_tensors(module), spy, trainer


RULES = [
    AFLoRA,
    lambda: AFLoRA(rank_weights=True),
    lambda: AFLoRA(aggregation="literal"),
    lambda: AFLoRA(aggregation="slot", rank_weights=False),
    FedIT,
    RoLoRA,
    FedSALoRA,
]


@pytest.mark.parametrize("make", RULES)
def test_a_round_is_that_of_the_open_server_up_to_rounding(make: Any) -> None:
    """The error of the mean is at most one step of the grid; ``slot`` divides by the share that holds a slot."""
    (found, spy, trainer), (expected, open_spy, _) = run(make(), "ideal"), run(make(), None)
    bound = mean_error_bound(FixedPoint()) * 1.01
    if getattr(make(), "aggregation", "") == "slot":
        bound *= 12
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= bound, name
    assert any(not torch.equal(value, found[name]) for name, value in expected.items()), "really quantised"
    assert spy.seen == [(0, 0, 3)] and open_spy.seen == [(3, 0, 3)]
    assert trainer.callback_metrics["server/secure_clipped_share"] == 0
    assert trainer.callback_metrics["server/clients"] == 3


def test_a_rotated_basis_gives_the_same_products() -> None:
    """Singular vectors of nearly equal products may differ in sign, the products may not."""
    found, expected = run(FedSVD(), "ideal")[0], run(FedSVD(), None)[0]
    for name in (n for n in expected if "lora_A" in n):
        products = [state[name.replace("lora_A", "lora_B")] @ state[name] for state in (found, expected)]
        assert torch.allclose(*products, atol=1e-4)


def test_the_protocol_gives_the_ideal_sum_bit_for_bit() -> None:
    """Three rounds with dropout, unequal ranks and slots; only the rounding's seed decides."""
    (ideal, _, _), (pairwise, spy, _) = run(AFLoRA(), "ideal", 3), run(AFLoRA(), "pairwise", 3)
    assert all(torch.equal(value, pairwise[name]) for name, value in ideal.items())
    assert spy.seen == [(0, 0, 3)] * 3


def test_bytes_are_those_of_the_masked_vector() -> None:
    """B (24 x 4) of two layers at the server's rank for every client, and one mass, in words of eight bytes."""
    rule = AFLoRA(rank_weights=False)
    assert run(rule, "ideal")[1].bytes == [8 * (2 * 24 * 4 + 1)] * 3


def test_resume_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """The sealed updates of the clients that are done are in the checkpoint, which stands for the clients too."""
    expected = run(AFLoRA(), "ideal", 2, callbacks=[SaveEveryBatch(tmp_path)])[0]
    module = TinyLM()
    trainer = make_trainer(make_strategy(AFLoRA(), secure_aggregation="ideal"), max_epochs=2)
    trainer.fit(module, round_loader(), eval_loader(), ckpt_path=sorted(tmp_path.iterdir())[4])
    assert all(torch.equal(value, adapter_tensors(module)[name]) for name, value in expected.items())


class Fishing(pl.Callback):
    """A server that sends one client another B."""

    def on_broadcast(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.round_idx == 1 and context.client.client_id == 2:
            part = next(iter(context.client.broadcast.layers.values()))
            part.b = part.b + 1e-3


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
def test_a_client_with_another_model_stops_the_round(backend: str) -> None:
    """Clients hold unequal slots: each hashes its own, and takes the published hashes of the rest."""
    with pytest.raises(ModelMismatchError, match=r"round 1.*client.* 2"):
        run(AFLoRA(), SecureAggregation(backend), 3, callbacks=[Fishing()], limit_val_batches=0)  # type: ignore[arg-type]
    run(AFLoRA(), SecureAggregation(backend, binding=False), 3, callbacks=[Fishing()])  # type: ignore[arg-type]


class Lost(pl.Callback):
    """Uploads of these clients do not arrive."""

    def __init__(self, *lost: int) -> None:
        self.lost = lost

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.client.client_id in self.lost:
            raise ClientFailureError(context.client.client_id, "lost")


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
def test_a_client_that_is_lost_drops_out_of_the_protocol(backend: str, tmp_path: Path) -> None:
    """The threshold is that of the four chosen clients: three are a sum, two reveal nothing."""
    cohort = CohortConfig(clients=4)

    def run_without(*lost: int, secure: Any, threshold: int | None = None) -> dict[str, torch.Tensor]:
        module = TinyLM()
        settings = SecureAggregation(backend, threshold=threshold) if secure else None  # type: ignore[arg-type]
        strategy = make_strategy(FedIT(), secure_aggregation=settings, cohort=cohort)
        trainer = make_trainer(strategy, max_epochs=1, callbacks=[Lost(*lost)], default_root_dir=tmp_path)
        trainer.fit(module, round_loader(), eval_loader())
        return adapter_tensors(module)

    found, expected = run_without(2, secure=True), run_without(2, secure=False)
    bound = 2 * mean_error_bound(FixedPoint())
    assert all(float((value - expected[name]).abs().max()) <= bound for name, value in found.items())
    for lost, threshold in (((2, 3), None), ((2, 3), 3), ((1, 2, 3), None)):
        with pytest.raises(
            TooFewSurvivorsError,
            match=f"at least 3 of the 4 clients of round 0 .* got {4 - len(lost)}.* A checkpoint is at '{tmp_path}",
        ):
            run_without(*lost, secure=True, threshold=threshold)
        (saved,) = tmp_path.glob("*.ckpt")
        make_trainer(
            make_strategy(FedIT(), secure_aggregation=SecureAggregation(backend), cohort=cohort), max_epochs=1
        ).fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=saved)
        saved.unlink()
    with pytest.raises(FederatedConfigError, match="more than half of 4 clients .* got 2"):
        run_without(secure=True, threshold=2)


def test_clipped_values_are_counted() -> None:
    _, _, trainer = run(FedIT(), SecureAggregation(clip=1e-4))
    assert trainer.callback_metrics["server/secure_clipped_share"] > 0.1


def test_settings_are_checked() -> None:
    for threshold in (1, -3):
        with pytest.raises(FederatedConfigError, match=f"`threshold` of 2 or more, .* but got {threshold}"):
            SecureAggregation(threshold=threshold)
    with pytest.raises(FederatedConfigError, match="`clip` to be positive and finite but got nan"):
        SecureAggregation(clip=float("nan"))
    wrong = copy.copy(SecureAggregation())
    object.__setattr__(wrong, "backend", "none")  # past the tests' type checker
    with pytest.raises(FederatedConfigError, match=r"`backend` out of \('ideal', 'pairwise'\) but got `none`"):
        inspect.unwrap(SecureAggregation.__post_init__)(wrong)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rule": FLoRA()}, "sums only with `secure_aggregation` but got FLoRA: the server stacks every client's"),
        ({"rule": HetLoRA()}, "but got HetLoRA: it weights clients by the norm"),
        ({"rule": LoRAFAIR()}, "but got LoRAFAIR: it fits a correction"),
        ({"rule": FedIT(Median())}, "but got FedIT: a robust mean needs every update"),
        ({"rule": LocalOnly()}, "whose clients send something with .* but got LocalOnly: there is no sum"),
        ({"rule": FedIT(), "codecs": Codecs(up="int8")}, "Expected no upload codec with .* but got `int8`"),
        ({"rule": FedIT(), "codecs": Codecs(down="bfloat16")}, "Expected `codecs.down: float32` with `secure"),
        ({"rule": FedIT(), "local": LocalTraining(correction=Scaffold())}, "Expected no Scaffold with `secure"),
    ],
)
def test_what_needs_single_updates_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(FederatedConfigError, match=text):
        FederatedStrategy(secure_aggregation="ideal", **options)
