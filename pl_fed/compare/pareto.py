"""Which of several arms no other one beats in both quality and cost."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Tell for each point whether no other has at most its cost and at least its quality, and one of them better.

    Equal points are both on the front.

    Args:
        costs: What each point costs.
        qualities: What each is worth; more is better.

    Example:
        >>> pareto_front([1.0, 2.0, 3.0], [0.5, 0.4, 0.6])
        [True, False, True]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -qualities[i]))
    front, best, at = [False] * len(costs), float("-inf"), float("nan")
    for i in order:
        front[i] = qualities[i] > best or (qualities[i] == best and costs[i] == at)
        if qualities[i] > best:
            best, at = qualities[i], costs[i]
    return front
