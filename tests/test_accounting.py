"""Counted operations against torch's own counter, and every other figure against one counted by hand."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from pl_fed.accounting import NetworkSize, client_cost, count_tokens, plan_cost, trained_parameters, training_flops
from pl_fed.adapters import Adapter
from pl_fed.clients import DeviceProfile
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FFALoRA, FLoRA
from pl_fed.updates import Slots, prefix_slots
from pl_fed.wire import Codecs
from tests.helpers.tiny import TinyLM

RANK, BATCH, LENGTH = 3, 2, 5
SIDES = [{"a", "b"}, {"b"}, {"b", "diagonal"}, {"a"}]


def gpt2() -> nn.Module:
    """Conv1D layers: c_attn 8 -> 24, c_proj 8 -> 8, the MLP 8 -> 32 -> 8; two blocks; a tied head 8 -> 32."""
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=32, loss_type="ForCausalLM", **ids)
    lora = LoraConfig(r=RANK, lora_alpha=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return get_peft_model(GPT2LMHeadModel(config), lora)


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=40, bos_token_id=None, eos_token_id=1, pad_token_id=0)


def llama() -> nn.Module:
    """q 16 -> 16, k and v 16 -> 8, o 16 -> 16, the MLP 16 -> 24 (twice) -> 16; two blocks; a head 16 -> 40."""
    return get_peft_model(LlamaForCausalLM(LLAMA), LoraConfig(r=RANK, lora_alpha=6, target_modules="all-linear"))


def classifier() -> nn.Module:
    """The same body; a head 16 -> 3 that is trained, beside the frozen one that PEFT copied it from."""
    config = LlamaConfig(**{**LLAMA.to_dict(), "num_labels": 3})
    lora = LoraConfig(r=RANK, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    return get_peft_model(LlamaForSequenceClassification(config), lora)


GPT2_WEIGHTS = 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 8 * 32
LLAMA_BODY = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)
NETWORKS = {
    "gpt2": (gpt2, GPT2_WEIGHTS, 0),
    "llama": (llama, LLAMA_BODY + 16 * 40, 0),
    "classifier": (classifier, LLAMA_BODY + 16 * 3, 16 * 3),
}


def measured(network: nn.Module, whole: bool) -> int:
    """Return the operations of the matrix products of one forward and backward pass, as torch counts them.

    Only products with weights (`mm`, `addmm`) count: attention scores are products of activations (`bmm`). With
    `whole`, the embeddings get a gradient, as if a trained layer lay below the first block.
    """
    ids = torch.randint(2, 32, (BATCH, LENGTH))
    if whole:
        network.enable_input_require_grads()
    labels = ids if hasattr(network.base_model.model, "lm_head") else torch.tensor([0, 2])
    with FlopCounterMode(display=False) as counter:
        network(input_ids=ids, labels=labels).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(number for op, number in counts.items() if str(op) in ("aten.mm", "aten.addmm"))


def prepared(make: Any, sides: set[str]) -> tuple[nn.Module, NetworkSize, Adapter, Slots]:
    network = make().eval()
    for name, module in network.named_modules():
        if name.endswith("lora_B.default"):
            nn.init.normal_(module.weight)
    size, adapter = NetworkSize.of(network), Adapter(network)
    if "diagonal" in sides:
        adapter.add_diagonals()
    adapter.set_trainable(frozenset(sides))
    return network, size, adapter, prefix_slots(adapter.read(), RANK)


@pytest.mark.parametrize("sides", SIDES, ids=lambda sides: "+".join(sorted(sides)))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_flops_are_those_that_torch_counts(name: str, sides: set[str]) -> None:
    """Exactly, when the gradient goes all the way down: 4 per frozen weight and token, 2 more per trained one.

    The diagonal is no matrix product. The classifier's head runs on every token, as transformers does it.
    """
    network, size, adapter, slots = prepared(NETWORKS[name][0], sides)
    counted = training_flops(size, adapter, slots, frozenset(sides), BATCH * LENGTH)
    assert counted == measured(network, whole=True)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_real_training_saves_the_gradient_of_the_embeddings(name: str) -> None:
    """The tolerance of the estimate: frozen embeddings need no gradient, so the first layers do not pass one down.

    That is 2 per weight and token of the layers that read the embeddings, their A included: GPT-2's first c_attn,
    Llama's first q, k and v. Of two small blocks that is 4 to 7 %, of a deep network less than one.
    """
    network, size, adapter, slots = prepared(NETWORKS[name][0], {"a", "b"})
    counted = training_flops(size, adapter, slots, frozenset({"a", "b"}), BATCH * LENGTH)
    first = {"gpt2": 8 * 24 + 8 * RANK, "llama": 16 * 32 + 3 * 16 * RANK, "classifier": 16 * 32 + 2 * 16 * RANK}[name]
    real = measured(network, whole=False)
    assert counted - real == 2 * first * BATCH * LENGTH
    assert 0.04 < (counted - real) / counted < 0.07


def test_fewer_slots_cost_in_proportion() -> None:
    """A client counts its own slots, although the network computes all: 4 + 2 of each of A (8) and B (24 or 32)."""
    _, size, adapter, slots = prepared(gpt2, {"a", "b"})
    ids = {name: torch.tensor([0, 2]) if "c_attn" in name else torch.tensor([1]) for name in slots}
    expected = 4 * GPT2_WEIGHTS + 2 * (2 * 6 * (8 + 24) + 6 * (8 + 32))
    assert training_flops(size, adapter, ids, frozenset({"a", "b"}), 1) == expected
    assert training_flops(size, adapter, ids, frozenset({"b"}), 7) == 7 * (expected - 2 * 2 * (2 * 8 + 8))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_network_size_by_hand(name: str) -> None:
    """Weights as listed above; every parameter that is frozen and no LoRA factor takes four bytes."""
    make, weights, trained = NETWORKS[name]
    network = make()
    size = NetworkSize.of(network)
    assert (size.weights, size.trained_weights) == (weights, trained)
    base = {id(p): 4 * p.numel() for n, p in network.named_parameters() if "lora_" not in n and not p.requires_grad}
    assert size.base_bytes == sum(base.values())
    widths = {"gpt2": 2 * (8 + 8 + 8 + 32) + 8, "llama": 2 * (6 * 16 + 24) + 16, "classifier": 2 * (6 * 16 + 24) + 16}
    assert size.widths == widths[name]


def test_network_size_does_not_depend_on_what_is_trained() -> None:
    """Bound a second time, a network whose A the rule froze is as large as before."""
    network = gpt2()
    before = NetworkSize.of(network)
    Adapter(network).set_trainable(frozenset({"b"}))
    assert NetworkSize.of(network) == before


class Packed(nn.Linear):
    """Holds two 4-bit weights in a byte, as quantised layers do."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)
        self.weight = nn.Parameter(torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8), requires_grad=False)


