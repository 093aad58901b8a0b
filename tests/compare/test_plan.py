"""Which runs are due, how tuning chooses, and what the fingerprints say."""

import math

import pytest

from pl_fed.compare.config import Arm, Metrics, Overlay, Tune
from pl_fed.compare.names import Results
from pl_fed.compare.plan import Plan, Run
from pl_fed.compare.results import Result
from pl_fed.errors import FederatedConfigError
from tests.helpers.compare import LR, make_comparison, make_result


def give(runs: list[Run], scores: dict[float | None, float]) -> Results:
    return {run.fingerprint: make_result(run, {"val/accuracy": scores.get(run.value, 0.0)}) for run in runs}


def names(runs: list[Run]) -> list[tuple[str, float | None, int]]:
    return [(run.arm, run.value, run.seed) for run in runs]


def test_the_grid_comes_first_then_the_other_seeds_at_the_best_value() -> None:
    """Of the grid's runs that at (0.2, seed 0) is one of the final ones, so only seed 1 is left."""
    plan = Plan(make_comparison())
    first = plan.due({})
    grid = [(arm, value, 0) for arm in "AB" for value in (0.1, 0.2, 0.3)]
    assert names(first) == [*grid, ("base", None, 0), ("base", None, 1)]
    assert plan.remaining({}) == 10, "eight now, and seed 1 of both methods"
    results = dict(give(first, {0.1: 0.5, 0.2: 0.7, 0.3: 0.6}))
    assert names(plan.due(results)) == [("A", 0.2, 1), ("B", 0.2, 1)]
    assert plan.remaining(results) == 2
    results |= give(plan.due(results), {})
    assert plan.due(results) == [] and plan.remaining(results) == 0
    assert names(plan.final("A", "all", results)) == [("A", 0.2, 0), ("A", 0.2, 1)]


@pytest.mark.parametrize(
    ("scores", "mode", "best", "at_edge"),
    [
        ({0.1: 0.5, 0.2: 0.7, 0.3: 0.6}, None, 0.2, False),
        ({0.1: 0.5, 0.2: 0.7, 0.3: 0.8}, None, 0.3, True),
        ({0.1: 0.5, 0.2: 0.7, 0.3: 0.8}, "min", 0.1, True),
        ({0.1: 0.5, 0.2: 0.4, 0.3: math.nan}, None, 0.1, True),
    ],
)
def test_the_best_value(scores: dict[float | None, float], mode: str | None, best: float, at_edge: bool) -> None:
    plan = Plan(make_comparison(tune=Tune(LR, (0.1, 0.2, 0.3), mode=mode)))  # type: ignore[arg-type]
    choice = plan.choice("A", "all", give(plan.grid("A", "all"), scores))
    assert (choice.value, choice.at_edge, choice.is_open) == (best, at_edge, False)


