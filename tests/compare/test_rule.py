"""Rules without a global model: what their figures mean, and what may choose their values."""

import pytest

from pl_fed.compare.config import Arm, Metrics, Overlay
from pl_fed.compare.names import resolve
from pl_fed.compare.plan import Plan
from pl_fed.compare.rows import fronts, make_rows
from pl_fed.compare.rule import is_personalised
from pl_fed.errors import FederatedConfigError
from pl_fed.rules.table import shipped_rules
from tests.helpers.compare import make_comparison, make_result

RULE = "trainer.strategy.init_args.rule"


def with_rule(name: str) -> Overlay:
    return Overlay({RULE: {"class_path": f"pl_fed.rules.{name}"}})


def test_every_rule_is_asked() -> None:
    for rule in shipped_rules():
        name = type(rule).__name__
        for node in (f"pl_fed.rules.{name}", {"class_path": f"pl_fed.rules.{name}"}):
            config = {"trainer": {"strategy": {"init_args": {"rule": node}}}}
            assert is_personalised(config) == (name in ("FedSALoRA", "LocalOnly")), name


@pytest.mark.parametrize("strategy", ["auto", {"init_args": {}}, {"init_args": {"rule": {"class_path": "no.Rule"}}}])
def test_without_a_rule_that_can_be_made_there_is_nothing_to_ask(strategy: object) -> None:
    assert not is_personalised({"trainer": {"strategy": strategy}})


def test_figures_of_a_global_model_that_is_not_there_are_absent() -> None:
    """FedSA-LoRA's is the best test figure for the least cost, and yet on no front; untrained, it is the base model."""
    arms = {
        "FedIT": Arm(with_rule("FedIT")),
        "FedSA": Arm(with_rule("FedSALoRA")),
        "untrained": Arm(with_rule("FedSALoRA"), kind="control", train=False),
    }
    plan = Plan(make_comparison(arms=arms, tune=None, seeds=(0,)))
    results = {}
    for arm, test, cost in (("FedIT", 0.5, 2.0), ("FedSA", 0.9, 1.0), ("untrained", 0.1, 0.0)):
        names = ("val/accuracy", "test/accuracy", "test_clients/worst_client_accuracy", "test_personalised/accuracy")
        run = plan.run(arm, "all", 0)
        results[run.fingerprint] = make_result(run, {**dict.fromkeys(names, test), "upload_bytes": cost})
    rows, names_shown = make_rows(plan, "all", results), resolve(plan.comparison, results)
    assert [row.mean("test/accuracy") for row in rows] == [0.5, None, 0.1]
    assert [row.mean("test_clients/worst_client_accuracy") for row in rows] == [0.5, None, 0.1]
    assert [row.mean("val/accuracy") for row in rows] == [0.5, None, 0.1]
    assert [row.mean("test_personalised/accuracy") for row in rows] == [0.5, 0.9, 0.1]
    assert [row.mean("upload_bytes") for row in rows] == [2.0, 1.0, 0.0]
    assert fronts(rows, names_shown)["upload"] == {"FedIT"}


def test_a_global_figure_does_not_tune_a_rule_without_a_global_model() -> None:
    def plan(**changes: object) -> Plan:
        arm = Arm(with_rule("LocalOnly"), **changes)  # type: ignore[arg-type]
        return Plan(make_comparison(arms={"FedIT": Arm(with_rule("FedIT")), "own": arm}))

    with pytest.raises(FederatedConfigError, match=r"the clients' own models for arm 'own', .* but got 'val/"):
        plan()
    with pytest.raises(FederatedConfigError, match=r"for arm 'own', .* but got 'val_clients/loss'"):
        plan(metric="val_clients/loss")
    for accepted in ({"metric": "val_personalised/loss"}, {"tune": False}, {"tune": "FedIT"}, {"train": False}):
        plan(**accepted)
    everywhere = Metrics(validation="val_personalised/accuracy")
    Plan(make_comparison(arms={"own": Arm(with_rule("LocalOnly"))}, metrics=everywhere))