def test_quantised_layers_count_their_weights_and_their_bytes() -> None:
    size = NetworkSize.of(nn.Sequential(Packed(6, 10), nn.ReLU(), nn.Embedding(5, 2).requires_grad_(False)))
    assert size == NetworkSize(base_bytes=30 + 4 * 10, weights=60, widths=6, trained_weights=0)


@pytest.mark.parametrize("sides", SIDES, ids=lambda sides: "+".join(sorted(sides)))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_trained_parameters_are_those_that_get_gradients(name: str, sides: set[str]) -> None:
    """Counted on the network itself: entries with a gradient that is not zero, with zeros outside the slots."""
    network, _, adapter, slots = prepared(NETWORKS[name][0], sides)
    held = {layer: torch.tensor([i % RANK, (i + 1) % RANK]).sort().values for i, layer in enumerate(slots)}
    state = adapter.read().clone()
    for layer, ids in held.items():
        gone = [slot for slot in range(RANK) if slot not in ids.tolist()]
        state.layers[layer].a[gone], state.layers[layer].b[:, gone] = 0.0, 0.0
    adapter.write(state, held)
    assert trained_parameters(adapter, slots, frozenset(sides)) == sum(
        p.numel() for p in network.parameters() if p.requires_grad
    )
    ids = torch.randint(2, 32, (16, 12))
    labels = ids if name != "classifier" else torch.arange(16) % 3
    network(input_ids=ids, labels=labels).loss.backward()
    moved = sum(int(torch.count_nonzero(p.grad)) for p in network.parameters() if p.grad is not None)
    assert trained_parameters(adapter, held, frozenset(sides)) == moved


@pytest.mark.parametrize(
    ("rule", "per_rank", "upload", "trained_flops"),
    [(FedIT(), 2 * 32, 4 * 64, 2 * 64), (FFALoRA(), 2 * 24, 4 * 48, 2 * 48), (AFLoRA(), 2 * 25, 4 * 48 + 4, 2 * 48)],
)
def test_client_cost_by_hand(rule: Any, per_rank: int, upload: int, trained_flops: int) -> None:
    """TinyLM: two layers of 8 x 24, so a slot has 16 weights of A and 48 of B, and a diagonal two.
    AFLoRA also sends the slot's id in both layers, two bytes each, up and down.

    1792 weights in matrix products (see `test_communication_monitor`); widths 2 * (8 + 8 + 8 + 32) + 8 = 120.
    """
    module = TinyLM()
    size, adapter = NetworkSize.of(module), Adapter(module)
    cost = client_cost(size, adapter, rule, tokens_per_batch=24, tokens_per_round=100)
    assert cost.base_bytes == size.base_bytes
    assert cost.activation_bytes == 4 * 120 * 24
    assert (cost.dense_params, cost.params_per_rank) == (0, per_rank)
    assert cost.flops == 4 * 1792 * 100
    assert cost.flops_per_rank == (4 * 64 + trained_flops) * 100
    ids = 4 if rule.sends_slots else 0
    assert (cost.download_bytes_per_rank, cost.upload_bytes_per_rank) == (4 * 64 + ids, upload)