def test_an_arm_may_have_a_grid_of_its_own() -> None:
    """.02 is inside the grid of the methods and the edge of this one."""
    plan = Plan(make_comparison(arms={"A": Arm(), "own": Arm(values=(0.01, 0.015, 0.02))}))
    assert names(plan.grid("own", "all")) == [("own", value, 0) for value in (0.01, 0.015, 0.02)]
    assert [run.value for run in plan.grid("A", "all")] == [0.1, 0.2, 0.3]
    choice = plan.choice("own", "all", give(plan.grid("own", "all"), {0.01: 0.5, 0.015: 0.4, 0.02: 0.6}))
    assert (choice.value, choice.at_edge) == (0.02, True)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm(values=(0.01, 0.02)), "Expected 3 `values` of arm 'own', .* got .0.01, 0.02.: change their number"),
        (Arm(values=(0.1, 0.2, 0.3), tune=False), "Expected 0 `values` of arm 'own', .*: drop them"),
        (Arm(values=(0.1, 0.2, 0.2)), "different finite numbers in `values` of arm 'own' but got"),
    ],
)
def test_a_grid_of_its_own_is_no_larger_budget(arm: Arm, message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make_comparison(arms={"A": Arm(), "own": arm})


def test_the_mean_over_tuning_seeds_decides() -> None:
    """0.1 gives .9 and .1, mean .5; 0.2 gives .6 twice: a single seed would have chosen 0.1."""
    plan = Plan(make_comparison(tune=Tune(LR, (0.1, 0.2), seeds=(0, 5))))
    scores = {(0.1, 0): 0.9, (0.1, 5): 0.1, (0.2, 0): 0.6, (0.2, 5): 0.6}
    runs = plan.grid("A", "all")
    results = {r.fingerprint: make_result(r, {"val/accuracy": scores[r.value or 0.0, r.seed]}) for r in runs}
    assert plan.choice("A", "all", results).scores == pytest.approx({0.1: 0.5, 0.2: 0.6})
    assert plan.choice("A", "all", results).value == 0.2


def test_the_test_metric_never_decides() -> None:
    plan = Plan(make_comparison())
    runs = plan.grid("A", "all")
    assert all(run.value for run in runs)
    results = {
        r.fingerprint: make_result(r, {"val/accuracy": -(r.value or 0), "test/accuracy": r.value or 0}) for r in runs
    }
    assert plan.choice("A", "all", results).value == 0.1
    with pytest.raises(FederatedConfigError, match=r"validation metric in `tune.metric` but got 'test/accuracy'"):
        Tune(LR, (0.1,), metric="test/accuracy")


def test_a_grid_that_is_open_or_failed_chooses_nothing() -> None:
    plan = Plan(make_comparison())
    runs = plan.grid("A", "all")
    part = give(runs[:2], {0.1: 0.5, 0.2: 0.7})
    assert plan.choice("A", "all", part).is_open and plan.choice("A", "all", part).value is None
    failed = {r.fingerprint: Result(r.fingerprint, "A", "all", 0, r.value, error="no") for r in runs}
    assert not plan.choice("A", "all", failed).is_open
    assert plan.final("A", "all", failed) == [] and not [r for r in plan.due(failed) if r.arm == "A"]


def test_an_arm_can_opt_out_of_tuning() -> None:
    arms = {"A": Arm(tune=False), "base": Arm(train=False)}
    assert names(Plan(make_comparison(arms=arms)).due({})) == [
        ("A", None, 0), ("A", None, 1), ("base", None, 0), ("base", None, 1),
    ]  # fmt: skip


def test_an_arm_can_take_the_value_of_another() -> None:
    """Nothing of the control is due while the method's grid is open; then every seed, at the method's best value."""
    plan = Plan(make_comparison(arms={"A": Arm(), "control": Arm(Overlay({"trainer.strategy": "other"}), tune="A")}))
    first = plan.due({})
    assert {run.arm for run in first} == {"A"} and plan.remaining({}) == 3 + 1 + 2
    results = give(first, {0.2: 0.9})
    assert names(plan.due(results)) == [("A", 0.2, 1), ("control", 0.2, 0), ("control", 0.2, 1)]
    with pytest.raises(FederatedConfigError, match=r"a tuned arm of \['A'\] but got 'B'"):
        make_comparison(arms={"A": Arm(), "control": Arm(tune="B")})


def test_an_arm_without_a_global_model_is_tuned_by_its_own_metric() -> None:
    plan = Plan(make_comparison(arms={"A": Arm(), "own": Arm(metric="val_personalised/accuracy")}))
    scores = {0.1: (0.9, 0.1), 0.2: (0.5, 0.5), 0.3: (0.1, 0.9)}  # of the global model, of the clients'
    results = {
        run.fingerprint: make_result(
            run, dict(zip(("val/accuracy", "val_personalised/accuracy"), scores[run.value or 0.0], strict=True))
        )
        for run in plan.grid("A", "all") + plan.grid("own", "all")
    }
    assert plan.choice("A", "all", results).value == 0.1 and plan.choice("own", "all", results).value == 0.3
    with pytest.raises(FederatedConfigError, match=r"validation metric in `metric` of arm 'A' but got 'test/loss'"):
        make_comparison(arms={"A": Arm(metric="test/loss")})


@pytest.mark.parametrize(
    ("own", "shared", "mode"),
    [
        ("val_personalised/loss", Metrics(validation="val/accuracy"), "min"),
        ("val_personalised/accuracy", Metrics(validation="val/loss", test="test/loss"), "max"),
        ("val_personalised/loss", Metrics(validation="val/accuracy", mode="max"), "min"),
        ("val_personalised/error", Metrics(validation="val/error", mode="min"), "min"),
    ],
)
def test_an_arms_own_metric_has_its_own_direction(own: str, shared: Metrics, mode: str) -> None:
    """The smallest loss is at 0.1 though the others' accuracy is maximised; the same figure keeps a given direction."""
    plan = Plan(make_comparison(arms={"A": Arm(), "own": Arm(metric=own)}, metrics=shared))
    results = {run.fingerprint: make_result(run, {own: run.value or 0.0}) for run in plan.grid("own", "all")}
    assert plan.deciding(results, "own") == (own, mode)
    assert plan.choice("own", "all", results).value == {"min": 0.1, "max": 0.3}[mode]


def test_settings_are_tuned_each_for_itself_and_can_be_chosen() -> None:
    settings = {"low": Overlay({"data.alpha": 0.1}), "high": Overlay({"data.alpha": 0.5})}
    plan = Plan(make_comparison(settings=settings))
    results = dict(give(plan.grid("A", "low"), {0.1: 1.0}))
    results |= give(plan.grid("A", "high"), {0.3: 1.0})
    assert plan.choice("A", "low", results).value == 0.1 and plan.choice("A", "high", results).value == 0.3
    assert {run.setting for run in plan.due({}, settings=("low",))} == {"low"}
    assert {run.arm for run in plan.due({}, arms=("B",))} == {"B"}


def test_equal_configurations_are_one_run() -> None:
    assert names(Plan(make_comparison(arms={"A": Arm(), "twin": Arm()}, tune=None)).due({})) == [
        ("A", None, 0), ("A", None, 1),
    ]  # fmt: skip


def test_the_fingerprint_is_portable_and_follows_the_configuration() -> None:
    run = Plan(make_comparison()).run("A", "all", 0, 0.1)
    elsewhere = Plan(make_comparison(name="other", folder="/tmp/x", jobs=4, threads=2, seeds=(7,)))
    assert elsewhere.run("A", "all", 0, 0.1).fingerprint == run.fingerprint
    changed = Plan(make_comparison(common=Overlay({"trainer.max_epochs": 3})))
    different = [
        changed.run("A", "all", 0, 0.1),
        *(Plan(make_comparison()).run("A", "all", *a) for a in ((1, 0.1), (0, 0.2))),
    ]
    assert len({run.fingerprint, *(other.fingerprint for other in different)}) == 4


def test_further_keys_take_the_seed() -> None:
    config = Plan(make_comparison(seed_keys=("data.splits.seed",))).run("A", "all", 1).config
    assert config["seed_everything"] == 1 and config["data"]["splits"]["seed"] == 1


def test_perplexity_is_better_when_smaller() -> None:
    plan = Plan(make_comparison())
    runs = plan.grid("A", "all")
    results = {r.fingerprint: make_result(r, {"val/perplexity": r.value or 0, "val/loss": 1.0}) for r in runs}
    assert plan.deciding(results) == ("val/perplexity", "min")
    assert plan.choice("A", "all", results).value == 0.1


def test_an_arm_that_cannot_be_merged_is_named() -> None:
    with pytest.raises(FederatedConfigError, match="Arm 'A': Expected entries of `callbacks`.*'Nobody'"):
        Plan(make_comparison(arms={"A": Arm(config=Overlay({"trainer": {"callbacks-": ["Nobody"]}}))}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one entry in `seeds`"),
        ({"arms": {}}, "at least one entry in `arms`"),
        ({"seeds": (1, 1)}, r"different `seeds` but got \[1, 1\]"),
        ({"tune": Tune(LR, (0.1,), (2, 2))}, r"different `tune.seeds` but got \[2, 2\]"),
        ({"threads": 0}, "`threads` of 1 or more but got 0"),
    ],
)
def test_bad_comparisons_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make_comparison(**changes)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(FederatedConfigError, match="values and seeds in `tune` but got none"):
        Tune(LR, ())


@pytest.mark.parametrize("values", [(0.003, 0.003), (1, 1.0), (0.1, math.nan), (math.inf,)])
def test_values_that_are_one_run_or_no_number_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(FederatedConfigError, match="different finite numbers in `tune.values` but got"):
        Tune(LR, values)


@pytest.mark.parametrize(
    ("name", "figure", "kind"),
    [
        ("validation", "test/accuracy", "validation"),
        ("validation", "test_clients/perplexity", "validation"),
        ("test", "nonsense/figure", "test"),
        ("test", "val/accuracy", "test"),
        ("worst_client", "val_clients/worst_client_loss", "test"),
    ],
)
def test_what_is_tuned_by_and_what_is_shown_are_different_data(name: str, figure: str, kind: str) -> None:
    with pytest.raises(FederatedConfigError, match=f"a {kind} metric in `metrics.{name}` but got '{figure}'"):
        Metrics(**{name: figure})
