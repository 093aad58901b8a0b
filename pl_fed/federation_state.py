"""A federation in a checkpoint: tensors and primitives only, so that ``weights_only=True`` loads it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from pl_fed.chunk_round import select_only
from pl_fed.client_round import start_values
from pl_fed.context import ClientContext, RoundContext
from pl_fed.controls import Controls
from pl_fed.errors import CheckpointMismatchError
from pl_fed.federation import Federation
from pl_fed.progress import ClientInProgress
from pl_fed.rounds import RoundSchedule
from pl_fed.rules.base import Rule
from pl_fed.secure_round import published
from pl_fed.updates import AdapterState, Update

FORMAT = 1
"""Raised whenever what a checkpoint holds of a federation changes, so that others' are refused by name."""


def optimizer_kinds(optimizers: Sequence[Optimizer]) -> list[str]:
    """Return each optimizer's class by its full name, to recognise it in a checkpoint.

    Example:
        >>> optimizer_kinds([torch.optim.SGD([torch.zeros(1)])])
        ['torch.optim.sgd.SGD']
    """
    return [f"{type(optimizer).__module__}.{type(optimizer).__qualname__}" for optimizer in optimizers]


def save_federation(federation: Federation, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Return everything a resumed run needs, also in the middle of a round; `optimizers` are the clients'."""
    state: dict[str, Any] = {
        "format": FORMAT,
        "settings": federation.config.rule.settings(),
        "optimizers": optimizer_kinds(optimizers),
        "population": federation.population,
        "shards": federation.shards,
        "versions": dict(federation.versions),
        "merge_bytes": list(federation.merge_bytes),
        "controls": None if federation.controls is None else federation.controls.state_dict(),
        **federation.states.state_dict(),
        "server_optimizer": federation.config.server_optimizer.state_dict(),
    }
    live = federation.adapter.read().tensors()
    rounded = any(live[name].dtype != value.dtype for name, value in federation.server.tensors().items())
    if federation.context is not None or rounded:
        state["server"] = federation.server.tensors()
    if federation.context is not None:
        state["round"] = _save_round(federation, federation.context)
    return state


def _save_round(federation: Federation, context: RoundContext) -> dict[str, Any]:
    assert federation.schedule is not None
    return {
        "round_idx": context.round_idx,
        "schedule": federation.schedule.fingerprint(),
        "chunk": federation.chunk_idx,
        "failures": context.failures,
        "metrics": context.metrics,
        "updates": [update.state_dict() for update in context.updates],
        "base": federation.frozen.sent,
        "sealed": [update.state_dict() for update in federation.sealed],
        "finished": [client.state_dict() for client in context.finished],
        "clients": [client.state_dict() for client in federation.chunk],
        "engine": federation.engine.state_dict(),
    }


def take_state(checkpoint: dict[str, Any], key: str) -> dict[str, Any]:
    """Take a federation's state out of a checkpoint; empty if it has none.

    Args:
        checkpoint: Lightning's; the state is not in it afterwards.
        key: Where among its callbacks it is.

    Raises:
        CheckpointMismatchError: If another version of pl_fed wrote it, in another format.
    """
    state: dict[str, Any] = checkpoint.get("callbacks", {}).pop(key, {})
    if state and state.get("format") != FORMAT:
        raise CheckpointMismatchError(
            f"Expected the state of a federation in format {FORMAT} but the checkpoint has format "
            f"{state.get('format', 0)}: go on with the version of pl_fed that wrote it, or start anew from its "
            "exported adapter."
        )
    return state


def check_rule(rule: Rule, state: dict[str, Any]) -> None:
    """Compare a rule with that of a checkpoint, before its optimizer state is found not to fit.

    Raises:
        CheckpointMismatchError: If the checkpoint was written with another rule.
    """
    here, there = rule.settings(), state["settings"] if state else rule.settings()
    if here != there:
        names = [settings["rule"] for settings in (here, there)]
        differ = [key for key in here if key in there and here[key] != there[key]] if names[0] == names[1] else []
        wanted, got = (s["rule"] + "".join(f", `{key}`={s[key]}" for key in differ) for s in (here, there))
        raise CheckpointMismatchError(
            f"Expected a checkpoint of the rule {wanted} but got one of {got}: resume with the same rule and "
            "arguments, or start anew from the exported adapter."
        )


def load_federation(federation: Federation, state: dict[str, Any], device: torch.device) -> None:
    """Restore what is kept between rounds."""
    federation.versions, federation.population = dict(state["versions"]), state["population"]
    federation.merge_bytes = list(state["merge_bytes"])
    federation.controls = None if state["controls"] is None else Controls.from_state_dict(state["controls"], device)
    federation.shards = state["shards"]
    federation.states.device = device
    federation.states.load_state_dict(state)
    federation.config.server_optimizer.load_state_dict(state["server_optimizer"], device)
    if "server" in state:
        federation.server = AdapterState.from_tensors({name: v.to(device) for name, v in state["server"].items()})


def resume_round(
    federation: Federation, state: dict[str, Any], schedule: RoundSchedule, num_rounds: int | None
) -> None:
    """Continue a round in the middle; the client in progress is swapped in.

    Args:
        federation: A federation that `load_federation` restored.
        state: The entry ``round`` of its checkpoint.
        schedule: The round's schedule.
        num_rounds: Rounds of the run, if limited.

    Raises:
        CheckpointMismatchError: If the round would go on with other clients or batches.
    """
    if state["schedule"] != schedule.fingerprint():
        raise CheckpointMismatchError(
            f"Expected the schedule of round {schedule.round_idx} that the checkpoint was taken in but got another: "
            "inside a round, resume with the same seed, cohort, local training, batch size, accumulation, engine and "
            "data, or resume from a checkpoint between rounds."
        )
    device = next(iter(federation.server.tensors().values())).device
    federation.schedule, federation.chunk_idx = schedule, state["chunk"]
    federation.chunk = [ClientInProgress.from_state_dict(client, device) for client in state["clients"]]
    federation.frozen.sent = {name: value.to(device) for name, value in state["base"].items()}
    bound = any(client.digest for client in federation.chunk)
    federation.published = published(federation.server) if bound else {}
    federation.sealed = [Update.from_state_dict(update, device) for update in state["sealed"]]
    federation.context = _context(federation, state, schedule, num_rounds, device)
    federation.adapter.set_trainable(federation.config.rule.sides(schedule.round_idx))
    for client in federation.chunk:
        client.start = start_values(federation, client)
    select_only(federation)
    federation.engine.load_state_dict(state["engine"])
    federation.resume()


def _context(
    federation: Federation, state: dict[str, Any], schedule: RoundSchedule, num_rounds: int | None, device: torch.device
) -> RoundContext:
    """Return the round as hooks know it."""
    return RoundContext(
        round_idx=state["round_idx"],
        num_rounds=num_rounds,
        seed=federation.config.seed,
        cohort=schedule.cohort,
        server=federation.server,
        time_budget=federation.config.clients.round_seconds,
        population=federation.population or 0,
        failures=dict(state["failures"]),
        updates=[Update.from_state_dict(update, device) for update in state["updates"]],
        num_updates=len(state["updates"]) + len(state["sealed"]),
        finished=[ClientContext(**finished) for finished in state["finished"]],
        metrics=dict(state["metrics"]),
    )
