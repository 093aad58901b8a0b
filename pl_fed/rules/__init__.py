"""Aggregation rules, one per file; a rule is chosen in YAML by its ``class_path``."""

from pl_fed.rules.aflora import AFLoRA
from pl_fed.rules.base import Rule
from pl_fed.rules.fedit import FedIT
from pl_fed.rules.ffa_lora import FFALoRA
from pl_fed.rules.head_only import HeadOnly

__all__ = ["AFLoRA", "FFALoRA", "FedIT", "HeadOnly", "Rule"]
