"""Audits of one's own federation: what a malicious server could learn from what the clients send.

Published attacks, re-implemented as pure functions, to be run on data that the user owns.
"""

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.cohorts import recover_over_rounds
from pl_fed.attacks.cut_norm import CannotAttackError, Target, find_target
from pl_fed.attacks.fishing import FishingModels, choose_betas, make_models
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, PublicRound
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport, make_report
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.solve import Recovery, recover

__all__ = [
    "AuditReport",
    "CannotAttackError",
    "FishingModels",
    "FixedPointSum",
    "HeadUpdate",
    "LocalSteps",
    "LossSpec",
    "Observation",
    "PublicRound",
    "Recovery",
    "SecureSum",
    "Target",
    "aggregate",
    "choose_betas",
    "client_update",
    "exact_match",
    "find_target",
    "label_accuracy",
    "make_models",
    "make_report",
    "recover",
    "recover_over_rounds",
]
