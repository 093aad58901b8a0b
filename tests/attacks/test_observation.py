"""The attack takes nothing but the server's view: by its types, and when everything else is poisoned."""

import copy
import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_fed.attacks.audit import AuditSettings
from pl_fed.attacks.cohorts import recover_over_rounds
from pl_fed.attacks.counts import largest_remainder, smallest_batch, unknown_scale
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation
from pl_fed.attacks.quantise import FixedPointSum
from pl_fed.attacks.report import counts_text, make_report
from pl_fed.attacks.solve import recover
from pl_fed.errors import FederatedConfigError
from tests.helpers import audited
from tests.helpers.audited import label_draws, mlp, play


def leaves(value: Any, path: str = "observation") -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        return [x for f in dataclasses.fields(value) for x in leaves(getattr(value, f.name), f"{path}.{f.name}")]
    return [(path, value)]


SEEN = {
    "aggregate": ["weight", "bias"],
    "models": ["betas", "embeddings", "logits", "head_weight", "head_bias", "jacobians"],
    "round": ["assignment", "weights", "batch_sizes", "scale_known", "one_label_each"],
    "round.local": ["steps", "lr", "momentum", "weight_decay", "optimizer"],
    "round.loss": ["name", "label_smoothing", "class_weights"],
}


def test_its_fields_are_these_and_hold_numbers_only() -> None:
    """No module, no batch, no per-client update: one sum of the shape of one head."""
    played = play(mlp(), label_draws([32] * 8), LocalSteps(2, 0.01))
    seen = dict(leaves(played.observation))
    assert set(seen) == {f"observation.{part}.{name}" for part, names in SEEN.items() for name in names}
    for name, value in seen.items():
        assert value is None or isinstance(value, (Tensor, int, float, str, tuple)), name
        if isinstance(value, Tensor):
            assert not value.requires_grad and not isinstance(value, nn.Parameter), name
    assert played.observation.aggregate.weight.shape == (10, 64)


