"""Engines: ways of running a cohort's local training on one process."""

from pl_fed.engines.base import Engine
from pl_fed.engines.sequential import SequentialEngine

__all__ = ["Engine", "SequentialEngine"]
