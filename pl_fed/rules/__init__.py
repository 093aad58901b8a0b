"""Aggregation rules, one per file; a rule is chosen in YAML by its ``class_path``."""

from pl_fed.rules.aflora import AFLoRA
from pl_fed.rules.base import Rule
from pl_fed.rules.fedex_lora import FedExLoRA
from pl_fed.rules.fedit import FedIT
from pl_fed.rules.fedsa_lora import FedSALoRA
from pl_fed.rules.fedsvd import FedSVD
from pl_fed.rules.ffa_lora import FFALoRA
from pl_fed.rules.flex_lora import FlexLoRA
from pl_fed.rules.flora import FLoRA
from pl_fed.rules.head_only import HeadOnly
from pl_fed.rules.het_lora import HetLoRA
from pl_fed.rules.local_only import LocalOnly
from pl_fed.rules.lora_fair import LoRAFAIR
from pl_fed.rules.robust import Krum, Median, RobustMean, TrimmedMean
from pl_fed.rules.rolora import RoLoRA

__all__ = [
    "AFLoRA",
    "FFALoRA",
    "FLoRA",
    "FedExLoRA",
    "FedIT",
    "FedSALoRA",
    "FedSVD",
    "FlexLoRA",
    "HeadOnly",
    "HetLoRA",
    "Krum",
    "LoRAFAIR",
    "LocalOnly",
    "Median",
    "RoLoRA",
    "RobustMean",
    "Rule",
    "TrimmedMean",
]
