"""Every attack under every defence: what must leak, what must not, and the sums by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pl_fed.attacks import CannotAttackError, HeadUpdate, LocalSteps, LossSpec
from pl_fed.attacks.audit import AuditSettings, SimulatedClients, audit
from pl_fed.attacks.defences import DEFENCES, DefenceRow, audit_defences
from pl_fed.attacks.defended import Defence, Sent, defended_sum, is_refused, noised, right_coordinates
from tests.helpers.audited import images_of, label_draws, mlp, small_cnn

Rows = dict[tuple[str, str], DefenceRow]


def clients_of(net: nn.Module, sizes: list[int], steps: int = 1) -> SimulatedClients[tuple[Tensor, Tensor]]:
    labels = label_draws(sizes)
    true = torch.stack([torch.bincount(own, minlength=10) for own in labels])
    batches = [[(images_of(own, k), own)] * steps for k, own in enumerate(labels)]
    first_mix = true[0].double() / sizes[0]
    return SimulatedClients(
        batches, lambda b: nn.functional.cross_entropy(net(b[0]), b[1]), true * steps, first_mix, true.sum(1) * steps
    )


def noise_forward(net: nn.Module) -> object:
    return net(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(9)))


FEW = tuple(defence for defence in DEFENCES if defence.name in ("none", "model binding", "DP 1", "tripwire"))


def rows_of(
    net: nn.Module, sizes: list[int], settings: AuditSettings | None = None, defences: tuple[Defence, ...] = FEW
) -> Rows:
    settings = settings or AuditSettings()
    clients = clients_of(net, sizes, settings.local.steps)
    found = audit_defences(net, lambda: noise_forward(net), clients, settings, defences)
    return {(row.attack, row.defence): row for row in found}


@pytest.fixture(scope="module")
def rows() -> Rows:
    torch.manual_seed(0)
    return rows_of(small_cnn(), [32] * 8, defences=DEFENCES)


def test_every_attack_meets_every_defence(rows: Rows) -> None:
    attacks = ["fishing", "same model", "LLG", "iLRG", "true mix"]
    assert list(rows) == [(attack, defence.name) for attack in attacks for defence in DEFENCES]
    assert len({row.guess for row in rows.values()}) == 1 and 0.3 < rows["LLG", "none"].guess < 0.7
    assert all(row.note.endswith(".") and 0 <= row.label_accuracy <= 1 for row in rows.values())


@pytest.mark.parametrize("defence", ["none", "quantisation", "clipping"])
def test_what_stops_nothing(rows: Rows, defence: str) -> None:
    row = rows["fishing", defence]
    assert row.label_accuracy == row.exact_match == 1.0 and row.blocked == 0.0 and row.alarms is None
    assert row.rank == 8 and row.condition is not None and row.condition < 4
    assert row.margin is not None and row.margin < 0.01
    assert rows["same model", defence].label_accuracy > rows["same model", defence].guess + 0.2


def test_model_binding(rows: Rows) -> None:
    """Another model for each client gives nothing; the same for all is not refused and leaks over the rounds."""
    row, same = rows["fishing", "model binding"], rows["same model", "model binding"]
    assert row.blocked == 1.0 and row.exact_match == 0.0 and row.label_accuracy == row.guess and row.rank is None
    assert "0.0% of the coordinates of a masked sum of 8 clients" in row.note
    assert same.blocked == 0.0 and same.exact_match == 1.0 and "nothing is refused" in same.note


def test_noise(rows: Rows) -> None:
    """More noise, less accuracy; at 1 not much more than a guess."""
    for attack in ("fishing", "same model"):
        figures = [rows[attack, name].label_accuracy for name in ("clipping", "DP 0.1", "DP 0.3", "DP 1")]
        assert figures == sorted(figures, reverse=True) and figures[-1] < rows[attack, "DP 1"].guess + 0.08
    assert rows["same model", "DP 0.3"].label_accuracy > rows["fishing", "DP 0.3"].label_accuracy + 0.1, "more rounds"


def test_local_norm_layers(rows: Rows) -> None:
    """They stop a model for each client; over rounds the sums of honest gradients say much all the same."""
    row, same = rows["fishing", "local norm layers"], rows["same model", "local norm layers"]
    assert row.exact_match == same.exact_match == 0.0 and row.blocked == same.blocked == 0.0
    assert row.label_accuracy < row.guess + 0.1 < same.label_accuracy - 0.1


def test_tripwire(rows: Rows) -> None:
    """Everybody raises the alarm at crafted models, nobody at an honest one."""
    for attack, alarms in (("fishing", 1.0), ("same model", 1.0), ("LLG", 0.0), ("iLRG", 0.0), ("true mix", 0.0)):
        row = rows[attack, "tripwire"]
        assert row.alarms == alarms and row.blocked == (0.0 if attack == "true mix" else alarms)
        assert row.label_accuracy == (row.guess if alarms else rows[attack, "quantisation"].label_accuracy)


def test_a_tripwire_that_is_evaded(rows: Rows) -> None:
    """Nobody raises the alarm, and next to everything is read."""
    for attack in ("fishing", "same model"):
        row = rows[attack, "tripwire, evaded"]
        assert row.alarms == row.blocked == 0.0 and row.label_accuracy > 0.9 > row.guess + 0.2


def test_the_audit_agrees(rows: Rows) -> None:
    """With the default sum: the same figures as the plain audit of the same clients."""
    torch.manual_seed(0)
    net = small_cnn()
    report = audit(net, lambda: noise_forward(net), clients_of(net, [32] * 8), AuditSettings())
    row = rows["fishing", "quantisation"]
    assert (row.label_accuracy, row.exact_match, row.guess) == (report.label_accuracy, 1.0, report.guess)
    assert (row.rank, row.condition, row.margin) == (report.rank, report.condition, report.margin)
    baselines = {"LLG": "LLG", "iLRG": "iLRG", "true mix": "aggregate mix"}
    for attack, name in baselines.items():
        assert rows[attack, "quantisation"].label_accuracy == report.baselines[name]


def test_the_module_comes_back_and_twice_the_same() -> None:
    net = mlp(16, dropout=0.2).eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    first = rows_of(net, [6, 4, 8])
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items()) and not net.training
    assert torch.equal(state, torch.get_rng_state()) and first == rows_of(net, [6, 4, 8])


def test_more_clients_than_the_rank() -> None:
    """Width 4, six clients: two rounds. The surplus clients' model gives an input of zeros, which rings no tripwire."""
    rows = rows_of(mlp(4), [8] * 6)
    assert rows["fishing", "none"].exact_match == rows["same model", "none"].exact_match == 1.0
    assert rows["fishing", "model binding"].blocked == 1.0
    row = rows["fishing", "tripwire"]
    assert row.alarms == pytest.approx(4 / 6) and row.exact_match == 0.0 and row.label_accuracy == row.guess


