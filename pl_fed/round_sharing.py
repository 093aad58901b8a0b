"""One round in several processes: who trains which clients, and how every process comes to know the whole round."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pl_fed.clients import ClientState
from pl_fed.context import ClientContext, RoundContext
from pl_fed.updates import AdapterState, Update

if TYPE_CHECKING:
    from pl_fed.federation import Federation


def share_round(federation: "Federation") -> None:
    """Give every process the updates, failures, figures and clients' states of all of them, as one process has them.

    Updates are gathered whole rather than summed where they are: rules may need each of them, and the aggregate is then
    the same to the last bit whatever the number of processes.
    """
    context, processes = federation.context, federation.processes
    assert context is not None
    if processes.number == 1:
        return
    parts = processes.gather(_own_part(federation, context))
    device = next(iter(federation.server.tensors().values())).device

    def in_order(kind: str, make: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """Return what all processes have; a client that two of them trained counts once."""
        found = {item["client_id"]: item for part in reversed(parts) for item in part[kind]}
        return [make(found[client_id]) for client_id in context.cohort if client_id in found]

    context.updates = in_order("updates", lambda state: Update.from_state_dict(state, device))
    federation.sealed = in_order("sealed", lambda state: Update.from_state_dict(state, device))
    context.finished = in_order("finished", lambda state: ClientContext(**state))
    context.num_updates = len(context.updates) + len(federation.sealed)
    failures = {client_id: why for part in parts for client_id, why in part["failures"].items()}
    context.failures = {client_id: failures[client_id] for client_id in context.cohort if client_id in failures}
    for part in parts:
        context.metrics |= part["metrics"]
        known = part["clients"].items()
        federation.states.update({k: ClientState.from_state_dict(state, device) for k, state in known})


def _own_part(federation: "Federation", context: RoundContext) -> dict[str, Any]:
    trained = [client.client_id for client in context.finished]
    part = {
        "updates": [update.state_dict() for update in context.updates],
        "sealed": [update.state_dict() for update in federation.sealed],
        "failures": context.failures,
        "finished": [client.state_dict() for client in context.finished],
        "metrics": context.metrics,
        "clients": {client_id: federation.states[client_id].state_dict() for client_id in trained},
    }
    return dict(_on_cpu(part))


def share_server(federation: "Federation") -> AdapterState:
    """Take and return the server's adapter of the first process: callbacks may have trained it, on unlike machines."""
    if federation.processes.number == 1:
        return federation.server
    tensors = federation.server.tensors()
    found = federation.processes.broadcast({name: value.cpu() for name, value in tensors.items()})
    federation.server = AdapterState.from_tensors({name: found[name].to(tensors[name].device) for name in tensors})
    federation.adapter.write(federation.server)
    return federation.server


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
