"""Engines: ways of running a cohort's local training on one process."""

from pl_fed.engines.base import Engine
from pl_fed.engines.choice import by_size
from pl_fed.engines.choice import why_not as why_not_packed
from pl_fed.engines.packed import PackedEngine
from pl_fed.engines.sequential import SequentialEngine
from pl_fed.engines.step_size import StepSize, step_size

__all__ = ["Engine", "PackedEngine", "SequentialEngine", "StepSize", "by_size", "step_size", "why_not_packed"]
