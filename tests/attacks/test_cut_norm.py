"""Which layer is found, and the reasons where there is none."""

import pytest
import torch
from torch import Tensor, nn

from pl_fed.attacks.cut_norm import CannotAttackError, Target, find_target
from pl_fed.attacks.fishing import choose_betas, make_models, orthogonal_rows
from tests.helpers.audited import NETS, mlp, resnet


def find(net: nn.Module) -> Target:
    noise = torch.randn(4, 1, 8, 8)
    return find_target(net, lambda: net(noise))


EXPECTED = {
    "small_cnn": ("4", "6"),
    "bn2d_pool": ("1", "5"),
    "bn2d_flatten": ("1", "4"),
    "lenet_bn": ("13", "15"),
    "vgg_bn": ("9", "13"),
    "pre_resnet": ("3", "7"),
    "vit": ("norm", "head"),
    "groupnorm": ("1", "5"),
    "gpt2": ("model.transformer.ln_f", "model.score"),
    "bert": ("model.bert.encoder.layer.1.output.LayerNorm", "model.classifier"),
}


@pytest.mark.parametrize("name", NETS)
def test_last_cut_norm(name: str) -> None:
    target = find(NETS[name]())
    assert (target.norm_name, target.head_name) == EXPECTED[name]
    assert (target.head_bias is None) == (name == "gpt2")


def test_branches_are_no_cuts() -> None:
    assert find(resnet(pre=True)).cut_norms == ("3",)
    assert find(resnet(pre=False)).cut_norms == ("1",)
    assert find(NETS["lenet_bn"]()).cut_norms == ("1", "5", "10", "13")


class Rms(nn.Module):
    """The last norm is an RMSNorm, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 8), nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.flatten(1))))


class Residual(nn.Module):
    """Past its only norm leads another path."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x.flatten(1))
        return self.head(h + self.norm(h))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.head = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x.flatten(1))))


def frozen() -> nn.Module:
    net = mlp()
    net[5].weight.requires_grad_(False)
    return net


def lora_head() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(mlp(), LoraConfig(r=2, target_modules=["5"]))


def without_affine() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))


REASONS = [
    (Rms, "a normalisation layer with a bias but got only RMSNorm"),
    (Residual, r"none of \['norm'\] is one: a residual connection passes each by"),
    (Tied, "another layer shares it"),
    (frozen, "`5` is frozen"),
    (lora_head, "a LoRA factor"),
    (without_affine, "weight and bias but got only LayerNorm"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)), "the module has none"),
    (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 1)), "one output, as in regression"),
    (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 8)), "an nn.Linear as the last layer .* a Conv2d"),
    (nn.Identity, "nothing that ran"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS)
def test_reasons(make: type[nn.Module], reason: str) -> None:
    with pytest.raises(CannotAttackError, match=reason):
        find(make())


def test_a_batch_of_equal_samples_says_nothing() -> None:
    net = mlp()
    with pytest.raises(CannotAttackError, match="depends on the sample"):
        find_target(net, lambda: net(torch.ones(4, 1, 8, 8)))


def test_a_peft_head_that_is_saved_whole_is_found() -> None:
    """The head of a LoRA sequence classifier: trained as a copy inside a wrapper; the norm is frozen, and sent."""
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["1"], modules_to_save=["5"]))
    target = find(net)
    assert target.head_name.endswith("5.modules_to_save.default") and not target.norm.bias.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize("width", [4, 6, 42, 64])
def test_betas_tell_as_many_models_apart_as_they_can(width: int) -> None:
    rows = orthogonal_rows(width)
    gram = rows @ rows.T
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-9) and torch.equal(
        rows[0], torch.ones(width).double()
    )
    betas = choose_betas(width + 1, width, scale=0.3)
    assert float(betas.min()) >= 0 and not bool(betas[-1].any())
    assert torch.linalg.matrix_rank(torch.cat([betas, torch.ones(width + 1, 1)], 1)) == width + 1
    assert torch.equal(choose_betas(width + 2, width)[-1], choose_betas(1, width)[0])


def test_jacobian_of_relu_is_beta_itself() -> None:
    """One for one where beta is above 0, nothing where ReLU stops it."""
    net = mlp(4)
    noise = torch.randn(3, 1, 8, 8)
    target = find_target(net, lambda: net(noise))
    models = make_models(net, target, torch.tensor([[1.0, 0.5, -1.0, 2.0]]).double(), lambda: net(noise), moving=True)
    assert models.jacobians is not None
    assert torch.equal(models.jacobians[0], torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0])).double())
    assert models.embeddings[0].tolist() == [1.0, 0.5, 0.0, 2.0]


def test_embeddings_must_be_finite() -> None:
    net = mlp(4)
    noise = torch.randn(3, 1, 8, 8)
    target = find_target(net, lambda: net(noise))
    with pytest.raises(CannotAttackError, match="finite embeddings"):
        make_models(net, target, torch.full((1, 4), float("inf")).double(), lambda: net(noise))
