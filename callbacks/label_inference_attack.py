"""Audits a training run: which labels could a malicious server read from clients that train this module?

Follows Zhibo Wang et al., "Breaking Secure Aggregation: Label Leakage from Aggregated Gradients in Federated Learning",
INFOCOM 2024, arXiv 2406.15731, re-implemented from the abstract; see `pl_fed.attacks` and docs/label_inference.md.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from rich import get_console
from torch import Tensor

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.attacks.audit import AuditSettings, SimulatedClients, audit
from pl_fed.attacks.cut_norm import CannotAttackError, find_target
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.preserve import isolated_rng
from pl_fed.attacks.quantise import FixedPointSum, SecureSum
from pl_fed.attacks.report import AuditReport
from pl_fed.callbacks._audit_batches import count_labels, draw_batches, find_labels, noise_like
from pl_fed.callbacks._run_folder import replace_text, run_folder, writes_files
from pl_fed.errors import FederatedConfigError

When = Literal["fit_start", "fit_end", "every_n_epochs"]


class LabelInferenceAttack(Callback):
    """Simulates clients on your own training data, attacks the sum of their updates, and reports beside the truth.

    Works in any Lightning project, federated or not. The audit trains a copy of the module; the module, the random
    states and the loader stay as they are. The report goes to ``label_inference_*.md`` in the run's folder, its figures
    to the loggers as ``audit/*``: label accuracy and exact matches, the guess beside them, rank, condition number and
    rounding margin. Where the attack does not apply (no norm layer with a bias on every path, a frozen head, a
    regression loss), a warning and the report say why.

    Args:
        num_clients: Number of simulated clients; with the loader of a federation its own clients.
        batch_size: Labels of a client and step; None takes the loader's.
        local: The clients' local training; None is one step of SGD at lr 1, which is sharing gradients.
        loss: The loss of `training_step`; None is cross-entropy without smoothing or class weights.
        secure_sum: A function from the clients' vectors to their sum, the only view of the server; None is fixed point
            with 22 bits and clip 8.
        when: ``fit_start``, ``fit_end`` or ``every_n_epochs``.
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
        if num_clients < 1 or every_n_epochs < 1 or (batch_size is not None and batch_size < 1):
            raise FederatedConfigError(
                "Expected `num_clients`, `every_n_epochs` and `batch_size` of 1 or more but got "
                f"{num_clients}, {every_n_epochs} and {batch_size}."
            )
        if when not in get_args(When):
            raise FederatedConfigError(f"Expected `when` out of {get_args(When)} but got `{when}`.")
        self.num_clients, self.batch_size, self.seed = num_clients, batch_size, seed
        self.settings = AuditSettings(local or LocalSteps(), loss or LossSpec(), secure_sum or FixedPointSum())
        self.when, self.every_n_epochs = when, every_n_epochs
        self.reports: list[AuditReport] = []

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of a batch; override it where they are neither under a usual name nor last."""
        return find_labels(batch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit before the first step."""
        if self.when == "fit_start":
            self._run(trainer, pl_module, "start")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after every n-th epoch."""
        done = trainer.current_epoch + 1
        if self.when == "every_n_epochs" and done % self.every_n_epochs == 0:
            self._run(trainer, pl_module, f"epoch_{done}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit after the last step."""
        if self.when == "fit_end":
            self._run(trainer, pl_module, "end")

    def _run(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        """Audit a copy on one process; a module that cannot be attacked is no error."""
        if not trainer.is_global_zero:
            return
        path = run_folder(trainer) / f"label_inference_{name}.md"
        with isolated_rng(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            try:
                report = self._audit(trainer, _lend(pl_module, trainer))
            except CannotAttackError as reason:
                warnings.warn(f"The label inference audit does not apply: {reason}", stacklevel=2)
                text = f"# Label inference audit\n\nDoes not apply: {reason}\n\nThat is no proof of safety.\n"
            else:
                self._tell(trainer, report)
                text = report.markdown()
        if writes_files(trainer):
            replace_text(path, text)

    def _tell(self, trainer: Trainer, report: AuditReport) -> None:
        self.reports.append(report)
        for logger in trainer.loggers:
            logger.log_metrics(report.metrics(), step=trainer.global_step)
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

        loss = _loss(module)
        drawn = draw_batches(loader, self.num_clients, local.steps, self.batch_size, self.seed)
        batches = [[to_device(batch) for batch in client] for client in drawn]
        noise = noise_like(batches[0][0], self.seed)
        num_classes = find_target(module, lambda: loss(noise)).head.out_features
        labels = [[self.labels(batch) for batch in client] for client in batches]
        counts = [[count_labels(part, num_classes) for part in client] for client in labels]
        sizes = [sum(len(part) for part in client) for client in labels]
        first_mix = counts[0][0].double() / len(labels[0][0])
        true = torch.stack([torch.stack(client).sum(0) for client in counts])
        clients = SimulatedClients(batches, loss, true, first_mix, torch.tensor(sizes), self.seed)
        return audit(module, lambda: loss(noise), clients, self.settings)


def _lend(pl_module: LightningModule, trainer: Trainer) -> LightningModule:
    """Return a copy that logs nothing: also metrics and other state outside of parameters stay as they are."""
    if not pl_module.automatic_optimization:
        raise FederatedConfigError(
            f"Expected automatic optimization for LabelInferenceAttack but {type(pl_module).__name__} steps by itself: "
            "let `training_step` return the loss."
        )
    module = copy.deepcopy(pl_module)
    module.trainer = trainer
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    module.log, module.log_dict = nothing, nothing  # type: ignore[method-assign]
    return module


def _loss(module: LightningModule) -> Callable[[Any], Tensor]:
    def loss(batch: Any) -> Tensor:
        output = module.training_step(batch, 0)
        return cast(Tensor, output["loss"] if isinstance(output, dict) else output)

    return loss
