"""A control: every client trains alone and sends nothing; what federation must beat on each client's own data."""

from pl_fed.rules.base import Rule


class LocalOnly(Rule):
    """A, B and the dense tensors stay on the client. No bytes; no global model."""

    source = "control"
    up, down = "0", "0"
    averages = False
    keeps = frozenset({"a", "b", "dense"})
    why_not_averages = "nothing is sent"

    def sides(self, round_idx: int) -> frozenset[str]:
        """Both factors."""
        return frozenset({"a", "b"})
