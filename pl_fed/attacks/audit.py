"""The whole audit of one module on its owner's data: craft, train, sum, attack, compare with the truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pl_fed.attacks.aim import aim
from pl_fed.attacks.baselines import guess, ilrg, llg, mean_gradient, spread_mix
from pl_fed.attacks.cut_norm import CannotAttackError, Forward, Target, find_target
from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps, Observation, PublicRound
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport, make_report, mix_of
from pl_fed.attacks.simulate import aggregate, client_update, loss_mismatch
from pl_fed.attacks.solve import Recovery, combine, recover
from pl_fed.errors import FederatedConfigError

Batch = TypeVar("Batch")
MISMATCH = 0.05  # relative; of a loss that is the one configured it is a rounding error


@dataclass(frozen=True)
class SimulatedClients(Generic[Batch]):
    """The clients of an audited round.

    Args:
        batches: Each client's batches, one a local step.
        loss: The loss of one batch, by the module that is audited.
        true: Each client's label counts over its batches.
        first_mix: Label mix of the first client's first batch.
        batch_sizes: Each client's number of labels over its batches.
        seed: Seed of the clients' dropout.
    """

    batches: Sequence[Sequence[Batch]]
    loss: Callable[[Batch], Tensor]
    true: Int[Tensor, "clients classes"]
    first_mix: Float[Tensor, " classes"]
    batch_sizes: Int[Tensor, " clients"]
    seed: int = 0

    @property
    def one_label_each(self) -> bool:
        """Whether every sample has one label, as the server of such a task knows."""
        return bool((self.true.sum(1) == self.batch_sizes).all())


@dataclass(frozen=True)
class AuditSettings:
    """How the federation trains and sums.

    Args:
        local: The clients' local training.
        loss: What loss the module trains with.
        secure_sum: The secure aggregation: a list of vectors to their sum.
    """

    local: LocalSteps = field(default_factory=LocalSteps)
    loss: LossSpec = field(default_factory=LossSpec)
    secure_sum: SecureSum = field(default_factory=FixedPointSum)

    def __post_init__(self) -> None:
        """Check the sum."""
        if not callable(self.secure_sum):
            raise FederatedConfigError(
                f"Expected `secure_sum` to be a function from the clients' vectors to their sum but got "
                f"{self.secure_sum!r}: give one such as `FixedPointSum(bits=22)`."
            )

    @property
    def scale(self) -> float:
        """Size of the embeddings: small where they must hold still for several steps."""
        return 1.0 if self.local.steps == 1 else 0.3


def audit(
    module: nn.Module, forward: Forward, clients: SimulatedClients[Batch], settings: AuditSettings
) -> AuditReport:
    """Run the attack on simulated clients and compare it with the truth.

    Args:
        module: The module; parameters, buffers, flags and random states come back as they were.
        forward: Runs it on a batch of noise.
        clients: The clients with their data.
        settings: How they train and what sums their updates.

    Raises:
        CannotAttackError: If the attack does not apply to the module or its loss.
    """
    target = find_target(module, forward)
    moving = settings.local.steps > 1
    models, plan = aim(module, target, forward, len(clients.batches), settings.scale, moving)
    check_loss(module, target, models.betas, clients, settings.loss)
    recoveries = [_attack(module, target, models, assignment, clients, settings) for assignment in plan]
    baselines = _baselines(module, target, models, clients, settings)
    guessed = guess(clients.true.shape[1], clients.batch_sizes)
    local = settings.local
    setting = (
        f"{len(clients.batches)} simulated clients, {local.steps} step(s) of {local.optimizer} at lr {local.lr:g}, "
        f"fished at `{target.norm_name}`, head `{target.head_name}`."
    )
    return make_report(combine(recoveries), clients.true, guessed, baselines, setting)


def check_loss(
    module: nn.Module,
    target: Target,
    betas: Float[Tensor, "models width"],
    clients: SimulatedClients[Batch],
    loss: LossSpec,
) -> None:
    """Check that the module trains with this loss.

    Raises:
        CannotAttackError: If its gradient at the head is another one.
    """
    mismatch = loss_mismatch(module, target, betas[0], clients.batches[0][0], clients.loss, clients.first_mix, loss)
    if not mismatch <= MISMATCH:
        raise CannotAttackError(
            f"Expected the gradient of `{loss.name}` (mean) at `{target.head_name}` but the module's differs by "
            f"{mismatch:.2g} of its size: set `loss` (smoothing, class weights) to what the module trains with; a "
            "regression loss cannot be audited."
        )


def _attack(
    module: nn.Module,
    target: Target,
    models: FishingModels,
    assignment: Int[Tensor, " clients"],
    clients: SimulatedClients[Batch],
    settings: AuditSettings,
) -> Recovery:
    """Run one round; the attack itself sees only the observation."""
    updates = [
        client_update(module, target, models.betas[m], batches, clients.loss, settings.local, clients.seed + k)
        for k, (m, batches) in enumerate(zip(assignment.tolist(), clients.batches, strict=True))
    ]
    weights = torch.ones(len(updates), dtype=torch.float64)
    local, loss, sizes = settings.local, settings.loss, clients.batch_sizes
    public = PublicRound(assignment, weights, sizes, local, loss, one_label_each=clients.one_label_each)
    return recover(Observation(aggregate(updates, weights, settings.secure_sum), models, public))


def _baselines(
    module: nn.Module,
    target: Target,
    models: FishingModels,
    clients: SimulatedClients[Batch],
    settings: AuditSettings,
) -> dict[str, Int[Tensor, "clients classes"]]:
    """Return what an honest round's sum says, and what its true label mix would."""
    updates = [
        client_update(module, target, None, batches, clients.loss, settings.local, clients.seed + k)
        for k, batches in enumerate(clients.batches)
    ]
    weights, num_labels = torch.ones(len(updates), dtype=torch.float64), int(clients.batch_sizes.sum())
    summed = aggregate(updates, weights, settings.secure_sum)
    gradient = mean_gradient(summed, settings.local.total, float(len(updates)))
    mixes = {"aggregate mix": mix_of(clients.true), "LLG": llg(gradient, num_labels)}
    if gradient.bias is not None and models.head_bias is not None:
        mixes["iLRG"] = ilrg(gradient, models.head_weight, models.head_bias, num_labels)
    return {name: spread_mix(mix, clients.batch_sizes) for name, mix in mixes.items()}