@pytest.mark.parametrize("steps", [1, 4])
def test_poisoning_all_else_changes_nothing(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The module's tensors become NaN, the single updates and the truth too; no image and no module is to be had."""
    net = mlp()
    played = play(net, label_draws([32] * 8), LocalSteps(steps, 0.01), scale=0.3)
    before = recover(played.observation)
    assert torch.equal(before.counts, played.true)
    for tensor in [*net.parameters(), *net.buffers(), *(u.weight for u in played.updates)]:
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))
    played.true.fill_(-1)
    for update in played.updates:
        assert update.bias is not None
        update.bias.fill_(float("nan"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the attack ran a module or read an image")

    monkeypatch.setattr(nn.Module, "__call__", refuse)
    monkeypatch.setattr(audited, "digits", refuse)  # neither images nor labels
    torch.manual_seed(1)  # nor does it draw random numbers
    again = recover(played.observation)
    assert torch.equal(again.raw, before.raw) and torch.equal(again.counts, before.counts)


def test_the_sum_is_all_that_tells_clients_apart() -> None:
    """With another sum of the same models the result is another: nothing leaks past the aggregate."""
    one, two = (play(mlp(), label_draws([32] * 8, seed=seed)) for seed in (0, 1))
    torch.manual_seed(0)
    swapped = Observation(
        HeadUpdate(torch.zeros(10, 64).double(), torch.zeros(10).double()), *list(vars(one.observation).values())[1:]
    )
    assert not torch.equal(one.true, two.true)
    assert len(recover(swapped).counts.unique(dim=0)) == 8  # the logits alone: B * softmax(z_k)
    assert not torch.equal(recover(swapped).counts, one.true)


def test_hand_computed() -> None:
    """Two clients, e = (2, 0) and (0, 2), z = 0, no bias; n = (2, 0) and (1, 1), lr 1.

    g_1 = (.5 - 1, .5 - 0) = (-.5, .5) and g_2 = 0; minus the sum of g_k e_k^T is [[1, 0], [-1, 0]].
    """
    models = audited.FishingModels(
        torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double(),
        torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double(),
        torch.zeros(2, 2).double(),
        torch.zeros(2, 2).double(),
        None,
    )
    public = audited.PublicRound(torch.arange(2), torch.ones(2), torch.tensor([2, 2]))
    update = HeadUpdate(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), None)
    found = recover(Observation(update, models, public))
    assert found.counts.tolist() == [[2, 0], [1, 1]] and found.rank == 2
    assert found.condition == pytest.approx(1.0) and found.margin < 1e-12
    report = make_report(found, found.counts, torch.tensor([[1, 1], [1, 1]]))
    assert (report.label_accuracy, report.exact_match, report.guess) == (1.0, 1.0, 0.75)
    assert "| 0 | 2 0 | 2 0 | yes | 1.000 | 0.500 |" in report.markdown() and "What stops it" in report.markdown()


def test_a_client_that_is_not_separated_counts_as_guessed() -> None:
    played = play(mlp(4), label_draws([32] * 6))
    found = recover(played.observation)
    guessed = torch.full((6, 10), 3)
    report = make_report(found, played.true, guessed)
    assert report.under_determined and "under-determined" in report.markdown() and "not separated" in report.markdown()
    lost = next(row for row in report.rows if row.recovered is None)
    assert lost.accuracy == lost.guess and not lost.exact
    assert "audit/condition" not in report.metrics() and report.metrics()["audit/under_determined"] == 1.0
    assert counts_text(tuple([1] * 20)).endswith("...")


def test_largest_remainder() -> None:
    assert largest_remainder(torch.tensor([1.4, 0.4, 0.2]), 2).tolist() == [1, 1, 0]
    assert largest_remainder(torch.tensor([-0.1, 2.1, 1.0]), 3).tolist() == [0, 2, 1]
    assert largest_remainder(torch.tensor([float("nan"), 0.0]), 4).tolist() == [2, 2]


def test_no_whole_counts_is_no_batch_size() -> None:
    assert smallest_batch(torch.tensor([2**-0.5, 1 - 2**-0.5]).double(), limit=20) is None
    assert smallest_batch(torch.tensor([0.25, 0.75]).double()) == 4


def test_scale_without_an_absent_class_is_not_confirmed() -> None:
    """p = 1/2, mix (1/4, 3/4), factor 3: Gamma = 3 (1/4, -1/4). Unknown B: taken for (0, 1) at 3/2. B = 4: 3."""
    gamma, logits = torch.tensor([0.75, -0.75]).double(), torch.zeros(2).double()
    assert unknown_scale(gamma, logits, LossSpec()) == (1.5, False)
    assert unknown_scale(gamma / 3, torch.zeros(2).double(), LossSpec(), 4)[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSpec(label_smoothing=1.0), "label_smoothing` in"),
        (lambda: LossSpec("bce_with_logits", label_smoothing=0.1), "0 with `bce_with_logits`"),
        (lambda: LossSpec(class_weights=(1.0, 0.0)), "positive `loss.class_weights`"),
        (lambda: LossSpec(class_weights=(1.0,)).label_mix(torch.zeros(2), torch.zeros(2)), "Expected 2"),
        (lambda: LocalSteps(steps=0), "`local.steps` of 1"),
        (lambda: LocalSteps(momentum=1.0), "`local.momentum` in"),
        (lambda: FixedPointSum(bits=1), "`bits` in"),
        (lambda: FixedPointSum(clip=float("nan")), "finite `clip` above 0 but got 22 and nan"),
        (lambda: LocalSteps(lr=float("nan")), "a finite `local.lr` above 0 but got 1 and nan"),
        (lambda: LocalSteps(weight_decay=float("inf")), "`local.weight_decay` of 0 or more but got 0.0 and inf"),
        (lambda: LossSpec(class_weights=(1.0, float("nan"))), "positive `loss.class_weights`"),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        (LossSpec, "name", "`loss.name` out of .* but got `other`"),
        (LocalSteps, "optimizer", "`local.optimizer` out of"),
        (FixedPointSum, "bits", "whole `bits` in .* but got other"),
        (AuditSettings, "secure_sum", "`secure_sum` to be a function .* but got 'other': give one"),
        (LocalSteps, "steps", "whole `local.steps` of 1 or more .* but got other"),
    ],
)
def test_unknown_choices(kind: Any, field: str, message: str) -> None:
    wrong = object.__new__(kind)
    for name, value in {**vars(kind()), field: "other"}.items():
        object.__setattr__(wrong, name, value)
    with pytest.raises(FederatedConfigError, match=message):  # without the tests' type checker
        inspect.unwrap(kind.__post_init__)(wrong)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("round", {"assignment": torch.tensor([0, 9])}, r"number the 2 crafted models from 0 but got \[0, 9\]"),
        ("round", {"weights": torch.ones(3)}, "for each of one or more clients but got 2, 3 and 2"),
        ("round", {"weights": torch.tensor([1.0, 0.0])}, "finite `weights` above 0"),
        ("round", {"batch_sizes": torch.tensor([8])}, "but got 2, 2 and 1"),
        (
            "round",
            {"batch_sizes": torch.tensor([8, -8])},
            r"`batch_sizes` .* 0 or more for each .* \[8, -8\]",
        ),
        ("round", {"batch_sizes": torch.tensor([8.5, 8])}, "`batch_sizes` to be a whole number"),
        ("round", {"assignment": torch.tensor([0.0, 1.0])}, "`assignment` to be a whole number"),
        ("round", {"assignment": torch.tensor([[0], [1]])}, r"but got \[\[0\], \[1\]\]: give one row of integers"),
        ("round", {"weights": torch.ones(2, 2)}, "for each of one or more clients but got 2, 4 and 2"),
        ("aggregate", {"bias": torch.zeros(3)}, r"\(10, 64\) but got \(10, 64\) and a bias of \(3,\)"),
        ("aggregate", {"bias": torch.zeros(10, 1)}, r"a bias of \(10, 1\)"),
        ("models", {"embeddings": torch.full((2, 64), float("nan"))}, "finite `embeddings` .* NaN or infinite values"),
        ("models", {"embeddings": torch.zeros(1, 64)}, r"`embeddings` of shape \(2, 64\) .* but got \(1, 64\)"),
        ("models", {"logits": torch.full((2, 10), float("inf"))}, "finite `logits` .* NaN or infinite values"),
        ("models", {"logits": torch.zeros(2, 5)}, r"`logits` of shape \(2, 10\) .* but got \(2, 5\)"),
        ("models", {"head_bias": torch.zeros(4)}, r"`head_bias` of shape \(10,\)"),
        ("aggregate", {"weight": torch.zeros(10, 3)}, r"head's shape \(10, 64\) but got \(10, 3\)"),
        ("aggregate", {"weight": torch.full((10, 64), float("nan"))}, "a finite aggregate .* training diverged"),
    ],
)
def test_observations_are_checked(part: str, change: dict[str, Tensor], message: str) -> None:
    """One sentence, not an error of torch: an observation may come from a file."""
    seen = play(mlp(), label_draws([8] * 2)).observation
    wrong = copy.copy(getattr(seen, part))
    vars(wrong).update(change)  # past the tests' type checker
    vars(seen)[part] = wrong
    with pytest.raises(FederatedConfigError, match=message):
        inspect.unwrap(Observation.__post_init__)(seen)


def test_rounds_with_one_model_are_checked() -> None:
    played = play(mlp(), label_draws([8] * 2))
    with pytest.raises(FederatedConfigError, match="one model and 2 clients in round 0 but got 2 and 2"):
        recover_over_rounds([played.observation], torch.ones(1, 2, dtype=torch.bool), torch.tensor([8, 8]))
    with pytest.raises(FederatedConfigError, match=r"one or more `observations` .* but got 0 and \(0, 2\)"):
        recover_over_rounds([], torch.ones(0, 2, dtype=torch.bool), torch.tensor([8, 8]))
    with pytest.raises(FederatedConfigError, match=r"shape \(1, 2\), rounds and clients, but got 1 and \(2, 2\)"):
        recover_over_rounds([played.observation], torch.ones(2, 2, dtype=torch.bool), torch.tensor([8, 8]))


def test_an_unknown_correction() -> None:
    played = play(mlp(), label_draws([8] * 2))
    with pytest.raises(FederatedConfigError, match=r"`correction` out of \('auto', .* but got `other`"):
        inspect.unwrap(recover)(played.observation, **{"correction": "other"})
