"""What a comparison is: its YAML as dataclasses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from jsonargparse.typing import register_type

from pl_fed.compare.merge import parse_yaml
from pl_fed.errors import FederatedConfigError

Mode = Literal["max", "min"]


class Overlay:
    """Nested YAML that is merged into a configuration.

    A type of its own, and neither a mapping nor a dataclass, so that the parser leaves the classes in it alone.

    Args:
        content: The mapping.
    """

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self.content = content or {}

    def __repr__(self) -> str:
        return f"Overlay({self.content})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overlay) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]  # it holds a mapping


def _overlay(value: Any) -> Overlay:
    if isinstance(value, Overlay):
        return value
    value = parse_yaml(value) if isinstance(value, str) else value
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"Expected nested YAML (a mapping) but got {value!r}: write `key: value`.")
    return Overlay(value or {})


BEGINNINGS = {"test": "test", "validation": "val"}  # of the names that runs log


def _check_grid(key: str, values: Sequence[float]) -> None:
    if len(set(values)) < len(values) or not all(map(math.isfinite, values)):
        raise FederatedConfigError(
            f"Expected different finite numbers in {key} but got {list(values)}: drop or correct some."
        )


def _check_figure(kind: str, key: str, name: str | None) -> None:
    if name is not None and not name.startswith(BEGINNINGS[kind]):
        raise FederatedConfigError(
            f"Expected a {kind} metric in {key} but got '{name}': choose one that begins with `{BEGINNINGS[kind]}`."
        )


register_type(
    Overlay,
    serializer=lambda overlay: overlay.content,
    deserializer=_overlay,
    deserializer_exceptions=(ValueError, TypeError, yaml.YAMLError),
)


@dataclass(frozen=True)
class Arm:
    """One row of the tables.

    Args:
        config: Nested YAML over that of `base`, `common` and the setting. Another ``class_path`` starts without the old
            ``init_args``; ``callbacks+`` adds to the list, ``callbacks-`` takes class paths out of it.
        kind: A ``method`` can be on the Pareto front; a ``control`` cannot.
        train: False evaluates the model as it is before training.
        tune: False keeps the value that the configuration has; the name of another arm takes the value chosen for it.
        metric: Validation metric that decides for this arm, where that of `tune` means nothing, for example
            ``val_personalised/accuracy`` where there is no global model. Another figure than that of `tune` has the
            direction of its name: less is better of a loss or a perplexity.
        values: Grid of this arm, of as many values as that of `tune`, where the scale is another: centralised training
            has no averaging that makes steps smaller.
        omit: Beginnings of the names of figures that mean nothing for this arm, for example ``upload_bytes``; they are
            shown as absent. Those of a global model that the arm's rule does not have are left out anyway.
    """

    config: Overlay = field(default_factory=Overlay)
    kind: Literal["method", "control"] = "method"
    train: bool = True
    tune: bool | str = True
    metric: str | None = None
    values: tuple[float, ...] | None = None
    omit: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tune:
    """The grid that every arm is given, in each setting.

    Args:
        key: The tuned key of the configuration.
        values: The grid; an arm that does not say otherwise gets the same.
        seeds: Seeds that the grid is run with.
        metric: Validation metric of the last round that decides; None takes that of `metrics`. Never a test metric.
        mode: Which of its extremes is good; None takes that of `metrics`.
    """

    key: str
    values: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check the grid, and that no test metric decides."""
        if not self.values or not self.seeds:
            raise FederatedConfigError("Expected values and seeds in `tune` but got none: give some or drop `tune`.")
        _check_grid("`tune.values`", self.values)
        _check_figure("validation", "`tune.metric`", self.metric)


