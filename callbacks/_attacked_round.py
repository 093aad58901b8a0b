"""One round of the live attack: what its server sent, what came back, and the truth, which it does not get."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, PublicRound
from pl_fed.callbacks._seen_steps import SeenStep, local_steps
from pl_fed.context import RoundContext


@dataclass(frozen=True)
class LiveSettings:
    """What the server of a live attack knows before it begins.

    Args:
        loss: What the clients train with.
        local: Their local training; None reads it from the steps of the run's optimizer.
        scale_known: False if clients clip their updates or gradients.
        equal_weights: Whether every client counts alike, whatever its examples.
    """

    loss: LossSpec
    local: LocalSteps | None
    scale_known: bool
    equal_weights: bool


@dataclass
class SeenClient:
    """What the owner of the data knows of a client.

    Args:
        counts: Its label counts so far.
        batch_size: Its examples so far; with several labels an example they are fewer than its labels.
        steps: Its optimizer steps so far.
    """

    counts: Int[Tensor, " classes"]
    batch_size: int = 0
    steps: list[SeenStep] = field(default_factory=list)


@dataclass
class AttackedRound:
    """One round of the attack.

    Args:
        head_name: The final layer.
        norm_name: The cut norm.
        models: The crafted models.
        assignment: Which of them each client of the cohort is sent.
        num_rounds: How many such rounds separate everybody.
        seen: What clients really trained.
    """

    head_name: str
    norm_name: str
    models: FishingModels
    assignment: dict[int, int]
    num_rounds: int
    seen: dict[int, SeenClient] = field(default_factory=dict)

    def client(self, client_id: int) -> SeenClient:
        """Return what is known of a client, made on first use."""
        empty = torch.zeros(self.models.logits.shape[1], dtype=torch.long)
        return self.seen.setdefault(client_id, SeenClient(empty))


def observe(now: AttackedRound, context: RoundContext, arrived: Sequence[int], settings: LiveSettings) -> Observation:
    """Return what the server sees of a round.

    Args:
        now: The round.
        context: With the aggregate.
        arrived: Whose updates are in the sum.
        settings: What the server knew before.

    Raises:
        CannotAttackError: If the sum says nothing of the head, or of a local training that the attack cannot invert.
    """
    seen = [now.seen[k] for k in arrived]
    examples = {client.client_id: float(client.num_examples) for client in context.finished}
    weights = torch.tensor([1.0 if settings.equal_weights else examples[k] for k in arrived], dtype=torch.float64)
    public = PublicRound(
        torch.tensor([now.assignment[k] for k in arrived]),
        weights / weights.sum(),
        torch.tensor([client.batch_size for client in seen]),
        settings.local or local_steps([client.steps for client in seen]),
        settings.loss,
        settings.scale_known,
        one_label_each=all(int(client.counts.sum()) == client.batch_size for client in seen),
    )
    same_bias = settings.local is not None or all(step.same_bias for client in seen for step in client.steps)
    return Observation(_head_update(now, context, same_bias), now.models, public)


def _head_update(now: AttackedRound, context: RoundContext, with_bias: bool) -> HeadUpdate:
    """Return the head's update; without its bias where clients train that at another rate than the weight."""
    assert context.aggregate is not None and context.previous is not None
    moved = {}
    for part in ("weight", "bias") if with_bias else ("weight",):
        name = f"{now.head_name}.{part}"
        if name in context.previous.dense:
            moved[part] = (context.aggregate.dense[name].double() - context.previous.dense[name].double()).cpu()
    if "weight" not in moved or not bool(moved["weight"].any()):
        raise CannotAttackError(
            f"Expected an update of `{now.head_name}` in the sum but there is none: it stays on the clients, or is not "
            "trained."
        )
    return HeadUpdate(moved["weight"], moved.get("bias"))
