"""Client-level differential privacy: each client's whole update is clipped and noised, and the loss is accounted for.

H. Brendan McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv 1710.06963
(Algorithm 1, with equal weights). It hides whether a client took part, and with it the client's label mix; noise per
example (DP-SGD) would not. The accountant is opacus' (`pip install 'pl_fed[dp]'`).
"""

import math
from typing import Any, Literal, get_args

import torch
from lightning_utilities.core.imports import RequirementCache
from rich import get_console
from torch import Tensor

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import derive_seed
from pl_fed.updates import AdapterState, LayerSlots, Update, scatter_columns, scatter_rows

Accountant = Literal["rdp", "prv"]
OPACUS = RequirementCache("opacus>=1.5")
CLIPPED = "clipped"  # among a client's figures


class ClientDP(Callback):
    """Clips and noises every client's update before it leaves the client; harmless under a plain Trainer.

    A client adds its share of the noise, ``N(0, (noise_multiplier * clip)^2 / n)`` on every value that the server
    could get from any of the n clients of the cohort, so that the sum has the whole of it also behind secure
    aggregation. Every client counts alike, whatever its number of examples. Clients that fail take their noise with
    them; the round is accounted for with what was left. The noise comes from the run's seed, for simulations: a real
    client must draw its own.

    Args:
        clip: Largest norm of an update over all its tensors.
        noise_multiplier: Standard deviation of the sum's noise over `clip`.
        delta: Chance that the bound ``epsilon`` does not hold.
        max_epsilon: Stop before the round that would exceed it; a run whose first round would is refused. Noise that
            clients take with them when they fail is missed only after the round.
        accountant: ``rdp`` or ``prv`` (tighter, slower).
    """

    def __init__(
        self,
        clip: float = 1.0,
        noise_multiplier: float = 1.0,
        delta: float = 1e-5,
        max_epsilon: float | None = None,
        accountant: Accountant = "rdp",
    ) -> None:
        if not 0 < clip < math.inf or not 0 < noise_multiplier < math.inf:
            raise FederatedConfigError(
                "Expected finite `clip` and `noise_multiplier` of ClientDP above 0 but got "
                f"{clip} and {noise_multiplier}."
            )
        if not 0 < delta < 1 or (max_epsilon is not None and not max_epsilon > 0):
            raise FederatedConfigError(
                f"Expected `delta` in (0, 1) and `max_epsilon` above 0 but got {delta} and {max_epsilon}."
            )
        if accountant not in get_args(Accountant):
            raise FederatedConfigError(f"Expected `accountant` out of {get_args(Accountant)} but got `{accountant}`.")
        if not OPACUS:
            raise FederatedConfigError(
                "Expected the package `opacus` for ClientDP but it is not installed: `pip install 'pl_fed[dp]'`."
            )
        self.clip, self.noise_multiplier, self.delta = clip, noise_multiplier, delta
        self.max_epsilon, self.accountant = max_epsilon, accountant
        self.history: list[tuple[float, float]] = []  # noise multiplier and sample rate of each round

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse rules in which one client can count for more than its share.

        Raises:
            FederatedConfigError: If the strategy's rule does not add up updates of equal weight.
        """
        rule = getattr(getattr(trainer.strategy, "config", None), "rule", None)
        if rule is None or stage != "fit":
            return
        plain_sum = rule.averages and not rule.layer_weights and getattr(rule, "aggregation", "delta") == "delta"
        if not plain_sum or rule.mean is not None:
            raise FederatedConfigError(
                f"Expected a rule that takes the plain mean of the updates with ClientDP but got {type(rule).__name__} "
                "with these arguments: one client could move it by more than its share. Use FedIT, FFALoRA, or AFLoRA "
                "with `rank_weights: false` and `aggregation: delta`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no round begin that the budget does not allow, neither the first nor one after a resume.

        Raises:
            FederatedConfigError: If the budget is less than one round, or the Trainer would train on without it.
        """
        plan = getattr(trainer.train_dataloader, "plan", None)
        if self.max_epsilon is None or plan is None:
            return
        if trainer.min_epochs or trainer.min_steps:
            raise FederatedConfigError(
                "Expected no `min_epochs` or `min_steps` of the Trainer with `max_epsilon` of ClientDP but got "
                f"{trainer.min_epochs} and {trainer.min_steps}: Lightning would train on when the budget is spent."
            )
        sample_rate = len(plan.schedule(plan.round_idx).cohort) / len(plan.shards)
        if not self.history and (one := self.epsilon([(self.noise_multiplier, sample_rate)])) > self.max_epsilon:
            raise FederatedConfigError(
                f"Expected `max_epsilon` of ClientDP to allow at least one round but got {self.max_epsilon:g}, and one "
                f"makes epsilon {one:.3g}: raise it or `noise_multiplier`."
            )
        self._stop_if_spent(trainer, sample_rate)

    def on_upload(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Clip the client's update and add its share of the noise."""
        assert context.client is not None and context.client.update is not None
        update = context.client.update
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
        factor = min(1.0, self.clip / norm) if norm > 0 else 1.0
        context.client.figures[CLIPPED] = float(factor < 1.0)
        seed = derive_seed(context.seed, context.round_idx, update.client_id, 0xD9)
        std = self.noise_multiplier * self.clip / math.sqrt(len(context.cohort))
        context.client.update = _noised(update, context.server, factor, std, seed)

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Account for the round; stop if another one would be too many."""
        survived, cohort = context.num_updates, len(context.cohort)
        step = (self.noise_multiplier * math.sqrt(survived / cohort), cohort / max(context.population, cohort))
        self.history.append(step)
        epsilon = self.epsilon()
        context.metrics["server/epsilon"] = epsilon
        context.metrics["server/clipped_clients"] = sum(client.figures.get(CLIPPED, 0.0) for client in context.finished)
        self._stop_if_spent(trainer, step[1])

    def _stop_if_spent(self, trainer: Trainer, sample_rate: float) -> None:
        """End the run if one more round, with all of its noise, would exceed the budget."""
        if self.max_epsilon is None:
            return
        more = self.epsilon([*self.history, (self.noise_multiplier, sample_rate)])
        if more <= self.max_epsilon:
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            get_console().print(
                f"ClientDP ends the run after {len(self.history)} round(s) with epsilon {self.epsilon():.3g}: one more "
                f"would make it {more:.3g}, above `max_epsilon` {self.max_epsilon:g}.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def epsilon(self, history: list[tuple[float, float]] | None = None) -> float:
        """Return epsilon at `delta` after the rounds so far, or after those of `history`.

        Cohorts are taken as Poisson samples of the population, as accountants do.
        """
        from opacus.accountants import PRVAccountant, RDPAccountant

        accountant = RDPAccountant() if self.accountant == "rdp" else PRVAccountant()
        for noise_multiplier, sample_rate in self.history if history is None else history:
            accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
        return float(accountant.get_epsilon(delta=self.delta))

    def state_dict(self) -> dict[str, Any]:
        """Return the accounted rounds."""
        return {"history": [list(step) for step in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the accounted rounds."""
        self.history = [(float(noise), float(rate)) for noise, rate in state_dict["history"]]


def _noised(update: Update, server: AdapterState, factor: float, std: float, seed: int) -> Update:
    """Return a scaled and noised update of weight one, on every slot of the server: empty slots need noise too."""
    generator = torch.Generator().manual_seed(seed)

    def noised(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (value.double() * factor + std * noise.to(value.device)).to(value)

    layers = {}
    for name, part in update.layers.items():
        rank = server.layers[name].a.shape[0]
        a = None if part.a is None else noised(scatter_rows(part.a, part.slots, rank))
        b = None if part.b is None else noised(scatter_columns(part.b, part.slots, rank))
        layers[name] = LayerSlots(torch.arange(rank, device=part.slots.device), a, b)
    dense = {name: noised(value) for name, value in update.dense.items()}
    return Update(update.client_id, 1, layers, dense, digest=update.digest)
