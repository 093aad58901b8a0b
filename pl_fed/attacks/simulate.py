"""The clients of an audited round: local training of crafted models, and the sum that reaches the server."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pl_fed.attacks.cut_norm import CannotAttackError, Target
from pl_fed.attacks.fishing import crafted
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps
from pl_fed.attacks.preserve import capture_input, preserved, still
from pl_fed.attacks.quantise import SecureSum

Batch = TypeVar("Batch")
SINGLE_VALUE = "Expected more than 1 value per channel"  # how torch's batch norm refuses a batch of one


@contextmanager
def batch_norm_refusals() -> Iterator[None]:
    """Say in a sentence that a batch norm cannot train on the batches of this audit.

    Raises:
        CannotAttackError: If torch refuses a batch of one example inside.
    """
    try:
        yield
    except ValueError as error:
        if SINGLE_VALUE not in str(error):
            raise
        raise CannotAttackError(
            "Expected batches of two or more examples, as BatchNorm needs in training, but got one of a single "
            "example: raise `batch_size`, or drop the last batch of a loader that is iterated."
        ) from error


def client_update(
    module: nn.Module,
    target: Target,
    beta: Float[Tensor, " width"] | None,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    local: LocalSteps,
    seed: int = 0,
    norm_weight: float = 0.0,
) -> HeadUpdate:
    """Train a client's model, one step a batch, and return the head's update; the module comes back as it was.

    Args:
        module: The module.
        target: Where it is fished.
        beta: The crafted bias; None trains the module as it is, as under an honest server.
        batches: The client's batches, `local.steps` of them.
        loss: The loss of one batch.
        local: The local training.
        seed: Seed of the client's dropout.
        norm_weight: The crafted weight.

    Raises:
        CannotAttackError: If a batch norm cannot train on a batch of one example.
    """
    before = HeadUpdate(target.head.weight, target.head_bias)
    start = before.flat().detach().double().cpu()
    with preserved(module) if beta is None else crafted(module, target, beta, norm_weight):
        torch.manual_seed(seed)
        module.train()
        optimizer = _optimizer(module, local)
        with torch.enable_grad(), batch_norm_refusals():
            for batch in batches:
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
        after = before.flat().detach().double().cpu()
    return before.unflatten(after - start)


def _optimizer(module: nn.Module, local: LocalSteps) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    if local.optimizer == "adam":
        return torch.optim.Adam(trained, lr=local.lr, weight_decay=local.weight_decay)
    return torch.optim.SGD(trained, lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay)


def aggregate(
    updates: Sequence[HeadUpdate], weights: Float[Tensor, " clients"], secure_sum: SecureSum | None = None
) -> HeadUpdate:
    """Return the weighted sum; with `secure_sum`, of vectors that only it sees one by one."""
    vectors = [float(w) * update.flat() for w, update in zip(weights, updates, strict=True)]
    total = torch.stack(vectors).sum(0) if secure_sum is None else secure_sum(vectors)
    return updates[0].unflatten(total.double())


def loss_mismatch(
    module: nn.Module,
    target: Target,
    beta: Float[Tensor, " width"],
    batch: Batch,
    loss: Callable[[Batch], Tensor],
    mix: Float[Tensor, " classes"],
    spec: LossSpec,
) -> float:
    """Return how far the head's gradient is from what `spec` says, relative to its size; about 0 where they agree.

    The owner of the data checks the configuration with it; a server could not.
    """
    with crafted(module, target, beta), torch.enable_grad(), capture_input(target.head) as seen, batch_norm_refusals():
        still(module)
        (gradient,) = torch.autograd.grad(loss(batch), target.head.weight)
        embedding = seen[-1].detach().flatten(0, -2)[0]
        logits = target.head(embedding).detach().double().cpu()
    embedding = embedding.double().cpu()
    expected = torch.outer(spec.mean_gradient(logits, mix.double()), embedding)
    return float((gradient.double().cpu() - expected).norm() / expected.norm().clamp(min=1e-300))
