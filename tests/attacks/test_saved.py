"""An aggregate that somebody saved is attacked without the federation, the module or the data."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pl_fed.attacks import (
    HeadUpdate,
    LocalSteps,
    LossSpec,
    Observation,
    PublicRound,
    choose_betas,
    find_target,
    load_observation,
    make_models,
    recover,
    save_observation,
)
from pl_fed.errors import FederatedConfigError
from tests.helpers.audited import images_of, label_draws, mlp, play


def test_there_and_back(tmp_path: Path) -> None:
    """Every field, also those that are not the default."""
    local, loss = LocalSteps(4, 0.01, 0.5, 0.1), LossSpec(label_smoothing=0.1, class_weights=(1.0,) * 10)
    seen = play(mlp(16), label_draws([8] * 3), local, loss).observation
    save_observation(seen, tmp_path / "new" / "seen.pt")
    again = load_observation(tmp_path / "new" / "seen.pt")
    assert again.round.local == local and again.round.loss == loss
    for part in ("aggregate", "models", "round"):
        one, two = getattr(seen, part), getattr(again, part)
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b, field.name
    assert torch.equal(recover(again).raw, recover(seen).raw)


def test_a_federation_of_somebody_else(tmp_path: Path) -> None:
    """Three clients trained by plain PyTorch; of their updates only the mean is kept."""
    net, labels = mlp(16), label_draws([8] * 3)
    target = find_target(net, lambda: net(torch.randn(4, 1, 8, 8)))
    models = make_models(net, target, choose_betas(3, target.width), lambda: net(torch.randn(4, 1, 8, 8)))
    updates = []
    for k, own in enumerate(labels):
        client = mlp(16)
        client.load_state_dict(net.state_dict())
        with torch.no_grad():
            client[2].weight.zero_()
            client[2].bias.copy_(models.betas[k])
        optimizer = torch.optim.SGD(client.parameters(), lr=0.1)
        nn.functional.cross_entropy(client(images_of(own, k)), own).backward()
        optimizer.step()
        updates.append([(client[5].weight - net[5].weight).detach(), (client[5].bias - net[5].bias).detach()])
    mean = HeadUpdate(*(torch.stack(part).mean(0) for part in zip(*updates, strict=True)))
    public = PublicRound(torch.arange(3), torch.full((3,), 1 / 3), torch.tensor([8] * 3), LocalSteps(lr=0.1))
    save_observation(Observation(mean, models, public), tmp_path / "seen.pt")
    found = recover(load_observation(tmp_path / "seen.pt"))
    assert torch.equal(found.counts, torch.stack([torch.bincount(own, minlength=10) for own in labels]))


def test_what_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "seen.pt"
    with pytest.raises(FederatedConfigError, match="there is no such file"):
        load_observation(path)
    for wrong in ({"aggregate": {}}, [1], mlp(4)):
        torch.save(wrong, path)
        with pytest.raises(FederatedConfigError, match=r"Expected \['aggregate', 'models', 'round'\] in '.*seen.pt'"):
            load_observation(path)
    fewer = dataclasses.asdict(play(mlp(16), label_draws([8] * 3)).observation)
    fewer["models"]["embeddings"] = fewer["models"]["embeddings"][:2]
    torch.save(fewer, path)
    with pytest.raises(FederatedConfigError, match="in '.*seen.pt' but got something else"):
        load_observation(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FederatedConfigError, match="write it with `save_observation`"):
        load_observation(path)
