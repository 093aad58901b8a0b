"""The attacks of an audit on the sums that a defence leaves: every client trains once under each model."""

from dataclasses import dataclass, replace
from typing import Generic

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.aim import aim
from pl_fed.attacks.audit import AuditSettings, Batch, SimulatedClients, check_loss
from pl_fed.attacks.baselines import guess, ilrg, llg, mean_gradient, spread_mix
from pl_fed.attacks.cohorts import recover_over_rounds
from pl_fed.attacks.cut_norm import Forward, find_target
from pl_fed.attacks.defended import Defence, Sent, defended_sum, noised, simulate
from pl_fed.attacks.observation import HeadUpdate, Observation, PublicRound
from pl_fed.attacks.report import mix_of
from pl_fed.attacks.solve import Recovery, combine, recover
from pl_fed.rounds import derive_seed

FISHING, SAME, TRUE_MIX = "fishing", "same model", "true mix"
ATTACKS = (FISHING, SAME, "LLG", "iLRG", TRUE_MIX)
EVADING = 0.1  # a norm weight that leaves the tripwire silent and embeddings nearly as they are
View = tuple[HeadUpdate | None, Tensor]  # the sum, if anything was sent, and who is in it


@dataclass(frozen=True)
class Outcome:
    """What an attack found in one draw of a defence's noise.

    Args:
        counts: Label counts; 0 where nothing was found.
        found: Whose counts were found.
        blocked: From whom nothing reached the server.
        recovery: What the attack says of its linear system; None if it has none, or nothing was sent.
    """

    counts: Int[Tensor, "clients classes"]
    found: Bool[Tensor, " clients"]
    blocked: Bool[Tensor, " clients"]
    recovery: Recovery | None = None


