"""The attack: label counts of every client from the sum of their head updates, and from nothing else.

Follows arXiv 2406.15731 (Wang et al., INFOCOM 2024), re-implemented from the abstract. An audit: it is run on data that
the user owns, to see what a malicious server could learn from a federation under secure aggregation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pl_fed.attacks.counts import round_counts, smallest_batch, unknown_scale
from pl_fed.attacks.disaggregate import LinearSystem, linear_system
from pl_fed.attacks.fedavg import naive_gradients, trajectory_gradients
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.observation import Observation, PublicRound
from pl_fed.errors import FederatedConfigError

SHARED, UNDETERMINED = "share a model with others", "the sum does not determine every client"
Correction = Literal["auto", "naive", "trajectory"]
ADAM = (
    "The clients train with Adam, which rescales every gradient: its scale is taken as unknown, which names many "
    "labels and few counts exactly."
)


@dataclass(frozen=True)
class Recovery:
    """What the attack found.

    Args:
        counts: Label counts of each client; 0 where nothing was found.
        raw: The same before rounding.
        batch_sizes: The number of labels that the counts add up to; 0 where nothing was found.
        found: Which clients were separated: alone with their model, and identifiable.
        rank: Rank of the linear system.
        num_models: Number of different models sent to clients whose update arrived.
        condition: Condition number of the system.
        margin: Largest difference between raw and rounded counts of the clients that were found; near 0 if exact.
        under_determined: Whether there are more models than the sum can tell apart.
        notes: Sentences on what the figures rest on.
    """

    counts: Int[Tensor, "clients classes"]
    raw: Float[Tensor, "clients classes"]
    batch_sizes: Int[Tensor, " clients"]
    found: Bool[Tensor, " clients"]
    rank: int
    num_models: int
    condition: float
    margin: float
    under_determined: bool
    notes: tuple[str, ...] = ()


def recover(observation: Observation, correction: Correction = "auto") -> Recovery:
    """Run the attack on what the server saw.

    Args:
        observation: The server's view.
        correction: ``naive`` takes the mean gradient, ``trajectory`` simulates steps, ``auto`` does where it helps.

    Raises:
        FederatedConfigError: If `correction` is unknown, or ``trajectory`` with Adam or an unknown scale.
    """
    if correction not in get_args(Correction):
        raise FederatedConfigError(f"Expected `correction` out of {get_args(Correction)} but got `{correction}`.")
    public, notes = observation.round, []
    used, group = public.assignment.unique(return_inverse=True)
    models = observation.models.at(used)
    system = linear_system(models.embeddings, observation.aggregate.bias is not None)
    sizes = torch.bincount(group, minlength=len(used))
    total_weight = torch.zeros(len(used), dtype=torch.float64).index_add_(0, group, public.weights.double())
    gradients = _gradients(observation, models, system, total_weight, correction)
    found = ((sizes == 1) & system.identifiable)[group]
    if public.local.optimizer == "adam":
        notes.append(ADAM)
    if int(sizes.max()) > 1:
        notes.append(f"{int((sizes[group] > 1).sum())} clients {SHARED} and are not separated.")
    if not bool(system.identifiable.all()):
        notes.append(f"{len(used)} models but rank {system.rank}: {UNDETERMINED}.")
    raw, counts, batches = _counts(gradients[group], models.logits[group], public, found, notes)
    margin = float((raw - counts)[found].abs().max()) if bool(found.any()) else float("inf")
    return Recovery(
        counts,
        raw,
        batches,
        found,
        system.rank,
        len(used),
        system.condition,
        margin,
        not bool(system.identifiable[sizes == 1].all()),
        tuple(notes),
    )


def combine(recoveries: Sequence[Recovery]) -> Recovery:
    """Put together rounds that targeted different clients of one population; each client's first find counts."""
    first = recoveries[0]
    counts, raw, batches, found = (
        first.counts.clone(),
        first.raw.clone(),
        first.batch_sizes.clone(),
        first.found.clone(),
    )
    for other in recoveries[1:]:
        new = other.found & ~found
        counts[new], raw[new], batches[new] = other.counts[new], other.raw[new], other.batch_sizes[new]
        found |= new
    notes = [f"{len(recoveries)} rounds, each with other targets."] if len(recoveries) > 1 else list(first.notes)
    settled = (SHARED, UNDETERMINED) if bool(found.all()) else (SHARED,)  # by another round
    notes += [note for r in recoveries for note in r.notes if not any(text in note for text in settled)]
    return Recovery(
        counts,
        raw,
        batches,
        found,
        min(r.rank for r in recoveries),
        max(r.num_models for r in recoveries),
        max(r.condition for r in recoveries),
        max(r.margin for r in recoveries),
        any(r.under_determined for r in recoveries) and not bool(found.all()),
        tuple(dict.fromkeys(notes)),
    )


def _gradients(
    observation: Observation, models: FishingModels, system: LinearSystem, total_weight: Tensor, correction: Correction
) -> Tensor:
    public = observation.round
    simulable = public.local.optimizer == "sgd" and public.scale_known
    if correction == "trajectory" and not simulable:
        raise FederatedConfigError(
            "Expected SGD and a known scale for `correction: trajectory` but the round has "
            f"{public.local.optimizer} and scale_known={public.scale_known}: use `naive`."
        )
    if correction == "naive" or not simulable or (correction == "auto" and public.local.steps == 1):
        return naive_gradients(observation.aggregate, models, system, public.local, total_weight)
    aggregate = observation.aggregate
    return trajectory_gradients(aggregate, models, system, public.local, total_weight, public.loss)


def _counts(
    gradients: Float[Tensor, "clients classes"],
    logits: Float[Tensor, "clients classes"],
    public: PublicRound,
    found: Bool[Tensor, " clients"],
    notes: list[str],
) -> tuple[Float[Tensor, "clients classes"], Int[Tensor, "clients classes"], Int[Tensor, " clients"]]:
    raw, counts = torch.zeros_like(gradients), torch.zeros_like(gradients, dtype=torch.long)
    batches = torch.zeros(len(gradients), dtype=torch.long)
    unsure = 0
    for k in found.nonzero().flatten().tolist():
        batch = None if public.batch_sizes is None else int(public.batch_sizes[k])
        gradient = gradients[k]
        if not public.scale_known or public.local.optimizer == "adam":
            scale, confirmed = unknown_scale(gradient, logits[k], public.loss, batch)
            gradient, unsure = gradient / scale, unsure + (not confirmed)
        mix = public.loss.label_mix(logits[k], gradient)
        if batch is None and (batch := smallest_batch(mix)) is None:
            found[k] = False
            continue
        batches[k], raw[k] = batch, batch * mix
        counts[k] = round_counts(raw[k], batch, public.counts_sum_to_batch)
    if unsure:
        notes.append(f"The scale of {unsure} clients holds only if a class is absent from their batch.")
    if public.batch_sizes is None and bool(found.any()):
        notes.append("Batch sizes are the smallest that make all counts whole: exact up to a common divisor.")
    return raw, counts, batches
