"""Random servers and updates in float64, and the dense model that they stand for, in numpy and loops of its own."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

import pl_fed.rules
from pl_fed.rules import (
    AFLoRA,
    FedExLoRA,
    FedIT,
    FedSALoRA,
    FedSVD,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    HeadOnly,
    HetLoRA,
    LocalOnly,
    LoRAFAIR,
    RoLoRA,
    Rule,
)
from pl_fed.updates import AdapterState, LayerSlots, LayerState, Update

SHAPES = {"wide": (5, 9), "tall": (11, 6), "square": (7, 7)}  # (d_out, d_in)
RANK = 4

RULES: dict[str, Callable[[], Rule]] = {
    "aflora": AFLoRA,
    "aflora-rank": lambda: AFLoRA(rank_weights=True),
    "aflora-literal": lambda: AFLoRA(aggregation="literal"),
    "aflora-slot": lambda: AFLoRA(aggregation="slot"),
    "aflora-refactor": lambda: AFLoRA(refactor=True),
    "fedex": FedExLoRA,
    "fedit": FedIT,
    "fedsa": FedSALoRA,
    "fedsvd": FedSVD,
    "ffa": FFALoRA,
    "flex": FlexLoRA,
    "flora": FLoRA,
    "head": HeadOnly,
    "hetlora": HetLoRA,
    "local": LocalOnly,
    "fair": LoRAFAIR,
    "rolora": RoLoRA,
}
assert {type(make()).__name__ for make in RULES.values()} == {
    name
    for name in pl_fed.rules.__all__
    if issubclass(getattr(pl_fed.rules, name), Rule) and getattr(pl_fed.rules, name) is not Rule
}, "a rule without tests"


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_server(seed: int = 0, rank: int = RANK, merged: bool = False) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    layers = {n: LayerState(normal(generator, rank, i), normal(generator, o, rank)) for n, (o, i) in SHAPES.items()}
    change = {n: normal(generator, *shape) for n, shape in SHAPES.items()} if merged else {}
    return AdapterState(layers, {"head": normal(generator, 3, 2)}, change)


def random_updates(
    sides: frozenset[str],
    ranks: Sequence[int] = (4, 2, 3),
    examples: Sequence[int] = (5, 1, 10),
    seed: int = 1,
    size: float = 1.0,
) -> list[Update]:
    """Updates on the first slots, as clients of those ranks send them."""
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for client_id, (rank, number) in enumerate(zip(ranks, examples, strict=True)):
        layers = {}
        for name, (d_out, d_in) in SHAPES.items():
            a, b = size * normal(generator, rank, d_in), size * normal(generator, d_out, rank)
            layers[name] = LayerSlots(torch.arange(rank), a if "a" in sides else None, b if "b" in sides else None)
        updates.append(Update(client_id, number, layers, {"head": normal(generator, 3, 2)}))
    return updates


def sent_sides(rule: Rule, round_idx: int = 0) -> frozenset[str]:
    return rule.sides(round_idx) - rule.keeps


def rule_case(
    name: str, seed: int = 0, round_idx: int = 0, **kwargs: object
) -> tuple[Rule, AdapterState, list[Update]]:
    """A rule, a server that suits it, and what three clients send."""
    rule = RULES[name]()
    server = random_server(seed, merged=rule.merges)
    updates = random_updates(sent_sides(rule, round_idx), seed=seed + 1, **kwargs)  # type: ignore[arg-type]
    if "dense" in rule.keeps:
        for update in updates:
            update.dense = {}
    return rule, server, updates


def own_factors(layer: LayerState, part: LayerSlots) -> tuple[np.ndarray, np.ndarray]:
    """A client's factors after training at the server's rank, zero where it holds no slot."""
    a, b = np.zeros(layer.a.shape), np.zeros(layer.b.shape)
    for i, slot in enumerate(part.slots.tolist()):
        a[slot] = layer.a[slot].numpy() + (0.0 if part.a is None else part.a[i].numpy())
        b[:, slot] = layer.b[:, slot].numpy() + (0.0 if part.b is None else part.b[:, i].numpy())
    return a, b


def own_product(layer: LayerState, part: LayerSlots) -> np.ndarray:
    a, b = own_factors(layer, part)
    return b @ a


def dense_change(layer: LayerState, part: LayerSlots) -> np.ndarray:
    """What a client changed in the dense weight of a layer."""
    before = np.zeros((layer.b.shape[0], layer.a.shape[1]))
    for slot in part.slots.tolist():
        before += np.outer(layer.b[:, slot].numpy(), layer.a[slot].numpy())
    return own_product(layer, part) - before


def global_dense(server: AdapterState, name: str) -> np.ndarray:
    """What the server adds to the base weight of a layer (over the scale)."""
    layer = server.layers[name]
    product = layer.b.numpy() @ layer.a.numpy()
    return product + server.merged[name].numpy() if name in server.merged else product


def shares(updates: Sequence[Update]) -> np.ndarray:
    numbers = np.array([update.num_examples for update in updates], dtype=float)
    return numbers / numbers.sum()


def rank_shares(updates: Sequence[Update], name: str) -> np.ndarray:
    mass = np.array([update.num_examples * len(update.layers[name].slots) for update in updates], dtype=float)
    return mass / mass.sum()


def close(found: object, expected: object, tolerance: float = 1e-12) -> None:
    """Compare two arrays to `tolerance` times the size of the expected one."""
    x, y = np.asarray(found), np.asarray(expected)
    assert x.shape == y.shape
    assert np.abs(x - y).max() <= tolerance * max(1.0, float(np.abs(y).max())), float(np.abs(x - y).max())
