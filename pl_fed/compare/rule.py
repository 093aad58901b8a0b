"""What the rule of a configuration means for its figures."""

import json
from argparse import ArgumentError
from functools import lru_cache

from jsonargparse import ArgumentParser

from pl_fed.compare.merge import Nested, lookup
from pl_fed.errors import FederatedConfigError
from pl_fed.rules.base import Rule

GLOBAL = ("val/", "val_clients/", "test/", "test_clients/")  # beginnings of the server's model's figures
OWN = "val_personalised/"


def is_personalised(config: Nested) -> bool:
    """Tell whether a run's rule leaves each client with a model of its own, and the server with none.

    Args:
        config: The run's whole configuration.
    """
    rule = lookup(config, "trainer.strategy.init_args.rule")
    return rule is not None and _is_personalised(json.dumps(rule, sort_keys=True))


@lru_cache
def _is_personalised(text: str) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rule", type=Rule)
    try:
        rule = parser.instantiate(parser.parse_object({"rule": json.loads(text)})).rule
    except (ArgumentError, FederatedConfigError, ValueError, TypeError):
        return False  # the run itself says best what is wrong with its rule
    return bool(rule.personalised)


def check_metric(arm: str, metric: str) -> None:
    """Refuse a figure of the global model where there is none.

    Args:
        arm: An arm with a personalised rule and a grid of its own.
        metric: The validation metric that decides for it.

    Raises:
        FederatedConfigError: If the metric is not one of the clients' own models.
    """
    if not metric.startswith(OWN):
        raise FederatedConfigError(
            f"Expected a metric of the clients' own models for arm '{arm}', whose rule has no global one, but got "
            f"'{metric}': set its `metric`, for example to {OWN}accuracy, and `loading.personalised_validation`."
        )