@dataclass(frozen=True)
class Metrics:
    """Names of figures as the runs log them; None finds accuracy, else perplexity, else the loss.

    Args:
        test: Test figure of the global model.
        personalised: The figure of clients with the adapters that they keep.
        worst_client: Figure of the client that is served worst by the global model.
        second: A further test figure.
        validation: Validation figure: drawn, and what `tune` goes by.
        mode: Which extreme is good; None is ``min`` for perplexity and loss, else ``max``.
    """

    test: str | None = None
    personalised: str | None = None
    worst_client: str | None = None
    second: str | None = None
    validation: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check that what decides is no test figure, and that what is shown is one."""
        for name in ("test", "personalised", "worst_client", "second"):
            _check_figure("test", f"`metrics.{name}`", getattr(self, name))
        _check_figure("validation", "`metrics.validation`", self.validation)


@dataclass(frozen=True)
class Comparison:
    """A comparison of arms in settings over seeds.

    Args:
        name: Name of its folder and of its W&B group.
        arms: The rows, in this order: name to `Arm`.
        base: Configuration files of `fit`, relative to the working directory or the package's configs.
        folder: Folder of all comparisons.
        common: Nested YAML over `base` for every run.
        seeds: `seed_everything` of each run.
        seed_keys: Further keys that take the seed, for example that of the partitioner.
        settings: A table each: name to nested YAML.
        tune: Grid of a key; None tunes nothing.
        metrics: Names of figures, where those found are not the wanted ones.
        jobs: Runs at the same time.
        threads: Threads of each run.
    """

    name: str
    arms: dict[str, Arm]
    base: tuple[str, ...] = ()
    folder: str = "runs/compare"
    common: Overlay = field(default_factory=Overlay)
    seeds: tuple[int, ...] = (0, 1, 2)
    seed_keys: tuple[str, ...] = ()
    settings: dict[str, Overlay] = field(default_factory=lambda: {"all": Overlay()})
    tune: Tune | None = None
    metrics: Metrics = field(default_factory=Metrics)
    jobs: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what is given."""
        for key in ("jobs", "threads"):
            if getattr(self, key) < 1:
                raise FederatedConfigError(f"Expected `{key}` of 1 or more but got {getattr(self, key)}: raise it.")
        for key in ("arms", "seeds", "settings"):
            if not getattr(self, key):
                raise FederatedConfigError(f"Expected at least one entry in `{key}` but got none: add one.")
        for name, arm in self.arms.items():
            _check_figure("validation", f"`metric` of arm '{name}'", arm.metric)
            known = [other for other, spec in self.arms.items() if spec.tune is True and spec.train]
            if isinstance(arm.tune, str) and arm.tune not in known:
                raise FederatedConfigError(
                    f"Expected `tune` of arm '{name}' to be true, false or a tuned arm of {known} but got '{arm.tune}'."
                )
            self._check_own_grid(name, arm)
        for key, given in (("seeds", self.seeds), ("tune.seeds", self.tune.seeds if self.tune else ())):
            if len(set(given)) < len(given):
                raise FederatedConfigError(f"Expected different `{key}` but got {list(given)}: drop the repeated ones.")

    def _check_own_grid(self, name: str, arm: Arm) -> None:
        if arm.values is None:
            return
        _check_grid(f"`values` of arm '{name}'", arm.values)
        number = len(self.tune.values) if self.tune and arm.tune is True and arm.train else 0
        if len(arm.values) != number:
            raise FederatedConfigError(
                f"Expected {number} `values` of arm '{name}', as many as its budget has, but "
                f"got {list(arm.values)}: {'change their number' if number else 'drop them'}."
            )


@dataclass(frozen=True)
class Sitting:
    """What to do now.

    Args:
        dry_run: List the runs and which of them are done.
        report_only: Write the report of what is done and start nothing.
        only: Arms to run, None for all; the others keep their rows.
        setting: Settings to run, None for all; the others keep their tables.
        max_minutes: Start no run after this time; later sittings go on.
        results: A ``results.jsonl`` of this comparison whose runs count as done.
    """

    dry_run: bool = False
    report_only: bool = False
    only: tuple[str, ...] | None = None
    setting: tuple[str, ...] | None = None
    max_minutes: float | None = None
    results: tuple[str, ...] | None = None

    def check(self, comparison: Comparison) -> None:
        """Raise `FederatedConfigError` if a name is not in the comparison, or the time is none."""
        if self.max_minutes is not None and not self.max_minutes >= 0.0:  # also not a number
            raise FederatedConfigError(
                f"Expected `--max_minutes` of 0 or more but got {self.max_minutes:g}: raise it, or leave it out."
            )
        for key, given, known in (("only", self.only, comparison.arms), ("setting", self.setting, comparison.settings)):
            if unknown := [name for name in given or () if name not in known]:
                raise FederatedConfigError(f"Expected `--{key}` to be one of {list(known)} but got {unknown[0]!r}.")
