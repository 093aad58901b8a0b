"""Audits of one's own federation: what a malicious server could learn from what the clients send.

Published attacks, re-implemented as pure functions, to be run on data that the user owns.
"""

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.cohorts import recover_over_rounds
from pl_fed.attacks.cut_norm import CannotAttackError, Target, find_target
from pl_fed.attacks.defences import DEFENCES, DefenceRow, audit_defences
from pl_fed.attacks.fishing import FishingModels, choose_betas, make_models
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, PublicRound
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport, make_report
from pl_fed.attacks.saved import load_observation, save_observation
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.solve import Recovery, recover
from pl_fed.attacks.tripwire import Reading, read_tripwire

__all__ = [
    "DEFENCES",
    "AuditReport",
    "CannotAttackError",
    "DefenceRow",
    "FishingModels",
    "FixedPointSum",
    "HeadUpdate",
    "LocalSteps",
    "LossSpec",
    "Observation",
    "PublicRound",
    "Reading",
    "Recovery",
    "SecureSum",
    "Target",
    "aggregate",
    "audit_defences",
    "choose_betas",
    "client_update",
    "exact_match",
    "find_target",
    "label_accuracy",
    "load_observation",
    "make_models",
    "make_report",
    "read_tripwire",
    "recover",
    "recover_over_rounds",
    "save_observation",
]
