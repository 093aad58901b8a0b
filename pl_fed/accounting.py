"""Counts: bytes, trained parameters and floating-point operations of a client's round.

Operations are those of the matrix products (2 m n k each). Training through a frozen layer costs 4 per weight and
token: 2 forward, 2 for the gradient of its input, none for its own. A trained factor costs 2 more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from pl_fed.adapters import Adapter
from pl_fed.clients import ClientCost
from pl_fed.codecs import CodecName
from pl_fed.loaders import RoundPlan
from pl_fed.rules.base import Rule
from pl_fed.updates import Slots
from pl_fed.wire import SLOT_ID_BYTES, Codecs

DEFAULT_CODECS = Codecs()
BYTES: dict[CodecName, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Of a number in each format, without scales."""


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network without its adapter.

    Args:
        base_bytes: Bytes of all frozen parameters.
        weights: Number of weights in matrix products (linear and transposed-linear layers).
        widths: Sum of these layers' input widths, for the activation estimate.
        trained_weights: Those of `weights` that are trained densely (a classification head).
    """

    base_bytes: int
    weights: int
    widths: int
    trained_weights: int

    @classmethod
    def of(cls, network: nn.Module) -> "NetworkSize":
        """Measure a network; LoRA factors do not count, nor does the unused original of a head that PEFT copied."""
        frozen = [p for name, p in network.named_parameters() if not p.requires_grad and ".lora_" not in f".{name}"]
        linears = [
            (*sizes, module.weight.requires_grad)
            for name, module in network.named_modules()
            if (sizes := _linear_sizes(module)) and ".lora_" not in f".{name}" and ".original_module" not in name
        ]
        return cls(
            base_bytes=sum(p.numel() * p.element_size() for p in frozen),
            weights=sum(d_in * d_out for d_in, d_out, _ in linears),
            widths=sum(d_in for d_in, _, _ in linears),
            trained_weights=sum(d_in * d_out for d_in, d_out, trained in linears if trained),
        )


def _linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return the widths in and out of a linear layer, None for others; a quantised weight's own shape tells neither."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # of transformers: the weight is (d_in, d_out)
        d_in, d_out = cast(nn.Parameter, module.weight).shape
        return d_in, d_out
    return None


def adapter_weights(adapter: Adapter, slots: Slots) -> tuple[int, int]:
    """Return the number of weights of A and of B in a client's active slots."""
    a = sum(len(ids) * adapter.layers[name].a.shape[1] for name, ids in slots.items())
    b = sum(len(ids) * adapter.layers[name].b.shape[0] for name, ids in slots.items())
    return a, b


def training_flops(size: NetworkSize, adapter: Adapter, slots: Slots, sides: frozenset[str], num_tokens: int) -> float:
    """Return the operations of training on `num_tokens` tokens (estimate; attention scores are left out).

    Args:
        size: The network.
        adapter: Its adapter.
        slots: The client's active slots.
        sides: What the client trains.
        num_tokens: Tokens in forward passes, padding included.
    """
    a, b = adapter_weights(adapter, slots)
    per_token = 4 * size.weights + 2 * size.trained_weights + 4 * (a + b)
    per_token += 2 * (a if "a" in sides else 0) + 2 * (b if "b" in sides else 0)
    return float(per_token) * num_tokens


def trained_parameters(adapter: Adapter, slots: Slots, sides: frozenset[str]) -> int:
    """Return the number of parameters that a client trains."""
    a, b = adapter_weights(adapter, slots)
    diagonal = sum(len(ids) for ids in slots.values())
    low_rank = a * ("a" in sides) + b * ("b" in sides) + diagonal * ("diagonal" in sides)
    return low_rank + adapter.num_dense