def test_upload_cost_follows_the_codec() -> None:
    """48 weights of B a slot in two layers: a byte each, and per layer a scale of four bytes and an id of two."""
    module = TinyLM()
    cost = client_cost(NetworkSize.of(module), Adapter(module), AFLoRA(), 1, 1, Codecs("int8"))
    assert (cost.upload_bytes_per_rank, cost.upload_bytes_per_value) == (48 + 2 * (4 + 2), 1)
    half = client_cost(NetworkSize.of(module), Adapter(module), FedIT(), 1, 1, Codecs("bfloat16"))
    assert (half.upload_bytes_per_rank, half.upload_bytes_per_value) == (2 * 64, 2)


@pytest.mark.parametrize(
    ("rule", "per_rank"),
    [
        (FedIT(), 64 + 2 * (4 + 4)),  # a byte each, and a scale of four bytes for A and for B in both layers
        (AFLoRA(), 4 * 16 + 48 + 2 * (4 + 2)),  # A, which nobody trains, goes in full; B has scales; ids
    ],
)
def test_download_cost_follows_the_codec(rule: Any, per_rank: int) -> None:
    module = TinyLM()
    cost = client_cost(NetworkSize.of(module), Adapter(module), rule, 1, 1, Codecs(down="int8"))
    assert (cost.download_bytes_per_rank, cost.download_bytes_per_value, cost.upload_bytes_per_value) == (
        per_rank,
        1,
        4,
    )


def test_what_is_merged_is_downloaded() -> None:
    """FLoRA's factors are drawn, not sent. Rank 4 in 8 -> 24: a client's stack has 4 * 32 numbers, two dense ones less.

    1024 bytes at 8 bits a second are 1024 seconds; the operations and the upload take next to nothing.
    """
    module = TinyLM()
    size, adapter = NetworkSize.of(module), Adapter(module)
    costs = [client_cost(size, adapter, FLoRA(), 1, 1, num_clients=number) for number in (1, 2, math.inf)]
    assert [cost.download_bytes for cost in costs] == [2 * 4 * 4 * 32, 2 * 4 * 192, 2 * 4 * 192]
    assert {cost.download_bytes_per_rank for cost in costs} == {0}
    assert costs[0].seconds(3, DeviceProfile("slow", 8.0, 1e9, 1e9, downlink_mbps=8e-6)) == pytest.approx(
        1024, rel=1e-3
    )


def test_client_cost_of_a_network_without_lora() -> None:
    """A linear layer 3 -> 5 with bias: 20 parameters; 15 weights cost 6 operations each."""
    module = nn.Linear(3, 5)
    cost = client_cost(NetworkSize.of(module), Adapter(module), FedIT(), 1, 10)
    assert (cost.dense_params, cost.params_per_rank, cost.flops, cost.flops_per_rank) == (20, 0, 900, 0)
    assert (cost.base_bytes, cost.download_bytes_per_rank, cost.upload_bytes_per_rank) == (0, 0, 0)


@pytest.mark.parametrize(("lengths", "tokens"), [([5] * 8 + [9] * 4, 19 / 3), (None, 1.0)])
def test_plan_cost_is_that_of_the_first_rounds_largest_client(lengths: list[int] | None, tokens: float) -> None:
    """Shards of 2, 3 and 7 examples in batches of 2: four batches for the largest. Mean length (8 * 5 + 4 * 9) / 12."""
    loader = RoundLoader(range(12), [[0, 1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11]], batch_size=2)
    loader.plan.bind(CohortConfig(), LocalTraining(), seed=0)
    loader.plan.lengths = lengths
    module = TinyLM()
    size, adapter = NetworkSize.of(module), Adapter(module)
    expected = client_cost(size, adapter, FedIT(), 2 * tokens, 4 * 2 * tokens)
    assert plan_cost(size, adapter, FedIT(), loader.plan) == expected
    assert expected.flops == pytest.approx(4 * 1792 * 8 * tokens)


TWO_BY_THREE = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"labels": torch.zeros(2), "input_ids": TWO_BY_THREE}, 6),
        (BatchEncoding({"attention_mask": torch.zeros(2), "input_ids": TWO_BY_THREE}), 6),
        ({"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2)}, 2),
        ((torch.zeros(5, 7), torch.zeros(5)), 5),
        ([torch.zeros(5, 7), torch.zeros(5)], 5),
        (({"input_ids": TWO_BY_THREE}, torch.zeros(2)), 6),
        (torch.zeros(4, 9), 4),
        (torch.tensor(1.0), 1),
        ({}, 1),
        ([], 1),
        (None, 1),
    ],
)
def test_count_tokens(batch: object, expected: int) -> None:
    """Tokens with padding where there are `input_ids`, else examples; what cannot be counted is one."""
    assert count_tokens(batch) == expected
