"""The networks: shapes, options, where the names lead, and what is refused."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pl_fed.errors import FederatedConfigError
from pl_fed.modules.networks import NAMES, GroupNormCNN, LeNet, PreActResNet, SmallCNN, TinyViT, build_network
from pl_fed.modules.networks.preact_resnet import Block

SIZES = {"icnet": 8, "small_cnn": 4, "groupnorm_cnn": 4, "lenet": 4, "vgg": 8, "preact_resnet": 1, "vit": 4}


@pytest.mark.parametrize("name", list(NAMES))
@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (32, 16)), (1, (8, 8))])
def test_scores_have_one_number_for_each_class(name: str, channels: int, size: tuple[int, int]) -> None:
    """Every parameter takes part, and only the named three normalise without statistics."""
    network = build_network(name, channels, size, 7, {})
    scores = network(torch.randn(4, channels, *size))
    assert scores.shape == (4, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters() if p.dim() > 1)
    has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert has_statistics == (name not in ("groupnorm_cnn", "vit"))


@pytest.mark.parametrize("name", list(NAMES))
def test_smallest_images(name: str) -> None:
    size = SIZES[name]
    assert build_network(name, 1, (size, size), 2, {})(torch.zeros(2, 1, size, size)).shape == (2, 2)
    if size > 1:
        with pytest.raises(FederatedConfigError, match="images of"):
            build_network(name, 1, (size - 1, size - 1), 2, {})


def test_making_a_network_leaves_its_statistics_alone() -> None:
    network = build_network("small_cnn", 1, (8, 8), 3, {"width": 4})
    fresh = SmallCNN(1, 3, (8, 8), width=4)
    for (name, value), other in zip(network.named_buffers(), fresh.buffers(), strict=True):
        assert torch.equal(value, other), name
    assert network.training


def test_number_of_parameters() -> None:
    """Width 4, 8 x 8, 3 classes: convolutions 9 * (1*4 + 4*8), norms 2 * (4 + 8), head 8*2*2 * 3 + 3."""
    expected = 9 * (4 + 32) + 2 * 12 + 99
    for network in (SmallCNN(1, 3, (8, 8), width=4), GroupNormCNN(1, 3, (8, 8), width=4, num_groups=2)):
        assert sum(p.numel() for p in network.parameters()) == expected


def test_residual_block_with_zero_convolution_is_the_identity() -> None:
    block = Block(3, 3, stride=1)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x) and block.shortcut is None
    assert Block(3, 6, stride=2)(x).shape == (2, 6, 3, 3)
    assert sum(isinstance(m, nn.Conv2d) for m in PreActResNet(3, 10, blocks=3).modules()) == 19 + 2  # two shortcuts


def test_transformer_block_is_that_of_torch() -> None:
    """With the same weights, `nn.TransformerEncoderLayer` with the normalisation first gives the same."""
    vit = TinyViT(1, 2, (8, 8), dim=8, depth=1, heads=2).eval()
    ours: Any = vit.blocks[0]
    theirs = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_weight": ours.qkv.weight,
        "self_attn.in_proj_bias": ours.qkv.bias,
        "self_attn.out_proj.weight": ours.out.weight,
        "self_attn.out_proj.bias": ours.out.bias,
        "linear1.weight": ours.mlp[0].weight,
        "linear1.bias": ours.mlp[0].bias,
        "linear2.weight": ours.mlp[2].weight,
        "linear2.bias": ours.mlp[2].bias,
        "norm1.weight": ours.norm1.weight,
        "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight,
        "norm2.bias": ours.norm2.bias,
    }
    theirs.load_state_dict(pairs)
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(ours(x), theirs(x))


class Own(nn.Module):
    """A network of a user: it takes the number of classes and no size."""

    def __init__(self, num_labels: int, hidden: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Linear(hidden, num_labels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_class_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_networks")
    module.Own = Own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_networks", module)
    network = build_network("own_networks.Own", 1, (4, 4), 5, {"hidden": 6})
    assert isinstance(network, Own) and network(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert isinstance(build_network(NAMES["lenet"], 1, (8, 8), 2, {}), LeNet)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with timm's signature: the name and the shapes go to `create_model`."""
    seen: dict[str, Any] = {}

    def create_model(model_name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        seen.update(model_name=model_name, pretrained=pretrained, **options)
        return SmallCNN(options["in_chans"], options["num_classes"], (32, 32))

    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "timm", module)
    build_network("timm:resnet18", 3, (32, 32), 10, {"drop_rate": 0.1})
    assert seen == {
        "model_name": "resnet18",
        "pretrained": False,
        "in_chans": 3,
        "num_classes": 10,
        "drop_rate": 0.1,
    }


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FederatedConfigError, match="Expected timm to be installed for an `architecture` that begins"):
        build_network("timm:resnet18", 3, (32, 32), 10, {})


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("resnet", {}, "to be one of small_cnn, .* but got 'resnet': check the spelling"),
        ("torch.nn.Nothing", {}, r"but got 'torch.nn.Nothing' \(module 'torch.nn' has no attribute 'Nothing'\)"),
        ("no_such_package.Net", {}, r"\(No module named 'no_such_package'\)"),
        ("torch.optim.SGD", {}, "but got 'torch.optim.SGD': check"),
        ("small_cnn", {"depth": 3}, "to be made of .* got an unexpected keyword argument 'depth'. Change `network.opt"),
        ("small_cnn", {"num_labels": 3}, r"`network.options` without \['num_labels'\], which comes from the data"),
        ("groupnorm_cnn", {"width": 6, "num_groups": 4}, "`num_groups` to divide the `width` of 6 but got 4"),
        ("vit", {"patch_size": 3}, "`patch_size` that divides images of 8 x 8 but got 3"),
        ("vit", {"dim": 6}, "`heads` to divide the `dim` of 6 but got 4"),
        ("torch.nn.Flatten", {}, r"to give scores of shape \(1, 4\) for one image but got \(1, 64\)"),
    ],
)
def test_what_is_refused(architecture: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        build_network(architecture, 1, (8, 8), 4, options)
