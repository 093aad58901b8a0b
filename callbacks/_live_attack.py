"""The label-inference attack inside the rounds of a federation: its server crafts models and reads the sum.

One round separates as many clients as the cut norm has biases, and one more; a larger cohort takes several. What the
server gets is the aggregate that the strategy's secure aggregation leaves it. It then goes on from the model that it
had, as such a server would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from pl_fed._lightning import LightningModule, Trainer
from pl_fed.adapters import Adapter
from pl_fed.attacks.aim import aim
from pl_fed.attacks.baselines import guess, spread_mix
from pl_fed.attacks.cut_norm import CannotAttackError, find_target
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, Optimizer, PublicRound
from pl_fed.attacks.report import AuditReport, make_report, mix_of
from pl_fed.attacks.solve import Recovery, combine, recover
from pl_fed.context import RoundContext
from pl_fed.errors import FishedModelError, TooFewClientsError
from pl_fed.privacy.pairwise.errors import ProtocolError

FOUND_OUT = (ProtocolError, TooFewClientsError, FishedModelError)  # how a run ends whose clients notice
SMALL = 0.3  # size of the embeddings where they must hold still for several steps


@dataclass
class SeenClient:
    """What the owner of the data knows of a client: the labels that it trained on, and how often it stepped.

    Args:
        counts: Its label counts so far.
        num_batches: Its batches so far.
    """

    counts: Int[Tensor, " classes"]
    num_batches: int = 0


@dataclass
class AttackedRound:
    """One round of the attack.

    Args:
        head_name: The final layer.
        norm_name: The cut norm.
        models: The crafted models.
        assignment: Which of them each client of the cohort is sent.
        num_rounds: How many such rounds separate everybody.
        seen: The truth, which the attack does not get.
        optimizer: The clients' optimizer, which the server chose.
    """

    head_name: str
    norm_name: str
    models: FishingModels
    assignment: dict[int, int]
    num_rounds: int
    seen: dict[int, SeenClient] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None


class LiveAttack:
    """Attacks the first rounds of a run, until every client of a cohort was a target once.

    Args:
        loss: What the clients train with.
        local: Their local training; None reads it from the run's optimizer and batches.
        scale_known: False if clients clip their updates or gradients.
        equal_weights: Whether every client counts alike, whatever its examples.
    """

    def __init__(self, loss: LossSpec, local: LocalSteps | None, scale_known: bool, equal_weights: bool) -> None:
        self.loss, self.local = loss, local
        self.scale_known, self.equal_weights = scale_known, equal_weights
        self.now: AttackedRound | None = None
        self.done = False
        self._results: list[tuple[list[int], Recovery, Int[Tensor, "clients classes"]]] = []

    def begin(self, module: LightningModule, forward: Callable[[], object], context: RoundContext, steps: int) -> None:
        """Craft a model for every client of the cohort.

        Args:
            module: A copy of the server's model.
            forward: Runs it on noise.
            context: The round.
            steps: Local steps, to choose the size of the embeddings.

        Raises:
            CannotAttackError: If the attack does not apply to the module.
        """
        target = find_target(module, forward)
        found = {k for ids, recovery, _ in self._results for k, ok in zip(ids, recovery.found, strict=True) if ok}
        order = sorted(context.cohort, key=lambda k: (k in found, k))
        models, plan = aim(module, target, forward, len(order), 1.0 if steps == 1 else SMALL, steps > 1)
        assignment = dict(zip(order, plan[0].tolist(), strict=True))
        self.now = AttackedRound(target.head_name, target.norm_name, models, assignment, len(plan))

    def broadcast(self, module: LightningModule, context: RoundContext) -> None:
        """Put the client's crafted norm into what it is sent: as a federated tensor, or as one of the base model."""
        assert self.now is not None and context.client is not None
        live, sent = dict(module.named_parameters()), context.client.broadcast
        beta = self.now.models.betas[self.now.assignment[context.client.client_id]]
        for part in ("weight", "bias"):
            name = f"{self.now.norm_name}.{part}"
            value = live[name].detach()
            value = torch.zeros_like(value) if part == "weight" else beta.to(value).reshape(value.shape)
            (sent.dense if name in context.server.dense else sent.base)[name] = value

    def count(self, labels: Tensor, count: Callable[[Tensor, int], Tensor], client_id: int, trainer: Trainer) -> None:
        """Note what a client really trains on."""
        assert self.now is not None
        num_classes = self.now.models.logits.shape[1]
        seen = self.now.seen.setdefault(client_id, SeenClient(torch.zeros(num_classes, dtype=torch.long)))
        seen.counts += count(labels, num_classes)
        seen.num_batches += 1
        self.now.optimizer = trainer.optimizers[0]

    def finish(self, module: LightningModule, context: RoundContext, accumulate: int) -> None:
        """Read the aggregate, and put the server's model back.

        Raises:
            CannotAttackError: If the sum says nothing of the head, or clients take unequal numbers of steps.
        """
        assert self.now is not None and context.aggregate is not None and context.previous is not None
        now, self.now = self.now, None
        arrived = sorted(client.client_id for client in context.finished if client.client_id not in context.failures)
        examples = {client.client_id: float(client.num_examples) for client in context.finished}
        try:
            seen = [now.seen[k] for k in arrived]
            weights = torch.tensor([1.0 if self.equal_weights else examples[k] for k in arrived], dtype=torch.float64)
            public = PublicRound(
                torch.tensor([now.assignment[k] for k in arrived]),
                weights / weights.sum(),
                torch.stack([client.counts.sum() for client in seen]),
                self.local or _local_steps(now, seen, accumulate),
                self.loss,
                self.scale_known,
            )
            observation = Observation(_head_update(now, context), now.models, public)
            true = torch.stack([client.counts for client in seen])
            self._results.append((arrived, _with_clipping(recover(observation), context), true))
        finally:
            Adapter(module).write(context.previous)
        self.done = len(self._results) >= now.num_rounds

    def report(self, setting: str) -> AuditReport:
        """Compare what was found with the truth."""
        ids = sorted({k for arrived, *_ in self._results for k in arrived})
        true = torch.zeros(len(ids), self._results[0][2].shape[1], dtype=torch.long)
        taken: set[int] = set()
        recoveries = []
        for arrived, recovery, counts in self._results:
            places = [ids.index(k) for k in arrived]
            recoveries.append(_spread(recovery, places, len(ids)))
            for place, found, row in zip(places, recovery.found.tolist(), counts, strict=True):
                if place not in taken and (found or not bool(true[place].any())):
                    true[place] = row
                if found:
                    taken.add(place)
        sizes = true.sum(1)
        baselines = {"aggregate mix": spread_mix(mix_of(true), sizes)}
        guessed = guess(true.shape[1], sizes)
        report = make_report(combine(recoveries), true, guessed, baselines, setting)
        return replace(report, rows=tuple(replace(row, client=k) for k, row in zip(ids, report.rows, strict=True)))


