"""The same fishing model for everybody still leaks: cohorts change, and their totals make a linear system.

Derived. With one model a round's sum gives only the cohort's label total, Gamma_r = sum_k P_rk w_k (p - n_k / B_k).
Over rounds with known participation P and clients whose label mix stays the same, the totals determine the clients as
soon as P has as many independent rounds as there are clients. So checking that all got the same model does not help.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pl_fed.attacks.counts import round_counts
from pl_fed.attacks.disaggregate import linear_system
from pl_fed.attacks.fedavg import naive_gradients
from pl_fed.attacks.observation import Observation
from pl_fed.attacks.solve import Recovery
from pl_fed.errors import FederatedConfigError


def recover_over_rounds(
    observations: Sequence[Observation],
    participation: Bool[Tensor, "rounds clients"],
    batch_sizes: Int[Tensor, " clients"],
) -> Recovery:
    """Return the label counts of every client from several rounds, each with one model for all.

    Args:
        observations: One for each round; its clients in ascending order.
        participation: Whose update arrived in which round.
        batch_sizes: Each client's number of labels in a round.

    Raises:
        FederatedConfigError: If a round has several models, or other clients than `participation` says.
    """
    expected = len(observations), len(batch_sizes)
    if not observations or tuple(participation.shape) != expected:
        raise FederatedConfigError(
            f"Expected one or more `observations` and `participation` of shape {expected}, rounds and clients, but got "
            f"{len(observations)} and {tuple(participation.shape)}: give a row for each round that was observed."
        )
    shares, mixes = [], []
    for round_idx, (seen, present) in enumerate(zip(observations, participation, strict=True)):
        num_models, num_clients = len(seen.models.logits), len(seen.round.assignment)
        if num_models != 1 or num_clients != int(present.sum()):
            raise FederatedConfigError(
                f"Expected one model and {int(present.sum())} clients in round {round_idx} but got {num_models} and "
                f"{num_clients}: use `recover` for a round with several models."
            )
        weights = seen.round.weights.double()
        mixes.append(_cohort_mix(seen, weights.sum()))
        shares.append(torch.zeros(len(present), dtype=torch.float64).masked_scatter(present, weights / weights.sum()))
    system = linear_system(torch.stack(shares).T, has_bias=False)  # (clients, rounds)
    raw, found = system.inverse @ torch.stack(mixes) * batch_sizes[:, None], system.identifiable
    single, pairs = observations[0].round.counts_sum_to_batch, zip(raw, batch_sizes, strict=True)
    counts = torch.stack([round_counts(row, int(size), single) for row, size in pairs]) * found[:, None]
    margin = float((raw - counts)[found].abs().max()) if bool(found.any()) else float("inf")
    note = (f"One model for all, {len(shares)} rounds with changing cohorts; label mixes are taken as constant.",)
    figures = (system.rank, 1, system.condition, margin, not bool(found.all()), note)
    return Recovery(counts, raw, batch_sizes * found, found, *figures)


def _cohort_mix(seen: Observation, total_weight: Tensor) -> Tensor:
    """Return the label mix of a whole cohort, weighted as its sum is."""
    system = linear_system(seen.models.embeddings, seen.aggregate.bias is not None)
    gradient = naive_gradients(seen.aggregate, seen.models, system, seen.round.local, total_weight[None])
    return seen.round.loss.label_mix(seen.models.logits, gradient)[0]
