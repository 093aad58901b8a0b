"""Audits a training run: which labels could a malicious server read from clients that train this module?

Follows Zhibo Wang et al., "Breaking Secure Aggregation: Label Leakage from Aggregated Gradients in Federated Learning",
INFOCOM 2024, arXiv 2406.15731, re-implemented from the abstract; see `pl_fed.attacks` and docs/label_inference.md.
"""

import math
import warnings
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.adapters import Adapter
from pl_fed.attacks.audit import AuditSettings, audit
from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.preserve import isolated_rng
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport
from pl_fed.callbacks._attacked_round import LiveSettings
from pl_fed.callbacks._audit_batches import all_whole, find_labels
from pl_fed.callbacks._audit_telling import federation_sentence, save, tell
from pl_fed.callbacks._find import find_callback, find_callbacks
from pl_fed.callbacks._lent_module import labels_of, lend
from pl_fed.callbacks._live_attack import FOUND_OUT, LiveAttack
from pl_fed.callbacks._simulated_clients import simulated_clients
from pl_fed.callbacks.client_dp import ClientDP
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.privacy.pairwise.errors import ProtocolError

When = Literal["fit_start", "fit_end", "every_n_epochs", "live"]


class LabelInferenceAttack(Callback):
    """Simulates clients on your own training data, attacks the sum of their updates, and reports beside the truth.

    Works in any Lightning project, federated or not. The audit trains a copy of the module; the module, the random
    states and the loader stay as they are. The report goes to ``label_inference_*.md`` in the run's folder, its figures
    to the loggers as ``audit/*``: label accuracy and exact matches, the guess beside them, rank, condition number and
    rounding margin. Where the attack does not apply (no norm layer with a bias on every path, a frozen head, a
    regression loss), a warning and the report say why.

    With ``when: live`` nothing is simulated: the server of the federation that runs attacks its own rounds, behind the
    secure aggregation that the strategy has, from the first round on until every client of the cohort was a target.
    What these rounds trained is thrown away. Model binding ends the run, and the report says so.

    Several may run in one Trainer. The second of the same `when` writes ``label_inference_*_2.md`` and ``audit_2/*``;
    ``live`` can be given only once.

    Args:
        num_clients: Number of simulated clients; with the loader of a federation its own clients.
        batch_size: Labels of a client and step; None takes the loader's.
        local: The clients' local training; None is one step of SGD at lr 1, which is sharing gradients, or with
            ``live`` that of the run.
        loss: The loss of `training_step`; None is cross-entropy without smoothing or class weights.
        secure_sum: A function from the clients' vectors to their sum, the only view of the server; None is fixed point
            with 22 bits and clip 8.
        when: ``fit_start``, ``fit_end``, ``every_n_epochs`` or ``live``.
        every_n_epochs: Number of epochs between two audits.
        seed: Seed of the choice of examples and of the clients' dropout.

    Example:
        >>> callback = LabelInferenceAttack(num_clients=16, when="fit_end")
    """

    def __init__(
        self,
        num_clients: int = 8,
        batch_size: int | None = None,
        local: LocalSteps | None = None,
        loss: LossSpec | None = None,
        secure_sum: SecureSum | None = None,
        when: When = "fit_start",
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        if not all_whole(1, num_clients, every_n_epochs, batch_size):
            raise FederatedConfigError(
                "Expected whole `num_clients`, `every_n_epochs` and `batch_size` of 1 or more but got "
                f"{num_clients}, {every_n_epochs} and {batch_size}."
            )
        if when not in get_args(When):
            raise FederatedConfigError(f"Expected `when` out of {get_args(When)} but got `{when}`.")
        self.num_clients, self.batch_size, self.seed = num_clients, batch_size, seed
        self.settings = AuditSettings(local or LocalSteps(), loss or LossSpec(), secure_sum or FixedPointSum())
        self.when, self.every_n_epochs = when, every_n_epochs
        self.reports: list[AuditReport] = []
        self._local, self._live = local, cast(LiveAttack | None, None)
        self._context: RoundContext | None = None
        self._interrupted = self._done = False

    def labels(self, batch: Any) -> Tensor:
        """Return a batch's labels, unless the module has `audit_labels(batch)`; override it for unusual batches."""
        return find_labels(batch)

    @property
    def state_key(self) -> str:
        """A name of its own for each kind of audit, so that a checkpoint tells several apart."""
        loss, local = self.settings.loss, self._local
        drawn = {"num_clients": self.num_clients, "batch_size": self.batch_size, "seed": self.seed}
        when = {"when": self.when, "every_n_epochs": self.every_n_epochs}
        return self._generate_state_key(**when, **drawn, local=local, loss=loss)

    def _suffix(self, trainer: Trainer) -> str:
        same = [c for c in find_callbacks(trainer, LabelInferenceAttack) if c.when == self.when]
        return "" if same[0] is self else f"_{same.index(self) + 1}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit before the first step, or make ready for the rounds."""
        if self.when == "fit_start":
            self._run(trainer, pl_module, "start")
        elif self.when == "live":
            if not hasattr(trainer.strategy, "config"):
                raise FederatedConfigError(
                    "Expected federated rounds for `when: live` but the Trainer has none: use FederatedStrategy and a "
                    "loader of rounds, or `when: fit_start`."
                )
            if trainer.world_size > 1:
                raise FederatedConfigError(
                    f"Expected one process for `when: live` but got {trainer.world_size}: set `trainer.devices=1`."
                )
            if self._suffix(trainer):
                raise FederatedConfigError(
                    "Expected one LabelInferenceAttack with `when: live` but got several: two servers cannot craft the "
                    "models of one round, remove all but one."
                )
            private = find_callback(trainer, ClientDP) is not None
            known = not private and not trainer.gradient_clip_val
            self._live = LiveAttack(LiveSettings(self.settings.loss, self._local, known, equal_weights=private))
            self._live.done = self._done

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after every n-th epoch."""
        done = trainer.current_epoch + 1
        if self.when == "every_n_epochs" and done % self.every_n_epochs == 0:
            self._run(trainer, pl_module, f"epoch_{done}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after the last step; report a live attack for which the rounds did not suffice."""
        if self.when == "fit_end":
            self._run(trainer, pl_module, "end")
        if self._live is not None and self._live.unfinished and self._context is not None:
            self._report_live(trainer, self._live, self._context)

    def on_round_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Craft the models of a live attack."""
        live = self._live
        if live is None or live.done:
            return
        self._context = context
        loader: Any = trainer.train_dataloader
        steps = max(len(work.batches) for work in loader.plan.schedule(context.round_idx).work)
        steps = self._local.steps if self._local else math.ceil(steps / trainer.accumulate_grad_batches)
        with isolated_rng(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            try:
                module, one = lend(pl_module, trainer), AuditSettings(loss=self.settings.loss)
                forward, owner = simulated_clients(trainer, module, one, 1, None, self.labels, self.seed)
                live.begin(module, forward, owner, context, steps)
            except CannotAttackError as reason:
                self._give_up(trainer, "live", reason)

    def on_broadcast(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Send a crafted model."""
        if self._live is not None and self._live.now is not None:
            self._live.broadcast(pl_module, context)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the truth."""
        if self._live is not None and self._live.now is not None and self._context is not None:
            assert self._context.client is not None
            self._live.count(labels_of(pl_module, batch, self.labels), self._context.client.client_id)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note how the server lets its clients train."""
        if self._live is not None and self._live.now is not None and self._context is not None:
            assert self._context.client is not None
            self._live.step(optimizer, pl_module, self._context.client.client_id)

    def on_aggregate(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Read the sum."""
        if self._interrupted and context.previous is not None:  # a round of an attack that a resume cut in two
            Adapter(pl_module).write(context.previous)
            self._interrupted = False
        if self._live is None or self._live.now is None:
            return
        try:
            self._live.finish(pl_module, context)
        except CannotAttackError as reason:
            self._give_up(trainer, "live", reason)
            return
        if self._live.done:
            self._report_live(trainer, self._live, context)

    def state_dict(self) -> dict[str, Any]:
        """Return how far a live attack is; one that is interrupted begins anew in the next round."""
        live = self._live
        return {"attacking": live is not None and live.now is not None, "done": live is not None and live.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what is left of a live attack."""
        self._interrupted, self._done = bool(state_dict["attacking"]), bool(state_dict["done"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that a live attack was found out."""
        if self._live is not None and self._live.now is not None and isinstance(exception, FOUND_OUT):
            by = "secure aggregation" if isinstance(exception, ProtocolError) else "the clients"
            self._save(trainer, "live", f"# Label inference audit\n\nStopped by {by}: {exception}\n")

    def _report_live(self, trainer: Trainer, live: LiveAttack, context: RoundContext) -> None:
        self._told(trainer, "live", live.report(federation_sentence(trainer, context)))

    def _told(self, trainer: Trainer, name: str, report: AuditReport) -> None:
        self.reports.append(report)
        tell(trainer, report, self._suffix(trainer))
        self._save(trainer, name, report.markdown())

    def _save(self, trainer: Trainer, name: str, text: str) -> None:
        save(trainer, f"{name}{self._suffix(trainer)}", text)

    def _give_up(self, trainer: Trainer, name: str, reason: CannotAttackError) -> None:
        """Say why there is nothing to report; a module that cannot be attacked is no error."""
        if self._live is not None:
            self._live.now, self._live.done = None, True
        warnings.warn(f"The label inference audit does not apply: {reason}", stacklevel=2)
        text = f"# Label inference audit\n\nDoes not apply: {reason}\n\nThat is no proof of safety.\n"
        self._save(trainer, name, text)

    def _run(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        """Audit a copy on one process."""
        if not trainer.is_global_zero:
            return
        with isolated_rng(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            try:
                report = self._audit(trainer, lend(pl_module, trainer))
            except CannotAttackError as reason:
                self._give_up(trainer, name, reason)
                return
        self._told(trainer, name, report)

    def _audit(self, trainer: Trainer, module: LightningModule) -> AuditReport:
        forward, clients = simulated_clients(
            trainer, module, self.settings, self.num_clients, self.batch_size, self.labels, self.seed
        )
        return audit(module, forward, clients, self.settings)
