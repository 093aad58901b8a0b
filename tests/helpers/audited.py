"""Small classifiers of many kinds, images for them, and rounds of clients under a malicious server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from pl_fed.attacks.cut_norm import Target, find_target
from pl_fed.attacks.fishing import FishingModels, choose_betas, crafted, make_models
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, PublicRound
from pl_fed.attacks.preserve import capture_input
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.tripwire import Reading, read_tripwire

CLASSES, VOCAB, LENGTH = 10, 40, 6
IDEAL = FixedPointSum()


def mlp(width: int = 64, num_classes: int = CLASSES, dropout: float = 0.0) -> nn.Module:
    """BN1d, ReLU, FC: the fastest one."""
    body = [nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*body, nn.Linear(width, num_classes))


def small_cnn() -> nn.Module:
    """BN1d-ReLU-FC after a convolution."""
    body = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(64, CLASSES))


def bn2d_pool() -> nn.Module:
    return nn.Sequential(*conv_bn(1, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def bn2d_flatten() -> nn.Module:
    """The rank is that of the 16 channels, not of the 256 features."""
    return nn.Sequential(*conv_bn(1, 16, 2), nn.Flatten(), nn.Linear(256, CLASSES))


def lenet_bn() -> nn.Module:
    body = [*conv_bn(1, 6), nn.MaxPool2d(2), *conv_bn(6, 16), nn.MaxPool2d(2), nn.Flatten()]
    tail = [nn.Linear(64, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 42), nn.BatchNorm1d(42), nn.ReLU()]
    return nn.Sequential(*body, *tail, nn.Linear(42, CLASSES))


def vgg_bn() -> nn.Module:
    body = [*conv_bn(1, 16), nn.MaxPool2d(2), *conv_bn(16, 32), nn.MaxPool2d(2), *conv_bn(32, 32), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, CLASSES))


def groupnorm_cnn() -> nn.Module:
    body = [nn.Conv2d(1, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.GELU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def conv_bn(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]


class Block(nn.Module):
    """Residual; pre-activation normalises inside the branch, post-activation after the convolutions."""

    def __init__(self, channels: int, pre: bool) -> None:
        super().__init__()
        self.bn, self.conv, self.pre = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, 1, 1), pre

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            return x + self.conv(F.relu(self.bn(x)))
        return F.relu(x + self.bn(self.conv(x)))


def resnet(pre: bool = True) -> nn.Module:
    """Pre-activation ends in a norm layer; of a post-activation one only the stem's norm is a cut vertex."""
    stem = [nn.Conv2d(1, 32, 3, 2, 1)] if pre else conv_bn(1, 32, 2)
    last = [nn.BatchNorm2d(32), nn.ReLU()] if pre else []
    blocks = [Block(32, pre), Block(32, pre)]
    return nn.Sequential(*stem, *blocks, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


class TinyViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 32) * 0.1)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layer(tokens)).mean(1))


class Text(nn.Module):
    """A classifier of `transformers` over the images' pixels as tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1)[:, 20 : 20 + LENGTH] * 10).abs().long().clamp(1, VOCAB - 1)
        return self.model(input_ids=tokens).logits


def gpt2() -> nn.Module:
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": VOCAB, "n_positions": LENGTH}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=0, pad_token_id=0, num_labels=CLASSES)
    return Text(GPT2ForSequenceClassification(config))


def bert() -> nn.Module:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": VOCAB}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **drop, intermediate_size=64, initializer_range=0.2, num_labels=CLASSES)
    return Text(BertForSequenceClassification(config))


NETS: dict[str, Callable[[], nn.Module]] = {
    "small_cnn": small_cnn,
    "bn2d_pool": bn2d_pool,
    "bn2d_flatten": bn2d_flatten,
    "lenet_bn": lenet_bn,
    "vgg_bn": vgg_bn,
    "pre_resnet": resnet,
    "vit": TinyViT,
    "groupnorm": groupnorm_cnn,
    "gpt2": gpt2,
    "bert": bert,
}


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits, 8 x 8; without it, noisy copies of ten random images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(1800) % CLASSES
        kinds = torch.randn(CLASSES, 1, 8, 8, generator=generator)
        return kinds[labels] + torch.randn(1800, 1, 8, 8, generator=generator), labels
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def label_draws(
    batch_sizes: Sequence[int], num_classes: int = CLASSES, alpha: float = 0.5, seed: int = 0
) -> list[Tensor]:
    """Draw each client's labels from a mix of its own, Dirichlet(alpha)."""
    rng = torch.Generator().manual_seed(seed)
    gamma = torch._standard_gamma(torch.full((len(batch_sizes), num_classes), alpha), rng) + 1e-6
    return [torch.multinomial(row, size, True, generator=rng) for row, size in zip(gamma, batch_sizes, strict=True)]