def client_cost(
    size: NetworkSize,
    adapter: Adapter,
    rule: Rule,
    tokens_per_batch: float,
    tokens_per_round: float,
    codecs: Codecs = DEFAULT_CODECS,
    controls: bool = False,
    num_clients: float = math.inf,
) -> ClientCost:
    """Return the cost of a round as a function of the rank, for rank caps; the dearest broadcast counts.

    `controls` says that control variates travel beside everything, `num_clients` how many train in a round: infinity
    where a client may have missed rounds, and then gets the whole of what was merged.
    """
    times, dense = 2 if controls else 1, adapter.num_dense
    one_slot = {name: layer.a.new_zeros(1).long() for name, layer in adapter.layers.items()}
    sides = rule.optimizer_sides()
    none = {name: ids[:0] for name, ids in one_slot.items()}
    base_flops = training_flops(size, adapter, none, sides, 1)
    received = frozenset[str]() if rule.reinitialises else frozenset({"a", "b"}) - rule.keeps
    exact_a: CodecName = codecs.down if "a" in sides else "float32"  # see `wire`
    dearer = max(slot_bytes(adapter, rule, rule.sides(i) - rule.keeps, codecs.up) for i in (0, 1))  # of two rounds
    return ClientCost(
        base_bytes=size.base_bytes,
        activation_bytes=4 * size.widths * tokens_per_batch,
        dense_params=dense,
        params_per_rank=trained_parameters(adapter, one_slot, sides) - dense,
        flops=base_flops * tokens_per_round,
        flops_per_rank=(training_flops(size, adapter, one_slot, sides, 1) - base_flops) * tokens_per_round,
        download_bytes_per_rank=times * slot_bytes(adapter, rule, received, codecs.down, exact_a),
        upload_bytes_per_rank=times * dearer,
        upload_bytes_per_value=0.0 if "dense" in rule.keeps else times * BYTES[codecs.up],
        download_bytes_per_value=0.0 if "dense" in rule.keeps else times * BYTES[codecs.down],
        download_bytes=merged_bytes(adapter, num_clients) if rule.merges else 0.0,
    )


def slot_bytes(
    adapter: Adapter, rule: Rule, sides: frozenset[str], codec: CodecName, codec_a: CodecName | None = None
) -> float:
    """Return the bytes of one slot in every layer, with its id and the scales of its factors.

    Args:
        adapter: The network's adapter.
        rule: Says whether ids travel.
        sides: What travels.
        codec: Its format.
        codec_a: That of A, if it is another.
    """
    a, b = adapter_weights(adapter, {name: layer.a.new_zeros(1).long() for name, layer in adapter.layers.items()})
    formats = [(a, codec_a or codec)] * ("a" in sides) + [(b, codec)] * ("b" in sides)
    ids = SLOT_ID_BYTES if rule.sends_slots and formats else 0
    scales = sum(4 for _, name in formats if name == "int8")
    return sum(number * BYTES[name] for number, name in formats) + (ids + scales) * len(adapter.layers)


def merged_bytes(adapter: Adapter, num_clients: float) -> float:
    """Return the most bytes of a change to the base model: the stacks of all clients at full rank, or dense if less."""
    shapes = ((layer.a.shape, layer.b.shape[0]) for layer in adapter.layers.values())
    return float(sum(4 * min(num_clients * r * (d_in + d_out), d_in * d_out) for (r, d_in), d_out in shapes))


def plan_cost(
    size: NetworkSize,
    adapter: Adapter,
    rule: Rule,
    plan: RoundPlan,
    codecs: Codecs = DEFAULT_CODECS,
    controls: bool = False,
) -> ClientCost:
    """Return what a round costs a client of a population: its first round's largest client stands for all.

    Args:
        size: The network.
        adapter: Its adapter.
        rule: What clients train.
        plan: A bound plan; without lengths an example counts as one token.
        codecs: The formats of updates and broadcasts.
        controls: Whether control variates travel beside everything.
    """
    mean_length = 1.0
    if plan.lengths is not None and len(plan.lengths):
        sample = [float(plan.lengths[i]) for i in range(min(1000, len(plan.lengths)))]
        mean_length = sum(sample) / len(sample)
    clients = plan.schedule(0).work
    num_batches = max((len(work.batches) for work in clients), default=0)
    tokens, number = mean_length * plan.batch_size, len(clients) if len(clients) == len(plan.shards) else math.inf
    return client_cost(size, adapter, rule, tokens, tokens * num_batches, codecs, controls, number)


def count_tokens(batch: object) -> int:
    """Return the tokens of a batch, padding included; its number of examples where it has no ``input_ids``."""
    if isinstance(batch, Mapping):
        tokens = batch.get("input_ids")
        return tokens.numel() if isinstance(tokens, Tensor) else count_tokens(next(iter(batch.values()), None))
    if isinstance(batch, (list, tuple)) and batch:
        return count_tokens(batch[0])
    return int(batch.shape[0]) if isinstance(batch, Tensor) and batch.dim() else 1
