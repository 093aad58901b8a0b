"""Federated LoRA in plain torch: a loop over rounds and clients with dictionaries of tensors, and nothing of pl_fed.

Only the schedule (who trains on which batches, and each client's seed) is given from outside, because it is what both
sides must share. Unequal ranks are written as masks over the first r slots.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Visit:
    """One client's turn: its batches, its rank, its shard's size and the seed of its dropout."""

    client_id: int
    rank: int
    num_examples: int
    batches: list[dict[str, torch.Tensor]]
    seed: int


def federate(
    model: nn.Module,
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    rounds: Sequence[Sequence[Visit]],
    method: str,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    accumulate: int = 1,
    clip: float | None = None,
) -> None:
    """Train `model`'s LoRA factors in place by ``fedit``, ``ffa``, ``aflora`` or ``aflora-rank`` (weights by rank)."""
    pairs = _pairs(model)
    lams: list[nn.Parameter] = []
    if method.startswith("aflora"):
        lams = [nn.Parameter(torch.ones(a.shape[0])) for a, _ in pairs]
        for lora_a, lam in zip(_modules(model), lams, strict=True):
            lora_a.register_forward_hook(lambda _m, _x, out, lam=lam: out * lam)
    for a, _ in pairs:
        a.requires_grad_(method == "fedit")
    trained = [p for (a, b), i in zip(pairs, range(len(pairs)), strict=True) for p in _trained(a, b, lams, i, method)]
    optimizer = make_optimizer(trained)
    for visits in rounds:
        server = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
        sent = []
        for visit in visits:
            _load(pairs, lams, server, visit.rank)
            optimizer.state.clear()
            torch.manual_seed(visit.seed)
            _train(visit, loss, optimizer, trained, accumulate, clip)
            sent.append((visit, _collect(pairs, lams, server, visit.rank)))
        _aggregate(pairs, server, sorted(sent, key=lambda item: item[0].client_id), method)
    for lam in lams:
        lam.data.fill_(1.0)


def _modules(model: nn.Module) -> list[nn.Module]:
    return [m.lora_A["default"] for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]


def _pairs(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
    return [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in layers]


def _trained(a: nn.Parameter, b: nn.Parameter, lams: list[nn.Parameter], i: int, method: str) -> list[nn.Parameter]:
    return {"fedit": [a, b], "ffa": [b]}.get(method, [b, *lams[i : i + 1]])


@torch.no_grad()
def _load(pairs, lams, server, rank):
    for i, ((a, b), (a0, b0)) in enumerate(zip(pairs, server, strict=True)):
        a.copy_(a0)
        b.copy_(b0)
        a[rank:] = 0.0
        b[:, rank:] = 0.0
        if lams:
            lams[i].fill_(1.0)
            lams[i][rank:] = 0.0


def _train(visit, loss, optimizer, trained, accumulate, clip):
    for i, batch in enumerate(visit.batches):
        if i % accumulate == 0:
            optimizer.zero_grad()
        (loss(batch) / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()


@torch.no_grad()
def _collect(pairs, lams, server, rank):
    changes = []
    for i, ((a, b), (a0, b0)) in enumerate(zip(pairs, server, strict=True)):
        folded = b * lams[i] if lams else b
        change_a, change_b = a - a0, folded - b0
        change_a[rank:] = 0.0  # slots beyond the client's rank: no change
        change_b[:, rank:] = 0.0
        changes.append((change_a, change_b))
    return changes


@torch.no_grad()
def _aggregate(pairs, server, sent, method):
    by_rank = method == "aflora-rank"
    mass = [visit.num_examples * (visit.rank if by_rank else 1) for visit, _ in sent]
    for i, ((a, b), (a0, b0)) in enumerate(zip(pairs, server, strict=True)):
        new_a, new_b = a0.clone(), b0.clone()
        for (_, changes), m in zip(sent, mass, strict=True):
            if method == "fedit":
                new_a.add_(changes[i][0], alpha=m / sum(mass))
            new_b.add_(changes[i][1], alpha=m / sum(mass))
        a.copy_(new_a)
        b.copy_(new_b)
        assert math.isfinite(float(b.sum()))
