"""Rank pruning: importance and choice of slots by hand, and AdaLoRA's formulas."""

import inspect
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from pl_fed.adapters import Adapter
from pl_fed.callbacks._slot_importance import cubic_budget, slot_energy, slots_to_keep, smooth
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.rules import AFLoRA, FedIT, FFALoRA
from tests.helpers.tiny import RANK, TinyLM, eval_loader, make_strategy, make_trainer, round_loader

# ---------------------------------------------------------------- importance


def test_energy_by_hand() -> None:
    """Slots (3, 4) x (0, 2), (1, 0) x (0, 0) and (0, 2) x (3, 4): norms 5 * 2, 1 * 0, 2 * 5; diagonal -0.5, 7, 1."""
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[0.0, 0.0, 3.0], [2.0, 0.0, 4.0]])
    assert slot_energy(a, b).tolist() == [10.0, 0.0, 10.0]
    assert slot_energy(a, b, torch.tensor([-0.5, 7.0, 1.0])).tolist() == [5.0, 0.0, 10.0]


def test_energy_is_the_norm_of_each_rank_one_term() -> None:
    a, b, lam = torch.randn(4, 9).double(), torch.randn(5, 4).double(), torch.randn(4).double()
    terms = [torch.linalg.matrix_norm(lam[i] * torch.outer(b[:, i], a[i])) for i in range(4)]
    torch.testing.assert_close(slot_energy(a, b, lam), torch.stack(terms), rtol=1e-12, atol=0.0)


def test_only_energy_is_unmoved_when_scale_goes_from_lambda_to_b() -> None:
    """(b, lam) -> (c b, lam / c) leaves the model as it is. The energy stays; |lam| alone changes its order."""
    a, b, lam = torch.randn(3, 9).double(), torch.randn(5, 3).double(), torch.tensor([3.0, 2.0, 1.0]).double()
    factors = torch.tensor([100.0, 1.0, 0.01]).double()
    moved_b, moved_lam = b * factors, lam / factors
    torch.testing.assert_close(moved_b @ torch.diag(moved_lam) @ a, b @ torch.diag(lam) @ a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slot_energy(a, moved_b, moved_lam), slot_energy(a, b, lam), rtol=1e-12, atol=0.0)
    by_lambda = RankPruning(importance="lambda")
    orders = [by_lambda._scores("x", a, w, d).argsort().tolist() for w, d in ((b, lam), (moved_b, moved_lam))]
    assert orders == [[2, 1, 0], [0, 1, 2]]


# ---------------------------------------------------------------- which slots stay


@pytest.mark.parametrize(
    ("importance", "options", "kept"),
    [
        # squares 16, 9, 4, 1: shares 0.533, 0.833, 0.967, 1
        ([4.0, 3.0, 2.0, 1.0], {"eta": 0.53}, [0]),
        ([4.0, 3.0, 2.0, 1.0], {"eta": 0.54}, [0, 1]),
        ([1.0, 2.0, 3.0, 4.0], {"eta": 0.83}, [2, 3]),
        ([1.0, 4.0, 2.0, 3.0], {"eta": 0.96}, [1, 2, 3]),
        ([4.0, 3.0, 2.0, 1.0], {"eta": 0.97}, [0, 1, 2, 3]),
        # a share that is met exactly is enough: 1 of 2 equal squares is 0.5
        ([5.0, 5.0], {"eta": 0.5}, [0]),
        ([1.0, 1.0, 1.0, 1.0], {"eta": 0.75}, [0, 1, 2]),
        # ties go to the lower id
        ([1.0, 2.0, 2.0, 2.0], {"eta": 0.6}, [1, 2]),
        # all the importance in one slot; zeros are dropped even at eta 1
        ([0.0, 7.0, 0.0, 0.0], {"eta": 1.0}, [1]),
        ([4.0, 3.0, 2.0, 1.0], {"eta": 0.0}, [0]),
        # at least `min_rank`; more than there are is all
        ([0.0, 7.0, 0.0, 0.1], {"min_rank": 2}, [1, 3]),
        ([0.0, 7.0, 0.0, 0.1], {"min_rank": 9}, [0, 1, 2, 3]),
        # at most half of five is two, at most a third of five one, at most a quarter of three none
        ([9.0, 0.1, 0.2, 0.3, 0.4], {"max_share": 0.5}, [0, 3, 4]),
        ([9.0, 0.1, 0.2, 0.3, 0.4], {"max_share": 0.34}, [0, 2, 3, 4]),
        ([9.0, 0.0, 0.0], {"max_share": 0.25}, [0, 1, 2]),
        ([9.0, 0.0, 0.0], {"max_share": 0.0}, [0, 1, 2]),
        # 0.29 * 100 is 28.999999999999996 in floating point
        ([1.0] + [0.0] * 99, {"max_share": 0.29}, list(range(71))),
        # nothing learned yet: nothing is dropped
        ([0.0, 0.0, 0.0], {}, [0, 1, 2]),
        # a budget replaces eta, and obeys the other bounds
        ([4.0, 3.0, 2.0, 1.0], {"budget": 3}, [0, 1, 2]),
        ([4.0, 1.0, 2.0, 3.0], {"budget": 1}, [0]),
        ([4.0, 1.0, 2.0, 3.0], {"budget": 1, "max_share": 0.5}, [0, 3]),
        ([4.0, 1.0, 2.0, 3.0], {"budget": 0, "min_rank": 2}, [0, 3]),
        ([4.0, 3.0], {"budget": 8}, [0, 1]),
        # a quarter of three is none, yet a budget may take one; nothing may go where `max_share` is 0
        ([4.0, 3.0, 2.0], {"budget": 1, "max_share": 0.25}, [0, 1]),
        ([4.0, 3.0], {"budget": 1, "max_share": 0.25}, [0]),
        ([4.0, 3.0], {"budget": 1, "max_share": 0.0}, [0, 1]),
        ([0.0, 0.0, 0.0], {"budget": 1}, [0]),
        ([], {}, []),
    ],
    ids=str,
)
def test_slots_to_keep_by_hand(importance: list[float], options: dict[str, Any], kept: list[int]) -> None:
    options.setdefault("max_share", 1.0)
    assert slots_to_keep(torch.tensor(importance), **options).tolist() == kept