def images_of(labels: Tensor, seed: int = 0) -> Tensor:
    """Return an image of each label; beyond ten classes, noise."""
    images, targets = digits()
    rng = torch.Generator().manual_seed(seed)
    if int(labels.max()) >= CLASSES:
        return torch.randn(len(labels), 1, 8, 8, generator=rng)
    order = torch.randperm(len(targets), generator=rng)
    of_class = [order[targets[order] == c] for c in range(CLASSES)]
    picks = torch.randint(0, 170, (len(labels),), generator=rng)
    return images[torch.stack([of_class[c][int(i)] for c, i in zip(labels.tolist(), picks, strict=True)])]


@dataclass
class Attacked:
    """A round: what the server saw, and what it did not."""

    observation: Observation
    true: Tensor
    updates: list[HeadUpdate]
    target: Target


def models_for(
    net: nn.Module, num_models: int, scale: float = 1.0, moving: bool = False
) -> tuple[Target, FishingModels]:
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    target = find_target(net, lambda: net(noise))
    return target, make_models(net, target, choose_betas(num_models, target.width, scale), lambda: net(noise), moving)


def play(
    net: nn.Module,
    labels: Sequence[Tensor],
    local: LocalSteps = LocalSteps(),  # noqa: B008  # frozen
    spec: LossSpec = LossSpec(),  # noqa: B008  # frozen
    secure_sum: SecureSum | None = IDEAL,
    scale: float = 1.0,
    num_classes: int = CLASSES,
    fresh_batches: bool = False,
    weights: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    **public: Any,
) -> Attacked:
    """Craft a model for each client, train all, sum; `fresh_batches` gives every step images and labels of its own.

    With `fresh_batches` the labels of a client are dealt over its steps; else every step sees all of them.
    """
    spec_loss = loss or _torch_loss(spec)
    target, models = models_for(net, len(labels), scale, local.steps > 1)
    updates, true = [], []
    for k, own in enumerate(labels):
        parts = own.chunk(local.steps) if fresh_batches else [own] * local.steps
        batches = [(images_of(part, 100 * k + i * fresh_batches), part) for i, part in enumerate(parts)]
        updates.append(
            client_update(net, target, models.betas[k], batches, lambda b: spec_loss(net(b[0]), b[1]), local, seed=k)
        )
        true.append(torch.bincount(own, minlength=num_classes))
    counts, clients = torch.stack(true), torch.arange(len(labels))
    weights = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    settings = {"batch_sizes": counts.sum(1), "local": local, "loss": spec, **public}
    seen = Observation(aggregate(updates, weights, secure_sum), models, PublicRound(clients, weights, **settings))
    return Attacked(seen, counts, updates, target)


def _torch_loss(spec: LossSpec) -> Callable[[Tensor, Tensor], Tensor]:
    weights = None if spec.class_weights is None else torch.tensor(spec.class_weights)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if spec.name == "bce_with_logits":
            targets = F.one_hot(labels, logits.shape[1]).float()
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
        return F.cross_entropy(logits, labels, weights, label_smoothing=spec.label_smoothing)

    return loss


def reading_of(net: nn.Module, target: Target, images: Tensor) -> Reading:
    """Return what a client's tripwire reads in its first training batch."""
    net.train()
    with torch.no_grad(), capture_input(target.head) as inputs:
        net(images)
    return read_tripwire(inputs[-1].flatten(0, -2))


def train_a_little(net: nn.Module, steps: int = 30) -> None:
    """Train on digits with Adam."""
    images, labels = digits()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(labels), (32,))
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()


def evade(net: nn.Module, labels: Sequence[Tensor], norm_weight: float) -> tuple[Attacked, float]:
    """Play a round of one step in which the norm weight is small and not 0; return it and the share of alarms.

    The embeddings then vary around those that the server computes.
    """
    target, models = models_for(net, len(labels))
    updates, alarms = [], 0
    for k, own in enumerate(labels):
        batch, beta = (images_of(own, k), own), models.betas[k]
        with crafted(net, target, beta, norm_weight):
            alarms += reading_of(net, target, batch[0]).fished
        loss, local = (lambda b: F.cross_entropy(net(b[0]), b[1])), LocalSteps()
        updates.append(client_update(net, target, beta, [batch], loss, local, norm_weight=norm_weight))
    true = torch.stack([torch.bincount(own, minlength=CLASSES) for own in labels])
    weights = torch.ones(len(labels), dtype=torch.float64)
    public = PublicRound(torch.arange(len(labels)), weights, true.sum(1))
    seen = Observation(aggregate(updates, weights, IDEAL), models, public)
    return Attacked(seen, true, updates, target), alarms / len(labels)
