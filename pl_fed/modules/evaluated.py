"""What every module has in common, whatever its network: settings, optimizers, and evaluation by client.

A module knows nothing of rounds or clients' training: under a plain Trainer it is ordinary training.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pl_fed._lightning import LightningModule
from pl_fed.errors import FederatedConfigError
from pl_fed.modules.evaluation import Evaluation
from pl_fed.modules.reporting import loader_prefixes, log_client_table

Batch = dict[str, Tensor]
OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

# what Lightning's own command line uses: rebuilds the dataclasses from the plain dicts of a checkpoint
_INSTANTIATOR = f"{LightningModule.__module__.partition('.core')[0]}.cli.instantiate_module"


class EvaluatedModule(LightningModule, ABC):
    """A module that is trained with any optimizer and evaluated over all examples and for each client.

    After an evaluation `client_metrics` has each client's figure: prefix of the loader -> client id -> value.

    Args:
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        schedule_interval: Literal["step", "epoch"],
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler, self.schedule_interval = optimizer, lr_scheduler, schedule_interval
        self.client_metrics: dict[str, dict[int, float]] = {}
        self._evaluations: dict[str, Evaluation] = {}
        self._tables: dict[str, tuple[str, dict[int, float]]] = {}
        self._prefixes: list[str] = []

    # Subclasses say what they are.

    @abstractmethod
    def new_evaluation(self) -> Evaluation:
        """Return empty figures for one loader."""

    @abstractmethod
    def evaluate(self, batch: Batch, evaluation: Any, stage: str) -> None:
        """Add a batch to a loader's figures; `stage` is ``val`` or ``test``."""

    # Settings.

    def remember(self, **settings: Any) -> None:
        """Put settings into the hyperparameters as plain values, so that checkpoints load with ``weights_only``."""
        plain = {name: _plain(value) for name, value in settings.items()}
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        self.save_hyperparameters({**plain, "_class_path": path, "_instantiator": _INSTANTIATOR})

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a module with its network from a checkpoint.

        Optimizer and schedule are no settings of the checkpoint: give them again to go on training.

        Args:
            args: The checkpoint's path, and more of `LightningModule.load_from_checkpoint`.
            kwargs: Constructor arguments that replace those in the checkpoint.
        """
        # Lightning rebuilds the arguments from plain values
        return super().load_from_checkpoint(*args, **{name: _plain(value) for name, value in kwargs.items()})

    def of_datamodule(self, name: str, setting: str) -> Any:
        """Return what the Trainer's datamodule says of the data.

        Args:
            name: Attribute of the datamodule.
            setting: The module's own setting, for the error.

        Raises:
            FederatedConfigError: If there is no datamodule or it does not say.
        """
        datamodule = getattr(self._trainer, "datamodule", None)
        found = getattr(datamodule, name, None)
        if found is None:
            raise FederatedConfigError(
                f"Expected `{setting}` or a datamodule with `{name}` but {type(datamodule).__name__} has none: set "
                f"`{setting}`."
            )
        return found

    # Training.

    def configure_optimizers(self) -> Any:
        """Return the optimizer of what is trainable now, and its schedule."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise FederatedConfigError("Expected trainable parameters but all are frozen: check the rule and `lora`.")
        optimizer = _accepted(self.optimizer, trainable, "optimizer")
        if self.lr_scheduler is None:
            return optimizer
        schedule = {
            "scheduler": _accepted(self.lr_scheduler, optimizer, "lr_scheduler"),
            "interval": self.schedule_interval,
            "monitor": "val/loss",  # of a schedule that follows a figure
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Begin with empty figures."""
        self._begin("val", self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Begin with empty figures."""
        self._begin("test", self.trainer.test_dataloaders)

    def _begin(self, stage: str, loaders: Any) -> None:
        self._prefixes, self._evaluations, self._tables = loader_prefixes(stage, loaders), {}, {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to its loader's figures."""
        self.evaluate(batch, self._evaluation(dataloader_idx), "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to its loader's figures."""
        self.evaluate(batch, self._evaluation(dataloader_idx), "test")

    def _evaluation(self, dataloader_idx: int) -> Evaluation:
        prefix = self._prefixes[dataloader_idx]
        if prefix not in self._evaluations:
            self._evaluations[prefix] = self.new_evaluation().to(self.device)
        return self._evaluations[prefix]

    def on_validation_epoch_end(self) -> None:
        """Log the figures."""
        self._report()

    def on_test_epoch_end(self) -> None:
        """Log the figures."""
        self._report()

    def _report(self) -> None:
        for prefix, evaluation in self._evaluations.items():
            table = evaluation.table()
            results = {f"{prefix}/{name}": value for name, value in evaluation.results(table).items()}
            self.log_dict(results, sync_dist=True)  # equal in all processes already
            if table:
                self.client_metrics[prefix] = table
                self._tables[prefix] = evaluation.figure, table
        self._evaluations = {}

    def on_validation_end(self) -> None:
        """Log the clients' figures, in a row of their own after that of the whole."""
        self._log_tables()

    def on_test_end(self) -> None:
        """Log the clients' figures, in a row of their own after that of the whole."""
        self._log_tables()

    def _log_tables(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            for prefix, (figure, table) in self._tables.items():
                log_client_table(self.trainer.loggers, prefix, figure, table)


def client_ids(batch: Batch, size: int) -> Tensor:
    """Return who holds each example of a batch; -1 where it does not say."""
    found = batch.get("client_id")
    return torch.full((size,), -1, device=next(iter(batch.values())).device) if found is None else found


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _accepted(make: Callable[[Any], Any], argument: Any, setting: str) -> Any:
    """Make an optimizer or a schedule; what torch says of their settings becomes one sentence."""
    try:
        return make(argument)
    except FederatedConfigError:
        raise
    except ValueError as error:
        raise FederatedConfigError(
            f"Expected settings of `{setting}` that it accepts but it says: {str(error).rstrip('.')}: correct them."
        ) from error
