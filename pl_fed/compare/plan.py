"""Which runs a comparison consists of, and which of them are due when some are done.

Everything here is a function of the comparison and of the results so far, so a sitting can end at any time.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pl_fed.compare.config import Arm, Comparison, Mode
from pl_fed.compare.merge import CONFIGS, Nested, fingerprint, lookup, merged, nest, read_config
from pl_fed.compare.names import Results, default_mode, resolve
from pl_fed.compare.rule import check_metric, is_personalised
from pl_fed.errors import FederatedConfigError

Chosen = tuple[str, ...] | None
LEARNING_RATE = "model.init_args.optimizer.init_args.lr"  # the value that is shown when nothing is tuned


@dataclass(frozen=True)
class Run:
    """One process: an arm in a setting, with a seed and perhaps a value of the grid.

    Args:
        arm: Name of the arm.
        setting: Name of the setting.
        seed: Its `seed_everything`.
        value: Value of the tuned key; None leaves it as it is.
        train: Whether it trains.
        config: Its whole configuration.
        fingerprint: Hash of that.
    """

    arm: str
    setting: str
    seed: int
    value: float | None
    train: bool
    config: Nested = field(repr=False, compare=False)
    fingerprint: str

    @property
    def slug(self) -> str:
        """A name for its folder: legible, and different for different configurations."""
        value = "" if self.value is None else f"-{self.value:g}"
        return f"{slug(self.setting)}-{slug(self.arm)}{value}-seed{self.seed}-{self.fingerprint[:8]}"

    def __str__(self) -> str:
        """Say in words which run it is."""
        value = "" if self.value is None else f", value {self.value:g}"
        return f"{self.setting} / {self.arm}{value}, seed {self.seed}"


@dataclass(frozen=True)
class Choice:
    """What tuning an arm in a setting came to.

    Args:
        value: The best value; None while it is open or if every run failed.
        scores: Mean validation figure of each value that was run.
        runs: Runs of the grid.
        done: How many of them ended, also by failing.
        at_edge: Whether the best is the smallest or the largest of several values.
    """

    value: float | None
    scores: dict[float, float]
    runs: tuple[Run, ...]
    done: int
    at_edge: bool

    @property
    def is_open(self) -> bool:
        """Tell whether runs of the grid are missing."""
        return self.done < len(self.runs)


def slug(name: str) -> str:
    """Return a name that a file system and a shell take.

    Example:
        >>> slug("AFLoRA, no pruning")
        'aflora-no-pruning'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "x"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Return the slug of each name; one that another name has already is numbered.

    Example:
        >>> slugs(["alpha 0.1", "alpha=0.1", "beta"])
        {'alpha 0.1': 'alpha-0.1', 'alpha=0.1': 'alpha-0.1_2', 'beta': 'beta'}
    """
    found: dict[str, str] = {}
    for name in names:
        same = sum(slug(other) == slug(name) for other in found)
        found[name] = slug(name) + (f"_{same + 1}" if same else "")  # no slug has a `_` of its own
    return found


class Plan:
    """The runs of a comparison.

    Args:
        comparison: What is compared.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._base = merged(read_config(str(CONFIGS / "defaults.yaml")), *map(read_config, comparison.base))
        for setting in comparison.settings:
            for arm in comparison.arms:
                first = self.run(arm, setting, comparison.seeds[0])  # what cannot be merged is found now
                if self.is_tuned(arm) and is_personalised(first.config):
                    check_metric(arm, self.deciding({}, arm)[0])

    def run(self, arm: str, setting: str, seed: int, value: float | None = None) -> Run:
        """Return one run."""
        comparison, spec = self.comparison, self.comparison.arms[arm]
        overlays = [o.content for o in (comparison.common, comparison.settings[setting], spec.config)]
        if value is not None:
            assert comparison.tune is not None
            overlays.append(nest(comparison.tune.key, value))
        overlays += [nest(key, seed) for key in ("seed_everything", *comparison.seed_keys)]
        try:
            config = merged(self._base, *overlays)
        except FederatedConfigError as error:
            raise FederatedConfigError(f"Arm '{arm}': {error}") from None
        return Run(arm, setting, seed, value, spec.train, config, fingerprint(config, spec.train))

    def is_tuned(self, arm: str) -> bool:
        """Tell whether an arm has a grid."""
        spec: Arm = self.comparison.arms[arm]
        return self.comparison.tune is not None and spec.tune is True and spec.train

    def tuner(self, arm: str) -> str | None:
        """Return the arm whose grid chooses this one's value: itself, another, or none."""
        spec: Arm = self.comparison.arms[arm]
        if self.comparison.tune is None or spec.tune is False or not spec.train:
            return None
        return arm if spec.tune is True else spec.tune

    def grid(self, arm: str, setting: str) -> list[Run]:
        """Return the runs of the grid of an arm; none if it is not tuned."""
        tune = self.comparison.tune
        if tune is None or not self.is_tuned(arm):
            return []
        return [self.run(arm, setting, seed, value) for value in self.values(arm) for seed in tune.seeds]

    def values(self, arm: str) -> tuple[float, ...]:
        """Return the grid of a tuned arm: its own, or everybody's."""
        own, tune = self.comparison.arms[arm].values, self.comparison.tune
        return own or (tune.values if tune else ())

    def choice(self, arm: str, setting: str, results: Results) -> Choice:
        """Return what the grid says so far: the value with the best mean of its validation figure."""
        runs, by_value = self.grid(arm, setting), dict[float, list[float]]()
        ended = [run for run in runs if run.fingerprint in results]
        metric, mode = self.deciding(results, arm)
        for run in ended:
            if run.value is not None:
                score = results[run.fingerprint].figures.get(metric, math.nan)
                by_value.setdefault(run.value, []).append(score)
        scores = {value: sum(found) / len(found) for value, found in by_value.items()}
        usable = {value: score for value, score in scores.items() if not math.isnan(score)}
        value = None
        if usable and len(ended) == len(runs):
            value = (max if mode == "max" else min)(usable, key=usable.__getitem__)
        values = self.values(arm)
        at_edge = value is not None and len(set(values)) > 1 and value in (min(values), max(values))
        return Choice(value, scores, tuple(runs), len(ended), at_edge)

    def deciding(self, results: Results, arm: str | None = None) -> tuple[str, Mode]:
        """Return the validation metric that the grid (of an arm) is judged by, and which of its extremes is good."""
        names, tune = resolve(self.comparison, results), self.comparison.tune
        metric, mode = names.validation, names.mode
        if tune is not None and tune.metric:
            metric, mode = tune.metric, self.comparison.metrics.mode or default_mode(tune.metric)
        mode = tune.mode if tune is not None and tune.mode else mode
        own = None if arm is None else self.comparison.arms[arm].metric
        if own is None or own.rpartition("/")[2] == metric.rpartition("/")[2]:  # one figure, of other models
            return own or metric, mode
        return own, default_mode(own)

    def final(self, arm: str, setting: str, results: Results) -> list[Run]:
        """Return the runs of all seeds; none while the value is open or if the whole grid failed."""
        value, tuner = None, self.tuner(arm)
        if tuner is not None:
            value = self.choice(tuner, setting, results).value
            if value is None:
                return []
        return [self.run(arm, setting, seed, value) for seed in self.comparison.seeds]

    def due(self, results: Results, arms: Chosen = None, settings: Chosen = None) -> list[Run]:
        """Return the runs that could be started now and did not end yet, each configuration once.

        Args:
            results: What ended.
            arms: Only these; None means all.
            settings: Only these; None means all.
        """
        found: dict[str, Run] = {}
        for setting, arm in self.rows(arms, settings):
            grid = self.grid(arm, setting)
            missing = [run for run in grid if run.fingerprint not in results]
            for run in missing or self.final(arm, setting, results):
                if run.fingerprint not in results:
                    found.setdefault(run.fingerprint, run)
        return list(found.values())

    def remaining(self, results: Results, arms: Chosen = None, settings: Chosen = None) -> int:
        """Return how many runs are still to end, those among them whose value is open."""
        known, later = {run.fingerprint for run in self.due(results, arms, settings)}, 0
        for setting, arm in self.rows(arms, settings):
            tuner, tune = self.tuner(arm), self.comparison.tune
            if tuner is not None and tune is not None and self.choice(tuner, setting, results).is_open:
                later += len(set(self.comparison.seeds) - set(tune.seeds if tuner == arm else ()))
        return len(known) + later

    def rows(self, arms: Chosen = None, settings: Chosen = None) -> list[tuple[str, str]]:
        """Return the chosen pairs of a setting and an arm."""
        everything = [(setting, arm) for setting in self.comparison.settings for arm in self.comparison.arms]
        return [(s, a) for s, a in everything if (not arms or a in arms) and (not settings or s in settings)]

    @property
    def shown_key(self) -> str:
        """The key whose value the tables show: the tuned one, else the learning rate."""
        return self.comparison.tune.key if self.comparison.tune else LEARNING_RATE

    def shown_value(self, run: Run) -> Any:
        """Return that key's value in a run."""
        return lookup(run.config, self.shown_key) if run.train else None
