"""Runs with public refinement, watched before and after it."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch

from pl_fed.adapters import Adapter
from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.context import RoundContext
from pl_fed.rules import AFLoRA
from pl_fed.updates import AdapterState
from tests.helpers.tiny import TinyLM, eval_loader, make_strategy, make_trainer, round_loader

SEED = 5


class Watch(pl.Callback):
    """Notes the module at an aggregation; one stands before the refinement, one after it."""

    def __init__(self) -> None:
        self.states: list[AdapterState] = []
        self.surroundings: list[tuple[Any, ...]] = []

    def on_aggregate(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.states.append(Adapter(pl_module).read().clone())
        flags = {name: p.requires_grad for name, p in pl_module.named_parameters()}
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in pl_module.named_parameters()}
        own = {key: value for key, value in vars(pl_module).items() if key in ("log", "log_dict")}
        self.surroundings.append((flags, grads, torch.get_rng_state(), pl_module.training, own))


class Journal(pl.Callback):
    """Notes the server at the end of each round, its figures, and the clients' bytes."""

    def __init__(self) -> None:
        self.servers: list[AdapterState] = []
        self.metrics: list[dict[str, float]] = []
        self.download: dict[tuple[int, int], int] = {}

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.servers.append(context.server.clone())
        self.metrics.append(dict(context.metrics))
        self.download.update({(context.round_idx, c.client_id): c.download_bytes for c in context.finished})


def fit(
    refinement: PublicRefinement | None, rule: Any = None, make: Callable[[], TinyLM] = TinyLM, **options: Any
) -> tuple[Watch, Watch, Journal, pl.Trainer]:
    before, after, journal = Watch(), Watch(), Journal()
    middle = [] if refinement is None else [refinement]
    strategy = make_strategy(rule or AFLoRA(), seed=SEED, **options.pop("strategy", {}))
    trainer = make_trainer(strategy, callbacks=[before, *middle, after, journal], **options)
    trainer.fit(make(), round_loader(), eval_loader())
    return before, after, journal, trainer


def equal(first: AdapterState, second: AdapterState) -> bool:
    mine, others = first.tensors(), second.tensors()
    return mine.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in mine.items())