def test_several_steps_and_no_bias() -> None:
    net = mlp(32)
    net[5] = nn.Linear(32, 10, bias=False)
    rows = rows_of(net, [8] * 3, AuditSettings(LocalSteps(3, 0.05)))
    assert ("iLRG", "none") not in rows and rows["fishing", "none"].exact_match == 1.0
    assert rows["fishing", "tripwire"].blocked == 1.0


def test_a_loss_that_is_not_the_configured_one() -> None:
    net = mlp(16)
    with pytest.raises(CannotAttackError, match="Expected the gradient of `cross_entropy` .* set `loss`"):
        rows_of(net, [16] * 2, AuditSettings(loss=LossSpec(label_smoothing=0.5)))


# The sums.


def sent(*values: tuple[float, float], alarms: tuple[bool, ...] = (False,) * 3, contexts: str = "aaa") -> Sent:
    updates = tuple(HeadUpdate(torch.tensor([[a], [b]], dtype=torch.float64), None) for a, b in values)
    return Sent(updates, torch.tensor(alarms), tuple(c.encode() for c in contexts))


def total_of(message: Sent, defence: Defence, who: tuple[bool, ...] = (True,) * 3) -> tuple[list[float], list[bool]]:
    total, present = defended_sum(message, defence, AuditSettings(), torch.tensor(who))
    return [] if total is None else total.flat().tolist(), present.tolist()


def test_sums_by_hand() -> None:
    """Norms 5, 10 and 1: the median is 5, so (6, 8) becomes (3, 4) and the others stay."""
    message = sent((3.0, 4.0), (6.0, 8.0), (1.0, 0.0), alarms=(False, True, False))
    none, clipping, tripwire = (Defence(kind, kind) for kind in ("none", "clipping", "tripwire"))  # type: ignore[arg-type]
    assert total_of(message, none) == ([10.0, 12.0], [True] * 3)
    assert total_of(message, none, (True, False, True)) == ([4.0, 4.0], [True, False, True])
    found, _ = total_of(message, clipping)
    assert found == pytest.approx([7.0, 8.0], abs=1e-5)
    found, present = total_of(message, tripwire)
    assert found == pytest.approx([4.0, 4.0], abs=1e-5) and present == [True, False, True]
    assert total_of(message, tripwire, (True, True, False)) == ([], [False] * 3), "no sum of one client"


def test_binding_refuses_one_other_model() -> None:
    binding = Defence("binding", "binding")
    assert total_of(sent((1, 0), (0, 1), (2, 2), contexts="aab"), binding) == ([], [False] * 3)
    found, present = total_of(sent((1, 0), (0, 1), (2, 2), contexts="aab"), binding, (True, True, False))
    assert found == pytest.approx([1, 1], abs=1e-5) and present == [True, True, False]
    assert is_refused([b"a", b"b"]) and not is_refused([b"a", b"a"]) and not is_refused([b"a"])


def test_masks_of_the_protocol() -> None:
    """With one model every coordinate is right; with one other model none of 1000 is."""
    updates = tuple(HeadUpdate(torch.randn(10, 100, dtype=torch.float64), None) for _ in range(3))
    message = Sent(updates, torch.zeros(3, dtype=torch.bool), (b"a", b"a", b"a"))
    assert right_coordinates(message) == 1.0
    assert right_coordinates(replace(message, contexts=(b"a", b"b", b"a"))) == 0.0


def test_size_of_the_noise() -> None:
    zero = HeadUpdate(torch.zeros(100, 1000), torch.zeros(100))
    noise = noised(zero, 0.5, 1).flat()
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01) and torch.equal(noise, noised(zero, 0.5, 1).flat())
    assert not torch.equal(noise, noised(zero, 0.5, 2).flat())
