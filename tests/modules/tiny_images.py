"""Tiny images that are easy to tell apart, their clients, and a small module for them."""

from typing import Any

import torch
from torch import Tensor

from pl_fed.loaders import RoundLoader
from pl_fed.modules import ImageClassifier, NetworkSettings
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy

SHARDS = [list(range(0, 8)), list(range(8, 13)), list(range(13, 24))]


def image_rows(num_rows: int = 24) -> list[dict[str, Tensor]]:
    """Return images with a bright corner, which is their class; each belongs to the client of its shard."""
    generator = torch.Generator().manual_seed(5)
    client = {i: k for k, shard in enumerate(SHARDS) for i in shard}
    rows = []
    for i in range(num_rows):
        label = i % 3
        image = 0.3 * torch.randn(1, 8, 8, generator=generator) + i / 24
        image[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2.0
        rows.append({"images": image, "labels": torch.tensor(label), "client_id": torch.tensor(client[i])})
    return rows


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.5)


def make(architecture: str = "small_cnn", **changes: Any) -> ImageClassifier:
    torch.manual_seed(7)
    options = {"width": 4, **({"num_groups": 2} if architecture == "groupnorm_cnn" else {})}
    settings = NetworkSettings(options, in_channels=1, image_size=8)
    return ImageClassifier(architecture, **{"network": settings, "optimizer": sgd, "num_labels": 3, **changes})


def loader(**changes: Any) -> RoundLoader:
    return RoundLoader(image_rows(), SHARDS, **{"batch_size": 4, **changes})


def federation(**changes: Any) -> FederatedStrategy:
    return FederatedStrategy(FedIT(), **{"cohort": CohortConfig(), "seed": 2, **changes})
