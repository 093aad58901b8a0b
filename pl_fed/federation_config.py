"""Everything that defines the rounds, in one place."""

from dataclasses import dataclass

from pl_fed.clients import ClientsConfig
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules.base import Rule
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