def test_cubic_budget_by_hand() -> None:
    """From 12 to 4: 4 + 8 (1 - t)^3. t = 0.25: 4 + 8 * 27/64 = 7.375, t = 0.5: 5, t = 0.75: 4.125, rounded up."""
    assert [cubic_budget(12, 4, t) for t in (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 3.0)] == [12, 12, 8, 5, 5, 4, 4]


def test_cubic_budget_is_that_of_peft() -> None:
    """Between warm-up and the final phase; PEFT rounds down, we round up, so that no budget is below the formula."""
    adapters = nn.Module()
    adapters.x = nn.ParameterDict({"lora_A": nn.ParameterDict({"default": torch.zeros(16, 3)})})
    config = AdaLoraConfig(target_r=2, init_r=16, tinit=4, tfinal=6, total_step=40, deltaT=1)
    allocator = RankAllocator(adapters, config, "default")
    for step in range(5, 34):
        progress = (step - 4) / (40 - 6 - 4)
        exact = 2 + 14 * (1 - progress) ** 3
        assert allocator.budget_schedule(step)[0] in (math.floor(exact), round(exact))
        assert cubic_budget(16, 2, progress) == math.ceil(exact)


@pytest.mark.parametrize("num_rounds", [5, 10, 11, 30, 70])
def test_cubic_schedule_ends_at_the_minimum_and_pruning_is_off_at_both_ends(num_rounds: int) -> None:
    """Two rounds of warm-up; none in the last tenth, rounded up: 1, 1, 2, 3 and 7 rounds (0.1 * 70 is above 7)."""
    pruning = RankPruning(schedule="cubic", min_rank=3, max_share=1.0)
    last = num_rounds - {5: 1, 10: 1, 11: 2, 30: 3, 70: 7}[num_rounds]
    assert [r for r in range(num_rounds) if pruning._prunes(r, num_rounds)] == list(range(2, last))
    scores = torch.arange(16.0)
    budgets = [len(pruning._keep(scores, 16, r, num_rounds)) for r in range(2, last)]
    assert budgets == sorted(budgets, reverse=True) and budgets[-1] == 3
    assert budgets == [math.ceil(3 + 13 * (1 - (i + 1) / (last - 2)) ** 3) for i in range(last - 2)]


def test_a_run_without_an_end_prunes_after_the_warm_up() -> None:
    pruning = RankPruning(warmup_rounds=3)
    assert [pruning._prunes(r, None) for r in range(5)] == [False, False, False, True, True]
    assert pruning._prunes(10**6, -1)


# ---------------------------------------------------------------- sensitivity


def adalora(history: list[dict[str, tuple[Tensor, Tensor]]]) -> Tensor:
    """Recompute AdaLoRA's score of every slot from (p, grad) of each step, in lists of floats.

    I = |p * grad| (8), I' <- 0.85 I' + 0.15 I (9), U <- 0.85 U + 0.15 |I - I'| (10), s = I' U (11) for every entry; a
    slot's score is s of its diagonal plus the means of s over its column of B and its row of A.
    """
    total = torch.zeros(RANK)
    for side in history[0]:
        smoothed = torch.zeros_like(history[0][side][0]).double()
        uncertainty = smoothed.clone()
        for step in history:
            p, grad = step[side]
            score = (p.double() * grad.double()).abs()
            smoothed = 0.85 * smoothed + 0.15 * score
            uncertainty = 0.85 * uncertainty + 0.15 * (score - smoothed).abs()
        entries = smoothed * uncertainty
        total = total + {"a": lambda e: e.mean(1), "b": lambda e: e.mean(0), "diagonal": lambda e: e}[side](entries)
    return total


