"""Crafts one model per client by a single normalisation layer, so that its embedding and logits are known beforehand.

Follows arXiv 2406.15731 (Wang et al., INFOCOM 2024), re-implemented from the abstract: weight 0 and bias beta_k in the
cut norm give every sample of client k the embedding e_k and the logits z_k. The choice of beta is derived:
e_k = s (1 + h_k) with orthogonal rows h_k of a Hadamard matrix is not negative, so that a ReLU passes it, and gives the
system a condition number of about sqrt(1 + N).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pl_fed.attacks.cut_norm import CannotAttackError, Forward, Target
from pl_fed.attacks.preserve import capture_input, preserved, still

LARGEST_JACOBIAN = 4_000_000  # entries of one model's; beyond, the bias's own movement is left out


@dataclass(frozen=True)
class FishingModels:
    """What the server knows of the models that it crafted: tensors in float64, no module.

    Args:
        betas: Bias of the cut norm in each model.
        embeddings: Input of the final layer.
        logits: Its output.
        head_weight: The final layer's weight before training, the same in all models.
        head_bias: Its bias; None if it has none.
        jacobians: de/dbeta of each model; None if beta stays as it is.
    """

    betas: Float[Tensor, "models width"]
    embeddings: Float[Tensor, "models features"]
    logits: Float[Tensor, "models classes"]
    head_weight: Float[Tensor, "classes features"]
    head_bias: Float[Tensor, " classes"] | None
    jacobians: Float[Tensor, "models features width"] | None = None

    def at(self, rows: Sequence[int] | Int[Tensor, " rows"]) -> "FishingModels":
        """Return some of the models, in this order."""
        chosen = {name: getattr(self, name)[rows] for name in ("betas", "embeddings", "logits")}
        jacobians = None if self.jacobians is None else self.jacobians[rows]
        return replace(self, jacobians=jacobians, **chosen)


def orthogonal_rows(width: int) -> Float[Tensor, "width width"]:
    """Return a Hadamard matrix (Sylvester) if `width` is a power of two, else cosines; the first row is all ones.

    Example:
        >>> orthogonal_rows(2).tolist()
        [[1.0, 1.0], [1.0, -1.0]]
    """
    if width & (width - 1) == 0:
        rows = torch.ones(1, 1, dtype=torch.float64)
        while len(rows) < width:
            rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
        return rows
    i = torch.arange(width, dtype=torch.float64)
    return torch.cos(math.pi / width * i[:, None] * (i[None] + 0.5))  # the discrete cosine transform, unscaled


def choose_betas(num_models: int, width: int, scale: float = 1.0) -> Float[Tensor, "models width"]:
    """Return the biases of `num_models` models: s (1 + h_k), then 0, then repetitions, which cannot be told apart.

    Args:
        num_models: Number of models; at most ``width + 1`` can be told apart.
        width: Number of biases of the cut norm.
        scale: Size s of the embeddings; small ones move less in several local steps.

    Example:
        >>> choose_betas(2, 4).tolist()
        [[2.0, 0.0, 2.0, 0.0], [2.0, 2.0, 0.0, 0.0]]
    """
    rows = 1 + orthogonal_rows(width).roll(-1, 0)  # the row of ones last: it makes the condition worse
    betas = scale * torch.cat([rows, torch.zeros(1, width, dtype=torch.float64)])
    return betas[torch.arange(num_models) % len(betas)]


def plan_rounds(num_clients: int, num_targets: int, last_is_told: bool = True) -> list[Int[Tensor, " clients"]]:
    """Say which model each client is sent, in as many rounds as separate everybody.

    Up to ``num_targets + 1`` clients take one round. With more, each round targets `num_targets` of them and sends the
    others the last model, of bias 0.

    Args:
        num_clients: Number of clients.
        num_targets: How many models can be told apart beside the last one.
        last_is_told: Whether a client alone with the last model is told apart too; not if its embedding is 0 and the
            final layer has no bias.

    Example:
        >>> [models.tolist() for models in plan_rounds(4, 2)]
        [[0, 1, 2, 2], [2, 2, 0, 1]]
    """
    if num_clients <= num_targets + last_is_told:
        return [torch.arange(num_clients)]
    rounds = []
    for first in range(0, num_clients, num_targets):
        models = torch.full((num_clients,), num_targets)
        targets = min(num_targets, num_clients - first)
        models[first : first + targets] = torch.arange(targets)
        rounds.append(models)
    return rounds


@contextmanager
def crafted(
    module: nn.Module, target: Target, beta: Float[Tensor, " width"], norm_weight: float = 0.0
) -> Iterator[None]:
    """Make the module a fishing model for a while; see `preserved` for what comes back.

    Args:
        module: The module.
        target: Where it is fished.
        beta: Bias of the cut norm.
        norm_weight: Its weight; not quite 0 evades a tripwire, and embeddings then vary around those of 0.
    """
    weight, bias = target.norm.weight, target.norm.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    with preserved(module):
        with torch.no_grad():
            weight.fill_(norm_weight)
            bias.copy_(beta.reshape(bias.shape))
        yield


def make_models(
    module: nn.Module, target: Target, betas: Float[Tensor, "models width"], forward: Forward, moving: bool = False
) -> FishingModels:
    """Return the embeddings and logits of the crafted models, from running them on any batch.

    Args:
        module: The module.
        target: Where it is fished.
        betas: Bias of the cut norm in each model.
        forward: Runs the module on a batch; what the batch holds does not matter.
        moving: Also differentiate the embedding by beta, for clients that train several steps.
    """
    bias = target.norm.bias
    assert isinstance(bias, Tensor)
    moving = moving and bias.requires_grad and target.head.in_features * target.width <= LARGEST_JACOBIAN
    embeddings, logits, jacobians = [], [], []
    for beta in betas:
        with crafted(module, target, beta):
            still(module)
            embedding, jacobian = _embedding(target, forward, moving)
            with torch.no_grad():
                logits.append(target.head(embedding.to(target.head.weight)).double().cpu())
        embeddings.append(embedding.double().cpu())
        jacobians.append(jacobian)
    head_bias = target.head.bias
    return FishingModels(
        betas.double(),
        torch.stack(embeddings),
        torch.stack(logits),
        target.head.weight.detach().double().cpu().clone(),
        None if head_bias is None else head_bias.detach().double().cpu().clone(),
        torch.stack([j for j in jacobians if j is not None]) if moving else None,
    )


def _embedding(target: Target, forward: Forward, moving: bool) -> tuple[Tensor, Tensor | None]:
    with capture_input(target.head) as seen, torch.set_grad_enabled(moving):
        forward()
    rows = seen[-1].flatten(0, -2)  # (samples or tokens, features), all alike
    if not bool(torch.isfinite(rows).all()):
        raise CannotAttackError(
            f"Expected finite embeddings but those of the model crafted at `{target.norm_name}` are not: check the "
            "module's parameters and running statistics."
        )
    if not moving:
        return rows[0].detach(), None
    unit = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    bias = target.norm.bias
    assert isinstance(bias, Tensor)
    (jacobian,) = torch.autograd.grad(rows.mean(0), bias, unit, is_grads_batched=True)  # (features, *bias.shape)
    return rows[0].detach(), jacobian.flatten(1).double().cpu()
