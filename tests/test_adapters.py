"""The adapter in a network: the diagonal's function and gradients, values in place, inactive slots, plain FedAvg."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from pl_fed.adapters import Adapter, DiagonalLinear
from pl_fed.errors import FederatedConfigError
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy
from pl_fed.updates import AdapterState
from tests.helpers.tiny import TinyLM, eval_loader, make_trainer, round_loader

RANK, D_IN, D_OUT = 4, 6, 5


def adapted(transposed: bool, **lora: Any) -> nn.Module:
    """One adapted layer that is not square, in float64, with B different from zero."""
    layer = Conv1D(D_OUT, D_IN) if transposed else nn.Linear(D_IN, D_OUT)
    config = LoraConfig(r=RANK, lora_alpha=12, target_modules=["0"], fan_in_fan_out=transposed, **lora)
    network = get_peft_model(nn.Sequential(layer), config).double()
    for name, module in network.named_modules():
        if name.endswith("lora_B.default"):
            nn.init.normal_(module.weight)
    return network


@pytest.fixture(params=[False, True], ids=["Linear", "Conv1D"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return adapted(request.param)


def test_the_diagonal_is_b_diag_a_with_its_gradients(network: nn.Module) -> None:
    """y = W x + s B diag(lam) A x with s = 12 / 4, and all three gradients, against autograd on the written formula."""
    base = network.base_model.model[0].base_layer
    weight = base.weight.detach().T if isinstance(base, Conv1D) else base.weight.detach()
    adapter = Adapter(network)
    adapter.add_diagonals()
    (layer,) = adapter.layers.values()
    assert layer.scale == 3.0
    with torch.no_grad():
        layer.diagonal.copy_(torch.tensor([2.0, -0.5, 0.0, 1.0]))
    x, target = torch.randn(7, 2, D_IN, dtype=torch.float64), torch.randn(7, 2, D_OUT, dtype=torch.float64)
    a, b, lam = (p.detach().clone().requires_grad_() for p in (layer.a, layer.b, layer.diagonal))
    expected = x @ (weight + 3.0 * b @ torch.diag(lam) @ a).T + base.bias.detach()
    found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (expected * target).sum().backward()
    (found * target).sum().backward()
    for live, written in ((layer.a, a), (layer.b, b), (layer.diagonal, lam)):
        torch.testing.assert_close(live.grad, written.grad, rtol=1e-12, atol=1e-12)
        assert live.grad.abs().sum() > 0


def test_diagonals_are_added_once_and_change_nothing(network: nn.Module) -> None:
    """They start at one, share A's parameter, and a second call keeps what was learned."""
    adapter, x = Adapter(network), torch.randn(3, D_IN, dtype=torch.float64)
    (layer,) = adapter.layers.values()
    before, a = network(x), layer.a
    assert layer.diagonal is None and adapter.diagonals() == {}
    adapter.add_diagonals()
    assert torch.equal(network(x), before) and layer.a is a
    assert isinstance(layer.module.lora_A["default"], DiagonalLinear) and layer.diagonal.dtype == torch.float64
    with torch.no_grad():
        layer.diagonal.fill_(7.0)
    adapter.add_diagonals()
    assert layer.diagonal.tolist() == [7.0] * RANK
    assert [tuple(p.shape) for p in adapter.parameters()] == [(RANK, D_IN), (D_OUT, RANK), (RANK,)]
    assert set(Adapter(network).dense) == set(), "the diagonal is no dense tensor"


def test_write_copies_in_place_and_read_is_live(network: nn.Module) -> None:
    """Lightning's optimizer holds the parameters: they must stay the same objects at the same addresses."""
    adapter = Adapter(network)
    adapter.add_diagonals()
    (name,) = adapter.layers
    ids = [(id(p), p.data_ptr()) for p in adapter.parameters()]
    live, new = adapter.read(), adapter.read().clone()
    new.layers[name].a.fill_(2.0)
    new.layers[name].b.fill_(3.0)
    assert not (live.layers[name].a == 2.0).any(), "a clone shares nothing"
    adapter.write(new)
    assert [(id(p), p.data_ptr()) for p in adapter.parameters()] == ids
    assert (live.layers[name].a == 2.0).all() and (live.layers[name].b == 3.0).all()
    assert adapter.diagonals()[name].tolist() == [1.0] * RANK
    assert all(p.requires_grad and p.grad is None for p in adapter.parameters())
    assert not any(value.requires_grad for value in adapter.read().tensors().values())


