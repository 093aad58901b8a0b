"""The label-inference attack inside the rounds of a federation: its server crafts models and reads the sum.

One round separates as many clients as the cut norm has biases, and one more; a larger cohort takes several. What the
server gets is the aggregate that the strategy's secure aggregation leaves it. It then goes on from the model that it
had, as such a server would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pl_fed._lightning import LightningModule
from pl_fed.adapters import Adapter
from pl_fed.attacks.aim import aim
from pl_fed.attacks.audit import SimulatedClients, check_loss
from pl_fed.attacks.baselines import guess, spread_mix
from pl_fed.attacks.cut_norm import find_target
from pl_fed.attacks.report import AuditReport, make_report, mix_of
from pl_fed.attacks.solve import ADAM, Recovery, combine, recover
from pl_fed.callbacks._attacked_round import AttackedRound, LiveSettings, observe
from pl_fed.callbacks._audit_batches import count_examples, count_labels
from pl_fed.callbacks._seen_steps import see_step
from pl_fed.context import RoundContext
from pl_fed.errors import FishedModelError, TooFewClientsError
from pl_fed.privacy.pairwise.errors import ProtocolError

FOUND_OUT = (ProtocolError, TooFewClientsError, FishedModelError)  # how a run ends whose clients notice
ABSURD = 1e6  # raw counts over batch size; beyond, the scale that they were divided by is none
SMALL = 0.3  # size of the embeddings where they must hold still for several steps
OTHER = (
    "The clients train with {}, whose steps the attack cannot invert: their scale is taken as unknown, which names "
    "many labels and few counts exactly."
)


@dataclass(frozen=True)
class RoundResult:
    """What a round of the attack found, beside the truth.

    Args:
        clients: Whose updates were in the sum.
        recovery: What was found of them.
        true: Their label counts.
        batch_sizes: Their numbers of examples.
    """

    clients: tuple[int, ...]
    recovery: Recovery
    true: Int[Tensor, "clients classes"]
    batch_sizes: Int[Tensor, " clients"]

    @property
    def found(self) -> set[int]:
        """Who was separated."""
        return {k for k, found in zip(self.clients, self.recovery.found.tolist(), strict=True) if found}


class LiveAttack:
    """Attacks the first rounds of a run, until every client of the first cohort was separated once.

    A client that drops out of the round that targets it gets another; a round that brings no new one is the last.

    Args:
        settings: What the server knows before.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self.settings = settings
        self.now: AttackedRound | None = None
        self.done = False
        self._wanted: frozenset[int] = frozenset()
        self._results: list[RoundResult] = []

    @property
    def unfinished(self) -> bool:
        """Whether there is something to report though the attack is not over."""
        return bool(self._results) and not self.done

    def begin(
        self,
        module: LightningModule,
        forward: Callable[[], object],
        owner: SimulatedClients[Any],
        context: RoundContext,
        steps: int,
    ) -> None:
        """Craft a model for every client of the cohort.

        Args:
            module: A copy of the server's model.
            forward: Runs it on noise.
            owner: A client with a batch, on which the owner of the data checks that the loss is the one configured.
            context: The round.
            steps: Local steps, to choose the size of the embeddings.

        Raises:
            CannotAttackError: If the attack does not apply to the module or its loss.
        """
        target = find_target(module, forward)
        self._wanted = self._wanted or frozenset(context.cohort)
        found = set().union(*(result.found for result in self._results))
        order = sorted(context.cohort, key=lambda k: (k in found, k not in self._wanted, k))
        models, plan = aim(module, target, forward, len(order), 1.0 if steps == 1 else SMALL, steps > 1)
        check_loss(module, target, models.betas, owner, self.settings.loss)
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

    def count(self, labels: Tensor, client_id: int) -> None:
        """Note what a client really trains on."""
        assert self.now is not None
        seen, num_classes = self.now.client(client_id), self.now.models.logits.shape[1]
        seen.counts += count_labels(labels, num_classes)
        seen.batch_size += count_examples(labels, num_classes)

    def step(self, optimizer: torch.optim.Optimizer, module: LightningModule, client_id: int) -> None:
        """Note what a client's optimizer is about to do."""
        assert self.now is not None
        parameters = dict(module.named_parameters())
        step = see_step(optimizer, parameters, self.now.head_name, self.now.norm_name)
        self.now.client(client_id).steps.append(step)

    def finish(self, module: LightningModule, context: RoundContext) -> None:
        """Read the aggregate, and put the server's model back.

        Raises:
            CannotAttackError: If the sum says nothing of the head, or of a local training that cannot be inverted.
        """
        assert self.now is not None and context.previous is not None
        now, self.now = self.now, None
        arrived = sorted(client.client_id for client in context.finished if client.client_id not in context.failures)
        try:
            observation = observe(now, context, arrived, self.settings)
            seen = [now.seen[k] for k in arrived]
            true, sizes = torch.stack([client.counts for client in seen]), observation.round.batch_sizes
            assert sizes is not None
            kind = seen[0].steps[0].kind if seen[0].steps else ""
            recovery = _with_clipping(_without_scale(_named(recover(observation), kind)), context)
            result = RoundResult(tuple(arrived), recovery, true, sizes)
        finally:
            Adapter(module).write(context.previous)
        before = set().union(*(known.found for known in self._results))
        self._results.append(result)
        missing = self._wanted - before
        nobody_new = len(self._results) >= now.num_rounds and not missing & result.found
        self.done = missing <= result.found or nobody_new

    def report(self, setting: str) -> AuditReport:
        """Compare what was found with the truth."""
        ids = sorted({k for result in self._results for k in result.clients})
        true = torch.zeros(len(ids), self._results[0].true.shape[1], dtype=torch.long)
        sizes = torch.zeros(len(ids), dtype=torch.long)
        taken: set[int] = set()
        recoveries = []
        for result in self._results:
            recoveries.append(_spread(result.recovery, [ids.index(k) for k in result.clients], len(ids)))
            for k, row, size in zip(result.clients, result.true, result.batch_sizes, strict=True):
                place = ids.index(k)
                if k not in taken and (k in result.found or not int(sizes[place])):
                    true[place], sizes[place] = row, size
            taken |= result.found
        baselines = {"aggregate mix": spread_mix(mix_of(true), sizes)}
        guessed = guess(true.shape[1], sizes)
        report = make_report(combine(recoveries), true, guessed, baselines, setting)
        return replace(report, rows=tuple(replace(row, client=k) for k, row in zip(ids, report.rows, strict=True)))


def _without_scale(recovery: Recovery) -> Recovery:
    """Say of clients whose gradients have no scale, as noise may have it, that their counts are far from whole."""
    none = recovery.found & (recovery.raw.abs().amax(1) > ABSURD * recovery.batch_sizes)
    if not bool(none.any()):
        return recovery
    note = f"No scale fits the gradients of {int(none.sum())} clients: their labels are dealt out in proportion only."
    raw = recovery.raw.masked_fill(none[:, None], math.inf)
    return replace(recovery, raw=raw, margin=math.inf, notes=(*recovery.notes, note))


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


def _named(recovery: Recovery, kind: str) -> Recovery:
    """Let the notes name an optimizer that is inverted as roughly as Adam."""
    if kind in ("Adam", "AdamW", ""):
        return recovery
    return replace(recovery, notes=tuple(OTHER.format(kind) if note == ADAM else note for note in recovery.notes))


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
