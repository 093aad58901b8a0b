"""Audits a training run: which labels could a malicious server read from clients that train this module?

Follows Zhibo Wang et al., "Breaking Secure Aggregation: Label Leakage from Aggregated Gradients in Federated Learning",
INFOCOM 2024, arXiv 2406.15731, re-implemented from the abstract; see `pl_fed.attacks` and docs/label_inference.md.
"""

import warnings
from typing import Any, Literal, cast, get_args

import torch
from rich import get_console
from torch import Tensor

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.adapters import Adapter
from pl_fed.attacks.audit import AuditSettings, SimulatedClients, audit
from pl_fed.attacks.cut_norm import CannotAttackError, find_target
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.preserve import isolated_rng
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport
from pl_fed.callbacks._audit_batches import all_whole, count_labels, draw_batches, find_labels, noise_like
from pl_fed.callbacks._audit_logging import log_report
from pl_fed.callbacks._find import find_callback
from pl_fed.callbacks._lent_module import labels_of, lend, loss_of
from pl_fed.callbacks._live_attack import FOUND_OUT, LiveAttack
from pl_fed.callbacks._run_folder import replace_text, run_folder, writes_files
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
            private = find_callback(trainer, ClientDP) is not None
            known = not private and not trainer.gradient_clip_val
            self._live = LiveAttack(self.settings.loss, self._local, known, equal_weights=private)
            self._live.done = self._done

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after every n-th epoch."""
        done = trainer.current_epoch + 1
        if self.when == "every_n_epochs" and done % self.every_n_epochs == 0:
            self._run(trainer, pl_module, f"epoch_{done}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after the last step."""
        if self.when == "fit_end":
            self._run(trainer, pl_module, "end")

    def on_round_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Craft the models of a live attack."""
        live = self._live
        if live is None or live.done:
            return
        self._context = context
        loader: Any = trainer.train_dataloader
        steps = max(len(work.batches) for work in loader.plan.schedule(context.round_idx).work)
        (((batch,),)) = draw_batches(loader, 1, 1, seed=self.seed)
        with isolated_rng(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            module = lend(pl_module, trainer)
            noise, loss = noise_like(trainer.strategy.batch_to_device(batch, module.device), self.seed), loss_of(module)
            try:
                live.begin(module, lambda: loss(noise), context, self._local.steps if self._local else steps)
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
            labels = labels_of(pl_module, batch, self.labels)
            self._live.count(labels, count_labels, self._context.client.client_id, trainer)

    def on_aggregate(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Read the sum."""
        if self._interrupted and context.previous is not None:  # a round of an attack that a resume cut in two
            Adapter(pl_module).write(context.previous)
            self._interrupted = False
        if self._live is None or self._live.now is None:
            return
        try:
            self._live.finish(pl_module, context, trainer.accumulate_grad_batches)
        except CannotAttackError as reason:
            self._give_up(trainer, "live", reason)
            return
        if self._live.done:
            report = self._live.report(_setting(trainer, context))
            self._tell(trainer, report)
            _save(trainer, "live", report.markdown())

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
            _save(trainer, "live", f"# Label inference audit\n\nStopped by {by}: {exception}\n")

    def _give_up(self, trainer: Trainer, name: str, reason: CannotAttackError) -> None:
        """Say why there is nothing to report; a module that cannot be attacked is no error."""
        if self._live is not None:
            self._live.now, self._live.done = None, True
        warnings.warn(f"The label inference audit does not apply: {reason}", stacklevel=2)
        text = f"# Label inference audit\n\nDoes not apply: {reason}\n\nThat is no proof of safety.\n"
        _save(trainer, name, text)

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
        self._tell(trainer, report)
        _save(trainer, name, report.markdown())

    def _tell(self, trainer: Trainer, report: AuditReport) -> None:
        self.reports.append(report)
        log_report(trainer, report)
        get_console().print(
            f"Label inference audit: label accuracy {report.label_accuracy:.3f}, exact {report.exact_match:.3f}, guess "
            f"{report.guess:.3f}; rank {report.rank} of {report.num_models}, condition {report.condition:.3g}, margin "
            f"{report.margin:.3g}",
            markup=False,
            highlight=False,
        )

    def _audit(self, trainer: Trainer, module: LightningModule) -> AuditReport:
        loader, local = trainer.train_dataloader, self.settings.local

        def to_device(batch: Any) -> Any:
            return trainer.strategy.batch_to_device(batch, module.device)

        loss = loss_of(module)
        drawn = draw_batches(loader, self.num_clients, local.steps, self.batch_size, self.seed)
        batches = [[to_device(batch) for batch in client] for client in drawn]
        noise = noise_like(batches[0][0], self.seed)
        num_classes = find_target(module, lambda: loss(noise)).head.out_features
        labels = [[labels_of(module, batch, self.labels) for batch in client] for client in batches]
        counts = [[count_labels(part, num_classes) for part in client] for client in labels]
        sizes = [sum(len(part) for part in client) for client in labels]
        first_mix = counts[0][0].double() / len(labels[0][0])
        true = torch.stack([torch.stack(client).sum(0) for client in counts])
        clients = SimulatedClients(batches, loss, true, first_mix, torch.tensor(sizes), self.seed)
        return audit(module, lambda: loss(noise), clients, self.settings)


def _save(trainer: Trainer, name: str, text: str) -> None:
    if writes_files(trainer):
        replace_text(run_folder(trainer) / f"label_inference_{name}.md", text)


def _setting(trainer: Trainer, context: RoundContext) -> str:
    """Say in a sentence what was attacked."""
    config: Any = trainer.strategy.config  # type: ignore[attr-defined]  # checked on start
    secure, rule = config.secure_aggregation, type(config.rule).__name__
    behind = "no secure aggregation" if secure is None else f"secure aggregation ({secure.backend}, {secure.bits} bits)"
    bound = " and model binding" if secure is not None and secure.binding else ""
    return f"The federation's own rounds up to {context.round_idx}: {rule}, {behind}{bound}."