class Simulation(Generic[Batch]):
    """Every client trains once under each model; a defence changes only what is summed.

    Args:
        module: The module; it comes back as it was.
        forward: Runs it on a batch of noise.
        clients: The clients with their data.
        settings: How they train and what sums their updates.
        scale: Size of the embeddings: noise hides less, or more, at another one.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Forward,
        clients: SimulatedClients[Batch],
        settings: AuditSettings,
        scale: float,
    ) -> None:
        self.clients, self.settings = clients, settings
        target = find_target(module, forward)
        moving = settings.local.steps > 1
        self.models, self.plan = aim(module, target, forward, len(clients.batches), scale, moving)
        self.common = self.models.at([0])
        check_loss(module, target, self.common.betas, clients, settings.loss)
        self.all = torch.ones(len(clients.batches), dtype=torch.bool)
        self.one = torch.zeros(len(self.all), dtype=torch.long)
        self.fished = [simulate(module, target, self.models, models, clients, settings) for models in self.plan]
        self.same = simulate(module, target, self.common, self.one, clients, settings)
        evading = [
            simulate(module, target, chosen, models, clients, settings, EVADING)
            for chosen, models in ((self.common, self.one), *((self.models, models) for models in self.plan))
        ]
        self.same_evading, self.fished_evading = evading[0], evading[1:]
        self.honest = simulate(module, target, None, None, clients, settings)
        self._sums: dict[tuple[str, int, str], View] = {}
        self.participation = _participation(len(self.all), clients.seed)
        self.guess = label_accuracy(guess(clients.true.shape[1], clients.batch_sizes), clients.true)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that apply."""
        has_bias = self.honest.updates[0].bias is not None
        return tuple(name for name in ATTACKS if has_bias or name != "iLRG")

    def scores(self, outcome: Outcome) -> Float[Tensor, "4"]:
        """Return label accuracy, exact matches, the guess and who was blocked, each as a mean over clients."""
        true, found = self.clients.true, outcome.found
        accuracy = torch.where(found, label_accuracy(outcome.counts, true), self.guess)
        exact = (exact_match(outcome.counts, true) & found).double()
        return torch.stack([x.mean() for x in (accuracy, exact, self.guess, outcome.blocked.double())])

    def sent(self, attack: str, defence: Defence, round_idx: int = 0) -> Sent:
        """Return what clients would send in a round of an attack, if the defence let them."""
        if attack not in (FISHING, SAME) or defence.kind == "local_norms":
            return self.honest
        if defence.kind == "evaded":
            return self.fished_evading[round_idx] if attack == FISHING else self.same_evading
        return self.fished[round_idx] if attack == FISHING else self.same

    def run(self, attack: str, defence: Defence, draw: int) -> Outcome:
        """Run one attack under one defence.

        Args:
            attack: One of `attacks`.
            defence: The defence.
            draw: Which noise.
        """
        if attack == FISHING:
            return self._fishing(defence, draw)
        if attack == SAME:
            return self._same(defence, draw)
        return self._baseline(attack, defence, draw)

    def _sum(self, attack: str, round_idx: int, who: Bool[Tensor, " clients"], defence: Defence, draw: int) -> View:
        """Return the server's view of one round of an attack; sums without their noise are kept for other draws."""
        sent = self.sent(attack, defence, round_idx)
        key = (attack, round_idx, "clipped" if defence.clips else defence.kind)
        if key not in self._sums:
            self._sums[key] = defended_sum(sent, defence, self.settings, who)
        total, present = self._sums[key]
        if total is None or defence.noise_multiplier == 0.0:
            return total, present
        seed = derive_seed(self.clients.seed, draw, round_idx, ATTACKS.index(attack))
        return noised(total, defence.noise_multiplier * sent.clip, seed), present

    def _public(self, models: Int[Tensor, " clients"], who: Bool[Tensor, " clients"], defence: Defence) -> PublicRound:
        weights, settings = torch.ones(int(who.sum()), dtype=torch.float64), self.settings
        sizes, single = self.clients.batch_sizes[who], self.clients.one_label_each
        return PublicRound(models[who], weights, sizes, settings.local, settings.loss, not defence.clips, single)

    def _fishing(self, defence: Defence, draw: int) -> Outcome:
        recoveries, present = [], torch.zeros_like(self.all)
        for i, models in enumerate(self.plan):
            total, who = self._sum(FISHING, i, self.all, defence, draw)
            present |= who
            if total is not None:
                recovery = recover(Observation(total, self.models, self._public(models, who, defence)))
                recoveries.append(_spread(recovery, who))
        return self._outcome(combine(recoveries) if recoveries else None, ~present)

    def _same(self, defence: Defence, draw: int) -> Outcome:
        observations, rounds = [], []
        for i, cohort in enumerate(self.participation):
            total, who = self._sum(SAME, i, cohort, defence, draw)
            if total is not None:
                observations.append(Observation(total, self.common, self._public(self.one, who, defence)))
                rounds.append(who)
        if not rounds:
            return self._outcome(None, self.all)
        took_part = torch.stack(rounds)
        return self._outcome(recover_over_rounds(observations, took_part, self.clients.batch_sizes), ~took_part.any(0))

    def _outcome(self, recovery: Recovery | None, blocked: Bool[Tensor, " clients"]) -> Outcome:
        if recovery is None:
            return Outcome(torch.zeros_like(self.clients.true), torch.zeros_like(self.all), blocked)
        return Outcome(recovery.counts, recovery.found, blocked, recovery)

    def _baseline(self, attack: str, defence: Defence, draw: int) -> Outcome:
        """Give every client the mix that an honest round's sum, or the truth, says."""
        sizes = self.clients.batch_sizes
        if attack == TRUE_MIX:
            return Outcome(spread_mix(mix_of(self.clients.true), sizes), self.all, torch.zeros_like(self.all))
        total, who = self._sum(attack, 0, self.all, defence, draw)
        if total is None:
            return self._outcome(None, self.all)
        num_labels = int(sizes[who].sum())
        gradient = mean_gradient(total, self.settings.local.total, float(who.sum()))
        if attack == "LLG":
            mix = llg(gradient, num_labels)
        else:
            assert self.models.head_bias is not None
            mix = ilrg(gradient, self.models.head_weight, self.models.head_bias, num_labels)
        return Outcome(spread_mix(mix, sizes), self.all, ~who)


def _participation(num_clients: int, seed: int) -> Bool[Tensor, "rounds clients"]:
    """Return who takes part in twice as many rounds as there are clients: each with even odds, and two at least."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 0xC0))
    took_part = torch.rand(2 * num_clients, num_clients, generator=generator) < 0.5
    rounds = torch.arange(len(took_part))
    for shift in (0, 1):
        took_part[rounds, (rounds + shift) % num_clients] = True
    return took_part


def _spread(recovery: Recovery, who: Bool[Tensor, " clients"]) -> Recovery:
    """Return a recovery of some clients as one of all; of the others nothing was found."""

    def spread(values: Tensor) -> Tensor:
        whole = torch.zeros(len(who), *values.shape[1:], dtype=values.dtype)
        whole[who] = values
        return whole

    counts, raw = spread(recovery.counts), spread(recovery.raw)
    return replace(
        recovery, counts=counts, raw=raw, batch_sizes=spread(recovery.batch_sizes), found=spread(recovery.found)
    )
