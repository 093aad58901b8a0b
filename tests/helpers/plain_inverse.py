"""Noise on a sum, and the attack in five lines as its mathematics is written down, to compare ours with."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.attacks.observation import HeadUpdate, Observation
from tests.helpers.audited import Attacked


def under_noise(played: Attacked, noise_multiplier: float, seed: int, clip: float | None = None) -> Attacked:
    """Return a round whose sum has Gaussian noise of that multiple of the clip.

    Args:
        played: The round.
        noise_multiplier: Standard deviation over the clip.
        seed: Of the noise.
        clip: The norm that updates are scaled down to; without it the largest one, so that none is.
    """
    norms = [float(update.flat().norm()) for update in played.updates]
    bound = max(norms) if clip is None else clip
    summed = played.observation.aggregate
    if clip is not None:
        clipped = [u.flat() * min(1.0, clip / norm) for u, norm in zip(played.updates, norms, strict=True)]
        summed = summed.unflatten(torch.stack(clipped).double().sum(0))
    flat = summed.flat()
    noise = torch.randn(len(flat), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noisy: HeadUpdate = summed.unflatten(flat + noise_multiplier * bound * noise)
    return replace(played, observation=replace(played.observation, aggregate=noisy))


def plain_counts(seen: Observation) -> Int[Tensor, "clients classes"]:
    """Return n_k = B_k (softmax(z_k) - g_k) at its nearest point of the simplex, rounded by largest remainder.

    One model a client, a known scale and plain cross-entropy are taken for granted.
    """
    models, public = seen.models, seen.round
    assert seen.aggregate.bias is not None and public.batch_sizes is not None
    left = torch.cat([models.embeddings, torch.ones(len(models.embeddings), 1, dtype=torch.float64)], 1).T
    right = torch.cat([seen.aggregate.weight, seen.aggregate.bias[:, None]], 1).double().T
    gamma = torch.linalg.lstsq(left, right).solution  # (clients, classes)
    mixes = torch.softmax(models.logits, 1) + gamma / (public.local.total * public.weights[:, None])
    counts = [_rounded(nearest_mix(mix) * int(size)) for mix, size in zip(mixes, public.batch_sizes, strict=True)]
    return torch.stack(counts)


def nearest_mix(point: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Return the nearest vector of entries of 0 or more that sum to 1.

    Held, Wolfe, Crowder, "Validation of subgradient optimization", 1974.

    Example:
        >>> nearest_mix(torch.tensor([0.9, 0.5, -3.0]))  # .2 less each, and nothing below 0
        tensor([0.7000, 0.3000, 0.0000])
    """
    largest = point.sort(descending=True).values
    levels = (largest.cumsum(0) - 1) / torch.arange(1, len(point) + 1)
    return (point - levels[int((largest > levels).sum()) - 1]).clamp(min=0)


def _rounded(raw: Float[Tensor, " classes"]) -> Int[Tensor, " classes"]:
    whole = raw.floor().long()
    whole[(raw - whole).argsort(descending=True)[: round(float(raw.sum())) - int(whole.sum())]] += 1
    return whole