def test_write_with_slots_sets_the_diagonal(network: nn.Module) -> None:
    adapter = Adapter(network)
    adapter.add_diagonals()
    (name,) = adapter.layers
    adapter.write(adapter.read().clone(), {name: torch.tensor([0, 3])})
    assert adapter.diagonals()[name].tolist() == [1.0, 0.0, 0.0, 1.0]
    adapter.write(adapter.read().clone(), {name: torch.tensor([], dtype=torch.long)})
    assert not adapter.diagonals()[name].any()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
    "adam-amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("diagonal", [False, True], ids=["plain", "diagonal"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_inactive_slots_stay_exactly_zero(network: nn.Module, optimizer: str, diagonal: bool) -> None:
    """Slots 1 and 3 start at zero with a zero diagonal: twenty steps with weight decay leave them there, and the others
    train as in a network that has no other slots."""
    held, gone = torch.tensor([0, 2]), torch.tensor([1, 3])
    adapter = Adapter(network)
    if diagonal:
        adapter.add_diagonals()
    (layer,) = adapter.layers.values()
    state = adapter.read().clone()
    state.layers[layer.name].a[gone], state.layers[layer.name].b[:, gone] = 0.0, 0.0
    adapter.write(state, {layer.name: held})
    base = network.base_model.model[0].base_layer
    small = [p.detach().clone().requires_grad_() for p in (layer.a[held], layer.b[:, held])]
    small += [torch.ones(2, dtype=torch.float64, requires_grad=True)] if diagonal else []
    steppers = OPTIMIZERS[optimizer](adapter.parameters()), OPTIMIZERS[optimizer](small)
    start = layer.a[held].detach().clone()
    for _ in range(20):
        x, target = torch.randn(8, D_IN, dtype=torch.float64), torch.randn(8, D_OUT, dtype=torch.float64)
        lam = small[2] if diagonal else torch.ones(2, dtype=torch.float64)
        outputs = network(x), base(x) + 3.0 * (x @ small[0].T * lam) @ small[1].T
        for stepper, output in zip(steppers, outputs, strict=True):
            stepper.zero_grad()
            (output - target).square().mean().backward()
            stepper.step()
        assert not layer.a[gone].any() and not layer.b[:, gone].any()
        assert not diagonal or not layer.diagonal[gone].any()
    assert not torch.allclose(layer.a[held], start, rtol=1e-2), "something must have been trained"
    torch.testing.assert_close(layer.a[held], small[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.b[:, held], small[1], rtol=1e-9, atol=1e-9)


def two_layers(**lora: Any) -> Adapter:
    network = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)})
    network.config = {}  # type: ignore[assignment]  # peft asks for one
    return Adapter(get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], **lora)))


def test_unlike_scales_are_refused() -> None:
    """2 = 8 / 4 for one layer, 4 = 8 / 2 or 16 / 4 for the other."""
    for pattern in ({"rank_pattern": {"second": 2}}, {"alpha_pattern": {"second": 16}}):
        with pytest.raises(
            FederatedConfigError, match=r"one LoRA scale for all layers but got \[2.0, 4.0\]: .*`clients.r"
        ):
            two_layers(**pattern).check_scale()
    two_layers().check_scale()
    mixed = two_layers(rank_pattern={"second": 2}, alpha_pattern={"second": 4})
    mixed.check_scale()  # 8 / 4 and 4 / 2: ranks may differ
    assert mixed.rank == 4 and sorted(layer.a.shape[0] for layer in mixed.layers.values()) == [2, 4]


