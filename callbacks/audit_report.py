"""Writes the audit page: what each attack still finds under each defence, for people who decide."""

import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.attacks.audit import AuditSettings, audit
from pl_fed.attacks.cut_norm import CannotAttackError
from pl_fed.attacks.defences import DEFENCES, audit_defences
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.preserve import isolated_rng
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport
from pl_fed.callbacks._audit_batches import all_whole, find_labels
from pl_fed.callbacks._audit_logging import log_clients, log_page, log_table
from pl_fed.callbacks._audit_page import page, write_page, write_refusal
from pl_fed.callbacks._audit_result import Accuracy, AuditResult
from pl_fed.callbacks._find import find_callback
from pl_fed.callbacks._lent_module import lend
from pl_fed.callbacks._run_folder import run_folder, writes_files
from pl_fed.callbacks._simulated_clients import simulated_clients
from pl_fed.callbacks.label_inference_attack import LabelInferenceAttack
from pl_fed.errors import FederatedConfigError

When = Literal["fit_start", "fit_end"]


class AuditPage(Callback):
    """Runs every attack under every defence on your own training data and writes one page about it.

    Works in any Lightning project, federated or not. ``audit.html`` in the run's folder needs no other file;
    ``audit.md``, ``audit.csv`` and ``audit.json`` beside it have the same figures. Loggers get
    ``audit/<attack>/<defence>/label_accuracy``, and tables where they have tables; W&B has the page too. It shows the
    latest report of a `LabelInferenceAttack` that is listed before, client by client; without one it makes its own.
    Where the audit does not apply, a warning and the page say why. The audit trains a copy of the module.

    Args:
        num_clients: Number of simulated clients; with the loader of a federation its own clients.
        batch_size: Labels of a client and step; None takes the loader's.
        local: The clients' local training; None is one step of SGD at lr 1, which is sharing gradients.
        loss: The loss of `training_step`; None is cross-entropy without smoothing or class weights.
        secure_sum: A function from the clients' vectors to their sum; None is fixed point with 22 bits and clip 8.
        when: ``fit_start`` or ``fit_end``.
        accuracy: What training under each defence costs, where it was measured: name of the defence to the mean of a
            test figure, its standard deviation and the number of seeds.
        seed: Seed of the choice of examples, of the clients' dropout and of noise.

    Example:
        >>> callback = AuditPage(num_clients=16, accuracy={"none": (0.91, 0.01, 3), "DP 1": (0.84, 0.02, 3)})
    """

    def __init__(
        self,
        num_clients: int = 8,
        batch_size: int | None = None,
        local: LocalSteps | None = None,
        loss: LossSpec | None = None,
        secure_sum: SecureSum | None = None,
        when: When = "fit_end",
        accuracy: Mapping[str, tuple[float, float, int]] | None = None,
        seed: int = 0,
    ) -> None:
        if not all_whole(2, num_clients) or not all_whole(1, batch_size):
            raise FederatedConfigError(
                "Expected whole `num_clients` of 2 or more, which is what a sum can hide, and `batch_size` of 1 or "
                f"more but got {num_clients} and {batch_size}."
            )
        if when not in get_args(When):
            raise FederatedConfigError(f"Expected `when` out of {get_args(When)} but got `{when}`.")
        self.num_clients, self.batch_size, self.when, self.seed = num_clients, batch_size, when, seed
        self.settings = AuditSettings(local or LocalSteps(), loss or LossSpec(), secure_sum or FixedPointSum())
        self.accuracy = _accuracies(accuracy or {})
        self.result: AuditResult | None = None

    def labels(self, batch: Any) -> Tensor:
        """Return a batch's labels, unless the module has `audit_labels(batch)`; override it for unusual batches."""
        return find_labels(batch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page before the first step."""
        if self.when == "fit_start":
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page after the last step."""
        if self.when == "fit_end":
            self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with isolated_rng(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            try:
                self.result = self._audit(trainer, lend(pl_module, trainer))
            except CannotAttackError as reason:
                warnings.warn(f"The audit does not apply: {reason} That is no proof of safety.", stacklevel=2)
                if writes_files(trainer):
                    write_refusal(run_folder(trainer), str(reason))
                return
        self._log(trainer, self.result)
        if writes_files(trainer):
            write_page(run_folder(trainer), self.result)

    def _audit(self, trainer: Trainer, module: LightningModule) -> AuditResult:
        forward, clients = simulated_clients(
            trainer, module, self.settings, self.num_clients, self.batch_size, self.labels, self.seed
        )
        rows = audit_defences(module, forward, clients, self.settings)
        known = self._reports(trainer)
        report = known[-1] if known else audit(module, forward, clients, self.settings)
        local = self.settings.local
        setting = (
            f"{type(module).__name__}, {self.num_clients} simulated clients with {_sizes(clients.batch_sizes)} labels "
            f"each in {clients.true.shape[1]} classes, {local.steps} step(s) of {local.optimizer} at lr {local.lr:g}."
        )
        return AuditResult(rows, setting, report, self.accuracy)

    def _reports(self, trainer: Trainer) -> list[AuditReport]:
        """Return those of a `LabelInferenceAttack` so far."""
        other = find_callback(trainer, LabelInferenceAttack)
        return [] if other is None else other.reports

    def _log(self, trainer: Trainer, result: AuditResult) -> None:
        figures = {
            f"audit/{_slug(row.attack)}/{_slug(row.defence)}/label_accuracy": row.label_accuracy for row in result.rows
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        if result.report not in self._reports(trainer):  # else they are logged already
            log_clients(trainer, result.report)
        log_table(trainer, "audit", ["defence", *result.attacks, "tripwire alarms", result.figure], result.table())
        log_page(trainer, page(result))


def _accuracies(given: Mapping[str, Any]) -> dict[str, Accuracy]:
    """Check what the user measured, so that no figure is left out of the page in silence."""
    names = [defence.name for defence in DEFENCES]
    if unknown := sorted(set(given) - set(names)):
        raise FederatedConfigError(f"Expected defences out of {names} in `accuracy` but got {unknown}.")
    for name, figures in given.items():
        if not isinstance(figures, tuple | list) or len(figures) != 3:
            raise FederatedConfigError(
                f"Expected mean, standard deviation and number of seeds for `{name}` in `accuracy` but got {figures!r}"
                ": give three numbers, such as [0.91, 0.01, 3]."
            )
    return {name: Accuracy(*figures) for name, figures in given.items()}


def _sizes(batch_sizes: Tensor) -> str:
    least, most = int(batch_sizes.min()), int(batch_sizes.max())
    return str(least) if least == most else f"{least} to {most}"


def _slug(name: str) -> str:
    """Return a name for a logger.

    Example:
        >>> _slug("DP 0.3"), _slug("local norm layers")
        ('dp_0.3', 'local_norm_layers')
    """
    return re.sub(r"[^a-z0-9.]+", "_", name.lower())
