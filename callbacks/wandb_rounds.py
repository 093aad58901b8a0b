"""Makes W&B's charts count rounds, and gives each W&B run its config and its result files.

W&B draws a metric against the step metric that it was defined with. Lightning defines ``*`` with its count of steps,
which in a federation counts the batches of all clients; and of several patterns that fit a name, W&B takes any. So
every name is also defined by itself, once it is known.

Offline, a run id must not be used twice: when both parts are synchronised, one loses its rows. A resumed offline run is
therefore a new W&B run. Give the logger a `group` and no `id` or `version`: then both parts are in one group, and the
second one's config names the first under ``resumed_from``.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.callbacks._run_folder import run_folder, writes_files
from pl_fed.context import RoundContext
from pl_fed.errors import FederatedConfigError

PATTERNS = ("server/*", "val/*", "test*")  # W&B knows `*` at the end only
PREFIXES = ("server/", "val", "test")
UPLOAD = ("summary.json", "partition.png", "partition.csv", "clients.csv", "plots/*.png", "audit.html")


class WandbRounds(Callback):
    """Sets up the runs of every `WandbLogger`: online, offline and disabled; without one it does nothing.

    In a federated run ``round`` becomes the x-axis of ``server/...``, ``val/...`` and ``test...``. The resolved config
    is added to the run's config: `config`, or ``trainer.resolved_config`` (a dict, a path or YAML text), or
    ``config.yaml`` in the run's folder.

    Args:
        config: The run's resolved config.
        upload: Files in the run's folder to add to the W&B run when a stage ends; ``*`` fits any name.

    Example:
        >>> callback = WandbRounds(upload=["summary.json"])
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        upload: Sequence[str] = UPLOAD,
    ) -> None:
        self.config, self.upload = config, tuple(upload)
        self._round: int | None = None  # the last one that ended
        self._defined: set[str] = set()
        self._current: dict[str, str] = {}  # id and group of the run
        self._previous: dict[str, str] = {}  # those of the run that wrote the checkpoint

    # ------------------------------------------------------------------ set-up

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the config, and name the run that this one continues.

        Raises:
            FederatedConfigError: If an offline run is resumed under the id of the run that wrote the checkpoint.
        """
        self._defined = set()
        for run in wandb_runs(trainer):
            if trainer.ckpt_path is not None and not is_disabled(run):
                self._check_resumed(run)
            self._note(run)
        self._add_config(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the config again: Lightning has put the module's hyperparameters over what has the same name."""
        self._add_config(trainer)

    def _add_config(self, trainer: Trainer) -> None:
        for run in wandb_runs(trainer):
            if config := self._resolved_config(trainer):
                run.config.update(config, allow_val_change=True)

    def _resolved_config(self, trainer: Trainer) -> dict[str, Any]:
        """Find the config; in an attribute of the Trainer, text is YAML and a path is that of a file."""
        found: Any = self.config if self.config is not None else getattr(trainer, "resolved_config", None)
        if found is None:
            found = run_folder(trainer) / "config.yaml"
        if isinstance(found, Path):
            found = found.read_text(encoding="utf-8") if found.is_file() else ""
        return dict((yaml.safe_load(found) if isinstance(found, str) else found) or {})

    def _check_resumed(self, run: Any) -> None:
        earlier = self._previous.get("id")
        if earlier is None or earlier == self._current.get("id"):
            return  # no W&B run before, or one that is still open in this process
        if run.id != earlier:
            run.config.update({"resumed_from": earlier}, allow_val_change=True)
            if (run.group or "") != self._previous["group"]:
                warnings.warn(
                    f"Expected the group `{self._previous['group']}` of the run `{earlier}` that wrote the checkpoint "
                    f"but got `{run.group or ''}`: set the `WandbLogger`'s `group` to see both together.",
                    stacklevel=2,
                )
        elif run.offline:
            raise FederatedConfigError(
                f"Expected a new W&B run for the resumed training but got the id `{earlier}` again: offline, W&B would "
                "lose rows of one of them. Give the `WandbLogger` no `id` or `version`; set `group` to keep both "
                "together."
            )

    def _note(self, run: Any) -> None:
        if not is_disabled(run):
            self._current = {"id": str(run.id), "group": str(run.group or "")}

    # ------------------------------------------------------------------ rounds

    def on_round_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Define the x-axis, now that there are rounds."""
        self._define(trainer, ())

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Note the round."""
        self._round = context.round_idx
        self._define(trainer, context.metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Define the names that this round brought."""
        self._define_logged(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the round into the row of the validation metrics, which Lightning logs next."""
        if not trainer.sanity_checking:
            self._log_round(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Define the names that this validation brought, before the module logs its clients' table."""
        if not trainer.sanity_checking:
            self._define_logged(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the round into the row of the test metrics."""
        self._log_round(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Define the names of the test metrics."""
        self._define_logged(trainer)

    def _log_round(self, trainer: Trainer) -> None:
        if self._round is not None:
            self._define_logged(trainer)
            for run in wandb_runs(trainer):
                run.log({"round": self._round}, commit=False)

    def _define_logged(self, trainer: Trainer) -> None:
        if self._round is not None:  # a run without rounds keeps Lightning's x-axis
            self._define(trainer, trainer.callback_metrics)

    def _define(self, trainer: Trainer, names: Iterable[str]) -> None:
        found = {name for name in names if name.startswith(PREFIXES)}
        tables = {f"{name.partition('/')[0]}/clients" for name in found if "/" in name}
        new = {*PATTERNS, *found, *tables} - self._defined
        for run in wandb_runs(trainer):
            if not self._defined:
                run.define_metric("round")
            for name in sorted(new):
                run.define_metric(name, step_metric="round")
        self._defined |= new

    # ------------------------------------------------------------------ end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the result files, after every callback wrote its own."""
        if not writes_files(trainer):
            return
        folder = run_folder(trainer)
        for run in wandb_runs(trainer):
            for pattern in self.upload:
                for path in sorted(folder.glob(pattern)):
                    run.save(str(path.absolute()), base_path=str(folder.absolute()), policy="now")
            self._note(run)

    # ------------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the last round, and the id and group of the W&B run."""
        return {"round": self._round, "run": dict(self._current)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the run that wrote the checkpoint."""
        self._round, self._previous = state_dict["round"], dict(state_dict["run"])


def wandb_runs(trainer: Trainer) -> Iterator[Any]:
    """Yield the run of every `WandbLogger`, of either copy of Lightning, on the process that logs."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if any(base.__name__ == "WandbLogger" for base in type(logger).__mro__):
            yield logger.experiment  # type: ignore[attr-defined]  # a `WandbLogger` has it


def is_disabled(run: Any) -> bool:
    """Tell whether a run discards everything."""
    return type(run).__name__ in ("NoopRun", "RunDisabled") or bool(run.disabled)
