"""What the live attack says of gradients that no scale fits."""

import torch

from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.observation import HeadUpdate, Observation, PublicRound
from pl_fed.attacks.solve import recover
from pl_fed.callbacks._live_attack import _without_scale


def test_gradients_without_a_scale() -> None:
    """No class has the gradient of an absent one: nothing to divide by, which is not a margin of 1e300."""
    update = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)  # against the sign of a gradient: all below 0
    ones, zeros = torch.ones(1, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    models = FishingModels(ones, ones, zeros[None, :, 0], zeros, zeros[:, 0])
    public = PublicRound(torch.tensor([0]), ones[0, :1], torch.tensor([6]), scale_known=False)
    found = recover(Observation(HeadUpdate(torch.outer(update, ones[0]), update), models, public))
    marked = _without_scale(found)
    assert found.margin > 1e250 and marked.margin == float("inf") and bool(marked.raw.isinf().all())
    assert torch.equal(marked.counts, found.counts) and "No scale fits the gradients of 1 clients" in marked.notes[-1]