class History(pl.Callback):
    """Notes parameters and gradients at every step of each client, and compares the callback's scores at its end."""

    def __init__(self, pruning: RankPruning) -> None:
        self.pruning, self.compared = pruning, 0
        self.steps: list[dict[str, dict[str, tuple[Tensor, Tensor]]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = {}
        for name, layer in Adapter(pl_module).layers.items():
            sides = {"a": layer.a, "b": layer.b, "diagonal": layer.diagonal}
            trained = {side: p for side, p in sides.items() if p is not None and p.grad is not None}
            found[name] = {side: (p.detach().clone(), p.grad.clone()) for side, p in trained.items()}
        self.steps.append(found)

    def compare(self, pl_module: Any) -> None:
        for name, layer in Adapter(pl_module).layers.items():
            expected = adalora([step[name] for step in self.steps])
            found = self.pruning._scores(name, layer.a.detach(), layer.b.detach(), None)
            torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-12)
            assert float(expected.max()) > 0
            self.compared += 1

    def on_client_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert len(self.steps) >= 2
        self.compare(pl_module)
        self.steps = []


@pytest.mark.parametrize("rule", [AFLoRA, FedIT, FFALoRA])
def test_sensitivity_is_adaloras(rule: Any) -> None:
    """For what each rule trains: B and the diagonal, A and B, B alone; anew for each client."""
    pruning = RankPruning(importance="sensitivity", warmup_rounds=0, final_share=0.0)
    history = History(pruning)
    make_trainer(make_strategy(rule()), callbacks=[history, pruning]).fit(TinyLM(), round_loader(), eval_loader())
    assert history.compared == 2 * 3 * 2


def test_sensitivity_is_pefts() -> None:
    """PEFT's own `RankAllocator` on the same parameters and gradients for five steps, entry by entry."""
    adapters = nn.Module()
    shapes = {"lora_A": (RANK, 6), "lora_B": (5, RANK), "lora_E": (RANK, 1)}
    for name, shape in shapes.items():
        setattr(adapters, name, nn.ParameterDict({"default": torch.randn(shape)}))
    config = AdaLoraConfig(target_r=1, init_r=RANK, tinit=0, tfinal=0, total_step=9, deltaT=1)
    allocator, mine = RankAllocator(adapters, config, "default"), {}
    for _ in range(5):
        for name, p in adapters.named_parameters():
            p.grad = torch.randn_like(p)
            mine[name] = smooth(mine.get(name), (p * p.grad).abs().detach())
        allocator.update_ipt(adapters)
    for name, (mean, uncertainty) in mine.items():
        assert torch.equal(mean, allocator.exp_avg_ipt[name]) and torch.equal(uncertainty, allocator.exp_avg_unc[name])


def test_a_plain_run_with_sensitivity_scores_as_adalora_does() -> None:
    """Smoothed over the whole run, since there are no clients."""
    pruning = RankPruning(importance="sensitivity", warmup_rounds=9)
    history = History(pruning)
    module = TinyLM()
    trainer = make_trainer("auto", max_epochs=2, callbacks=[history, pruning])
    trainer.fit(module, round_loader(), eval_loader())
    assert len(history.steps) == 20
    history.compare(module)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 1.5}, r"Expected `eta` of RankPruning in \[0, 1\] but got 1.5"),
        ({"max_share": -0.1}, r"`max_share` of RankPruning in \[0, 1\] but got -0.1"),
        ({"final_share": 2.0}, r"`final_share` of RankPruning in \[0, 1\] but got 2.0"),
        ({"min_rank": 0}, "`min_rank` >= 1 and `warmup_rounds` >= 0 but got 0 and 2"),
        ({"warmup_rounds": -1}, "`min_rank` >= 1 and `warmup_rounds` >= 0 but got 1 and -1"),
        ({"importance": "norm"}, r"Expected `importance` out of .*'sensitivity'.* but got `norm`"),
        ({"schedule": "linear"}, r"Expected `schedule` out of .*'cubic'.* but got `linear`"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):  # without the tests' type checker
        inspect.unwrap(RankPruning.__init__)(object.__new__(RankPruning), **arguments)


def test_the_cubic_schedule_needs_a_last_round() -> None:
    trainer = make_trainer(make_strategy(), callbacks=[RankPruning(schedule="cubic")], max_epochs=-1, max_steps=3)
    with pytest.raises(FederatedConfigError, match="a last round for `schedule: cubic` .* has none: set `max_epochs`"):
        trainer.fit(TinyLM(), round_loader(), eval_loader())
