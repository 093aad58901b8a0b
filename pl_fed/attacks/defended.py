"""What the clients of an audited round send, and what a defence lets the server see of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pl_fed.attacks.audit import AuditSettings, Batch, SimulatedClients
from pl_fed.attacks.cut_norm import Target
from pl_fed.attacks.fishing import FishingModels, crafted
from pl_fed.attacks.observation import HeadUpdate
from pl_fed.attacks.preserve import capture_input, preserved
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.tripwire import Reading, read_tripwire
from pl_fed.privacy import FixedPoint, IdealSum, PairwiseSum, choose_ring, encode, module_hash
from pl_fed.privacy.pairwise.errors import ModelMismatchError
from pl_fed.rounds import derive_seed

Kind = Literal["none", "quantisation", "clipping", "binding", "dp", "local_norms", "tripwire", "evaded"]
LARGEST_PROTOCOL = 16  # clients with which the protocol itself is run; every pair agrees on a key


@dataclass(frozen=True)
class Defence:
    """One thing that clients can do.

    Args:
        name: As it is shown.
        kind: What it is; ``evaded`` is a tripwire of which the server knows.
        noise_multiplier: Of client-level differential privacy: the noise's standard deviation over the clip.
    """

    name: str
    kind: Kind
    noise_multiplier: float = 0.0

    @property
    def clips(self) -> bool:
        """Whether clients clip their updates, so that the server does not know their scale."""
        return self.kind in ("clipping", "dp")

    @property
    def watches(self) -> bool:
        """Whether clients have a tripwire."""
        return self.kind in ("tripwire", "evaded")


@dataclass(frozen=True)
class Sent:
    """What the clients would send, had they received certain models.

    Args:
        updates: Each client's head update.
        alarms: Whose tripwire rang.
        contexts: Hash of each client's model.
    """

    updates: tuple[HeadUpdate, ...]
    alarms: Bool[Tensor, " clients"]
    contexts: tuple[bytes, ...] = field(repr=False)

    @property
    def clip(self) -> float:
        """The median norm of the updates."""
        return float(torch.stack([update.flat().norm() for update in self.updates]).median())


def simulate(
    module: nn.Module,
    target: Target,
    models: FishingModels | None,
    assignment: Int[Tensor, " clients"] | None,
    clients: SimulatedClients[Batch],
    settings: AuditSettings,
    norm_weight: float = 0.0,
) -> Sent:
    """Train every client on the model that it is assigned; without models on the module as it is."""
    updates, alarms, contexts = [], [], []
    for k, batches in enumerate(clients.batches):
        beta = None if models is None or assignment is None else models.betas[int(assignment[k])]
        seed = clients.seed + k
        updates.append(client_update(module, target, beta, batches, clients.loss, settings.local, seed, norm_weight))
        with preserved(module) if beta is None else crafted(module, target, beta, norm_weight):
            contexts.append(module_hash(0, module))
            alarms.append(first_reading(module, target, batches[0], clients.loss, seed).fished)
    return Sent(tuple(updates), torch.tensor(alarms), tuple(contexts))


def first_reading(
    module: nn.Module, target: Target, batch: Batch, loss: Callable[[Batch], Tensor], seed: int = 0
) -> Reading:
    """Return what the tripwire sees in the first batch of a client's training; the module's statistics move."""
    module.train()
    torch.manual_seed(seed)
    with torch.no_grad(), capture_input(target.head) as seen:
        loss(batch)
    return read_tripwire(seen[-1].detach().float().flatten(0, -2))


def defended_sum(
    sent: Sent, defence: Defence, settings: AuditSettings, who: Bool[Tensor, " clients"]
) -> tuple[HeadUpdate | None, Bool[Tensor, " clients"]]:
    """Return the sum of a round before any noise, and who is in it; None if nothing was sent.

    Args:
        sent: What the clients would send.
        defence: What they do about it.
        settings: How updates are summed.
        who: The cohort.
    """
    if defence.watches:
        who = who & ~sent.alarms
    chosen = who.nonzero().flatten().tolist()
    least = min(2, len(sent.updates))  # no protocol sums one of several clients: the sum would be its update
    if len(chosen) < least or (defence.kind == "binding" and is_refused([sent.contexts[k] for k in chosen])):
        return None, torch.zeros_like(who)
    updates = [sent.updates[k] for k in chosen]
    if defence.clips:
        updates = [_clipped(update, sent.clip) for update in updates]
    secure_sum = None if defence.kind == "none" else settings.secure_sum
    return aggregate(updates, torch.ones(len(updates), dtype=torch.float64), secure_sum), who


def noised(total: HeadUpdate, std: float, seed: int) -> HeadUpdate:
    """Add Gaussian noise of this standard deviation to a sum."""
    flat, generator = total.flat(), torch.Generator().manual_seed(derive_seed(seed, 0xDF))
    return total.unflatten(flat + std * torch.randn(len(flat), generator=generator, dtype=torch.float64))


def _clipped(update: HeadUpdate, clip: float) -> HeadUpdate:
    flat = update.flat()
    return update.unflatten(flat * min(1.0, clip / max(float(flat.norm()), 1e-300)))


def is_refused(contexts: Sequence[bytes]) -> bool:
    """Tell whether clients that compare the hashes of their models refuse the round."""
    if len(contexts) < 2:
        return False
    vectors = {k: torch.zeros(1, dtype=torch.int64) for k in range(len(contexts))}
    ring = choose_ring(FixedPoint(), len(contexts), 1)
    try:
        IdealSum(threshold=len(contexts)).sum(
            vectors, ring, context=contexts[0], client_contexts=dict(enumerate(contexts))
        )
    except ModelMismatchError:
        return True
    return False


def right_coordinates(sent: Sent, config: FixedPoint = FixedPoint(stochastic=False)) -> float:  # noqa: B008  # frozen
    """Return the share of the sum's coordinates that come out right when masks are bound but hashes not compared.

    The protocol of Bonawitz et al. itself, with up to `LARGEST_PROTOCOL` of the clients.
    """
    updates, contexts = sent.updates[:LARGEST_PROTOCOL], sent.contexts[:LARGEST_PROTOCOL]
    vectors = {k: encode(update.flat(), 1, config).values for k, update in enumerate(updates)}
    ring = choose_ring(config, len(vectors), 1)
    true = IdealSum(threshold=len(vectors)).sum(vectors, ring).total
    protocol = PairwiseSum(threshold=len(vectors), echo=False)
    found = protocol.sum(vectors, ring, context=contexts[0], client_contexts=dict(enumerate(contexts))).total
    return float((found == true).double().mean())
