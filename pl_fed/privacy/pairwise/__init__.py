"""Secure aggregation with pairwise masks (Bonawitz et al., CCS 2017): two state machines over bytes."""

from pl_fed.privacy.pairwise.client import PairwiseClient
from pl_fed.privacy.pairwise.errors import ModelMismatchError, ProtocolError, TooFewSurvivorsError
from pl_fed.privacy.pairwise.server import PairwiseServer, SecureTotal
from pl_fed.privacy.pairwise.session import Roster, Session, Step, default_threshold, public_key

__all__ = [
    "ModelMismatchError",
    "PairwiseClient",
    "PairwiseServer",
    "ProtocolError",
    "Roster",
    "SecureTotal",
    "Session",
    "Step",
    "TooFewSurvivorsError",
    "default_threshold",
    "public_key",
]