def _with_clipping(recovery: Recovery, context: RoundContext) -> Recovery:
    """Say in the notes that secure aggregation cut values off, which makes counts wrong."""
    share = context.metrics.get("server/secure_clipped_share", 0.0)
    if share == 0:
        return recovery
    note = (
        f"Secure aggregation clipped {share:.2%} of the values that clients sent in round {context.round_idx}, so "
        "counts may be wrong: that is no defence, since the server chooses learning rate and `clip`."
    )
    return replace(recovery, notes=(*recovery.notes, note))


def _head_update(now: AttackedRound, context: RoundContext) -> HeadUpdate:
    assert context.aggregate is not None and context.previous is not None
    moved = {}
    for part in ("weight", "bias"):
        name = f"{now.head_name}.{part}"
        if name in context.previous.dense:
            moved[part] = (context.aggregate.dense[name].double() - context.previous.dense[name].double()).cpu()
    if "weight" not in moved or not bool(moved["weight"].any()):
        raise CannotAttackError(
            f"Expected an update of `{now.head_name}` in the sum but there is none: it stays on the clients, or is not "
            "trained."
        )
    return HeadUpdate(moved["weight"], moved.get("bias"))


def _local_steps(now: AttackedRound, seen: Sequence[SeenClient], accumulate: int) -> LocalSteps:
    """Return the local training as the server ordered it."""
    steps = {math.ceil(client.num_batches / accumulate) for client in seen}
    if len(steps) > 1:
        raise CannotAttackError(
            f"Expected equal numbers of local steps but clients took {sorted(steps)}: set `local.steps`."
        )
    assert now.optimizer is not None
    group = now.optimizer.param_groups[0]
    kind: Optimizer = "sgd" if isinstance(now.optimizer, torch.optim.SGD) else "adam"
    return LocalSteps(steps.pop(), float(group["lr"]), group.get("momentum", 0.0), group.get("weight_decay", 0.0), kind)


def _spread(recovery: Recovery, places: Sequence[int], num_clients: int) -> Recovery:
    """Return a round's recovery over all clients, those that did not take part as not found."""

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(num_clients, *values.shape[1:]).index_copy_(0, torch.tensor(places), values)

    return replace(
        recovery,
        counts=spread(recovery.counts),
        raw=spread(recovery.raw),
        batch_sizes=spread(recovery.batch_sizes),
        found=spread(recovery.found),
    )
