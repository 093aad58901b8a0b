"""Everything that defines the rounds, in one place."""

from dataclasses import dataclass

from pl_fed.clients import ClientsConfig
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules.base import Rule
from pl_fed.secure_round import SecureAggregation
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.wire import Codecs


@dataclass
class FederationConfig:
    """Everything that defines the rounds; see `FederatedStrategy` for the meaning of each."""

    rule: Rule
    cohort: CohortConfig
    local: LocalTraining
    clients: ClientsConfig
    server_optimizer: ServerOptimizer
    codecs: Codecs
    seed: int = 0
    secure_aggregation: SecureAggregation | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not go together.

        Raises:
            FederatedConfigError: If they do not; the text says why.
        """
        name, correction = type(self.rule).__name__, self.local.correction
        if self.secure_aggregation is not None:
            self._check_secure(name)
        if self.rule.rotates and not self.server_optimizer.plain:
            raise FederatedConfigError(
                f"Expected the plain server optimizer with {name} but got `{self.server_optimizer.name}`: the rule "
                "changes the basis of the slots in every round, and moments of the old basis mean nothing in the new."
            )
        new_basis = self.rule.rotates or self.rule.reinitialises
        if new_basis and self.local.optimizer == "kept":
            raise FederatedConfigError(
                f"Expected `local.optimizer: fresh` with {name} but got `kept`: the rule changes the factors' basis in "
                "every round, and a client's moments of the old basis mean nothing in the new."
            )
        if correction is None or not correction.has_controls:
            return
        if new_basis:
            raise FederatedConfigError(
                f"Expected no {type(correction).__name__} with {name} but got it: the rule changes the factors' basis "
                "in every round, and control variates of the old basis mean nothing in the new. Use FedProx."
            )
        if "diagonal" in self.rule.optimizer_sides():
            raise FederatedConfigError(
                f"Expected no {type(correction).__name__} with a learned diagonal but got it with {name}: the diagonal "
                "is folded into B, so that its control variate has no place. Set `train_diagonal: false` or use "
                "FedProx."
            )

    def _check_secure(self, name: str) -> None:
        if self.rule.keeps >= {"a", "b", "dense"}:
            raise FederatedConfigError(
                f"Expected no `secure_aggregation` with {name} but got it: its clients send nothing that could be "
                "added up. Drop it."
            )
        if not self.rule.sums_only:
            why = "a robust mean needs every update" if self.rule.mean else self.rule.why_not_averages
            raise FederatedConfigError(
                f"Expected a rule that needs sums only with `secure_aggregation` but got {name}: {why}. "
                "`python cli.py rules` lists those that do."
            )
        if self.codecs.up != "float32":
            raise FederatedConfigError(
                f"Expected no upload codec with `secure_aggregation` but got `{self.codecs.up}`: sums are of "
                "fixed-point numbers, set `secure_aggregation.bits`."
            )
        if self.codecs.down != "float32" and self.secure_aggregation is not None and self.secure_aggregation.binding:
            raise FederatedConfigError(
                f"Expected `codecs.down: float32` with `secure_aggregation.binding` but got `{self.codecs.down}`: a "
                "lossy broadcast differs from client to client. Change one of them."
            )
        if self.local.correction is not None and self.local.correction.has_controls:
            raise FederatedConfigError(
                f"Expected no {type(self.local.correction).__name__} with `secure_aggregation` but got it: control "
                "variates are not part of the sum. Use FedProx."
            )
