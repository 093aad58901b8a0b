"""Which of the logged figures the tables and pictures show."""

from collections.abc import Mapping
from dataclasses import dataclass

from pl_fed.compare.config import Comparison, Mode
from pl_fed.compare.results import Result

Results = Mapping[str, Result]  # by fingerprint; also of runs that failed


@dataclass(frozen=True)
class Names:
    """Names of the figures that the tables show.

    Args:
        test: Of the global model.
        personalised: Of the clients' own.
        worst_client: Of the client that is served worst.
        second: A further one.
        validation: On validation data.
        mode: Which extreme is good.
    """

    test: str
    personalised: str
    worst_client: str
    second: str
    validation: str
    mode: Mode


def resolve(comparison: Comparison, results: Results) -> Names:
    """Return the names of figures: those given, else those found in the results."""
    logged = {name for result in results.values() for name in result.figures}
    given = comparison.metrics
    figure = next((f for f in ("accuracy", "perplexity", "loss") if any(n.endswith(f"/{f}") for n in logged)), "loss")
    prefix = next((p for p in ("test", "test_clients") if f"{p}/{figure}" in logged), "test")
    worst = "accuracy" if figure == "accuracy" else "loss"
    test = given.test or f"{prefix}/{figure}"
    return Names(
        test=test,
        personalised=given.personalised or f"test_personalised/{figure}",
        worst_client=given.worst_client or f"test_clients/worst_client_{worst}",
        second=given.second or f"{test.rpartition('/')[0]}/{'macro_f1' if figure == 'accuracy' else 'loss'}",
        validation=given.validation or f"val/{figure}",
        mode=given.mode or default_mode(test),
    )


def default_mode(metric: str) -> Mode:
    """Return which extreme of a metric is good.

    Example:
        >>> default_mode("test/perplexity"), default_mode("test/accuracy")
        ('min', 'max')
    """
    return "min" if metric.endswith(("loss", "perplexity")) else "max"
