"""The Pareto front, against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from pl_fed.compare.pareto import pareto_front

point = st.tuples(st.integers(0, 5), st.integers(0, 5))  # small, so that ties are common


@given(st.lists(point, max_size=12))
def test_agrees_with_the_definition(points: list[tuple[int, int]]) -> None:
    def beaten(cost: int, quality: int) -> bool:
        return any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points)

    costs, qualities = [float(c) for c, _ in points], [float(q) for _, q in points]
    assert pareto_front(costs, qualities) == [not beaten(*p) for p in points]
