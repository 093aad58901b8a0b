"""What several local steps do to the attack: the naive mean gradient, and a simulation of the head's and beta's path.

Derived. With one step the update is -lr times the gradient. With several, the head and the bias of the cut norm move,
so embeddings and logits do too. The server knows where they start and how they are trained; the only unknown is the
label mix. It is taken as constant over the steps; for a trial mix the server simulates every client's update, and the
difference between the observed sum and the simulated one is taken apart by the same pseudo-inverse and added.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.attacks.disaggregate import LinearSystem
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps

ITERATIONS = 60
Gradients = Float[Tensor, "models classes"]


def naive_gradients(
    aggregate: HeadUpdate,
    models: FishingModels,
    system: LinearSystem,
    local: LocalSteps,
    total_weight: Float[Tensor, " models"],
) -> Gradients:
    """Return each model's mean gradient at the logits, as if nothing had moved during the local steps.

    Args:
        aggregate: The observed sum.
        models: The crafted models that were sent.
        system: Their linear system.
        local: The local training; weight decay of the head is taken out, momentum is part of `LocalSteps.total`.
        total_weight: Sum of the weights of the clients of each model.
    """
    decay = local.weight_decay * total_weight.sum()
    weight = -aggregate.weight.double() / local.total - decay * models.head_weight
    bias = None if aggregate.bias is None else -aggregate.bias.double() / local.total
    if bias is not None and models.head_bias is not None:
        bias = bias - decay * models.head_bias
    return system.solve(weight, bias) / total_weight[:, None]


def trajectory_gradients(
    aggregate: HeadUpdate,
    models: FishingModels,
    system: LinearSystem,
    local: LocalSteps,
    total_weight: Float[Tensor, " models"],
    loss: LossSpec,
    iterations: int = ITERATIONS,
) -> Gradients:
    """Return each model's gradient at its first logits, corrected for what moved during the local steps.

    Args:
        aggregate: The observed sum.
        models: The crafted models that were sent.
        system: Their linear system.
        local: The local training.
        total_weight: Sum of the weights of the clients of each model.
        loss: The loss.
        iterations: Corrections; it stops earlier where they no longer change anything.
    """
    gradients = naive_gradients(aggregate, models, system, local, total_weight)
    for _ in range(iterations):
        mix = loss.label_mix(models.logits, gradients)
        weight, bias = simulate(models, mix, local, loss, aggregate.bias is not None)
        weight_left = aggregate.weight.double() - torch.einsum("m,mcf->cf", total_weight, weight)
        bias_left = None if aggregate.bias is None else aggregate.bias.double() - total_weight @ bias
        step = system.solve(weight_left, bias_left) / (-local.total * total_weight[:, None])
        gradients = gradients + step
        if float(step.abs().max()) < 1e-12:
            break
    return gradients


def simulate(
    models: FishingModels,
    mix: Float[Tensor, "models classes"],
    local: LocalSteps,
    loss: LossSpec,
    trains_bias: bool = True,
) -> tuple[Float[Tensor, "models classes features"], Float[Tensor, "models classes"]]:
    """Return the head's update in each model when every step sees the same label mix.

    Args:
        models: The crafted models.
        mix: Counts over batch size of each.
        local: The local training, with SGD.
        loss: The loss.
        trains_bias: Whether the head's bias is trained.
    """
    num_models, (num_classes, num_features) = len(mix), models.head_weight.shape
    start = models.head_bias if models.head_bias is not None else torch.zeros(num_classes, dtype=torch.float64)
    weight = models.head_weight.expand(num_models, num_classes, num_features).clone()
    bias = start.expand(num_models, num_classes).clone()
    beta, embedding = models.betas.clone(), models.embeddings
    velocity = [torch.zeros_like(tensor) for tensor in (weight, bias, beta)]
    for _ in range(local.steps):
        logits = torch.einsum("mcf,mf->mc", weight, embedding) + bias
        g = loss.mean_gradient(logits, mix)
        into = torch.einsum("mcf,mc->mf", weight, g)  # (models, features): dL/de
        parts = [(weight, torch.einsum("mc,mf->mcf", g, embedding))]
        parts += [(bias, g)] if trains_bias else []
        if models.jacobians is not None:
            parts += [(beta, torch.einsum("mfw,mf->mw", models.jacobians, into))]
        for tensor, gradient in parts:
            buffer = velocity[next(i for i, t in enumerate((weight, bias, beta)) if t is tensor)]
            buffer.mul_(local.momentum).add_(gradient + local.weight_decay * tensor)
            tensor.sub_(local.lr * buffer)
        if models.jacobians is not None:
            embedding = models.embeddings + torch.einsum("mfw,mw->mf", models.jacobians, beta - models.betas)
    return weight - models.head_weight, bias - start