def test_convolutions_are_refused() -> None:
    """PEFT's factor A of a convolution has four dimensions: its slots are no rows of a matrix."""
    network = get_peft_model(nn.Sequential(nn.Conv2d(3, 5, 2)), LoraConfig(r=4, target_modules=["0"]))
    with pytest.raises(FederatedConfigError, match=r"layers but `.*0` of class Conv2d has .* shape \(4, 3, 2, 2\)"):
        Adapter(network)


def test_embeddings_are_refused() -> None:
    """PEFT keeps their factors elsewhere, where they would be averaged as dense tensors."""
    network = get_peft_model(nn.Sequential(nn.Embedding(9, 5)), LoraConfig(r=4, target_modules=["0"]))
    with pytest.raises(FederatedConfigError, match=r"linear layers but `.*0` of class Embedding has .* shape \(4, 9\)"):
        Adapter(network)


def test_unlike_scales_stop_the_run() -> None:
    """The strategy asks, before anything is trained."""

    class Patterned(TinyLM):
        def __init__(self) -> None:
            super().__init__()
            self.model.base_model.model.transformer.h[1].attn.c_attn.scaling["default"] = 5.0

    with pytest.raises(FederatedConfigError, match=r"one LoRA scale for all layers but got \[2.0, 5.0\]"):
        make_trainer(FederatedStrategy(FedIT())).fit(Patterned(), round_loader(), eval_loader())


def test_modules_to_save_and_biases_are_dense() -> None:
    """BERT with a classification head: the head's trained copy and the adapted layers' biases, under their names."""
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20, num_labels=3
    )
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["query"], modules_to_save=["classifier"], bias="lora_only")
    network = get_peft_model(BertForSequenceClassification(config), lora)
    adapter = Adapter(network)
    adapter.add_diagonals()
    prefix = "base_model.model."
    query = f"{prefix}bert.encoder.layer.0.attention.self.query"
    head = f"{prefix}classifier.modules_to_save.default"
    assert list(adapter.layers) == [query]
    shapes = {name: tuple(p.shape) for name, p in adapter.dense.items()}
    assert shapes == {f"{query}.base_layer.bias": (8,), f"{head}.weight": (3, 8), f"{head}.bias": (3,)}
    assert all(p is dict(network.named_parameters())[name] for name, p in adapter.dense.items())
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}
    named = adapter.named_tensors(adapter.read())
    assert set(named) == set(shapes) | {f"{query}.lora_A.default.weight", f"{query}.lora_B.default.weight"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in named.items())


@pytest.mark.parametrize(
    "sides", [{"a", "b"}, {"b"}, {"b", "diagonal"}, {"a"}, set()], ids=["ab", "b", "bd", "a", "none"]
)
def test_set_trainable_chooses_gradients(network: nn.Module, sides: set[str]) -> None:
    """Dense tensors always get one; a later `Adapter` still knows frozen factors as low-rank."""
    network.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    adapter = Adapter(network)
    adapter.add_diagonals()
    adapter.set_trainable(frozenset(sides))
    (layer,) = adapter.layers.values()
    flags = {"a": layer.a, "b": layer.b, "diagonal": layer.diagonal}
    assert {name for name, p in flags.items() if p.requires_grad} == sides
    assert adapter.dense["extra"].requires_grad
    later = Adapter(network)
    assert later.same_parameters(adapter) and list(later.dense) == ["extra"]


def test_same_parameters_tells_networks_apart(network: nn.Module) -> None:
    adapter = Adapter(network)
    assert adapter.same_parameters(Adapter(network))
    assert not adapter.same_parameters(Adapter(adapted(False)))
    network.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    assert not adapter.same_parameters(Adapter(network))


def test_flat_names_lead_back_to_the_same_state(network: nn.Module) -> None:
    """Also with a dense tensor that is called like a factor."""
    network.register_parameter("b", nn.Parameter(torch.ones(3)))
    state = Adapter(network).read()
    again = AdapterState.from_tensors(state.tensors())
    (name,) = state.layers
    assert list(again.layers) == [name] and list(again.dense) == ["b"]
    assert again.layers[name].a is state.layers[name].a and again.layers[name].b is state.layers[name].b
    assert torch.equal(again.dense["b"], torch.ones(3))
