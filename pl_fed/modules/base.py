"""What the LoRA modules have in common: loading, optimizers, checkpoints of the adapter, evaluation by client.

A module knows nothing of rounds or clients' training: under a plain Trainer it is ordinary LoRA fine-tuning.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, cast

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from pl_fed._lightning import LightningModule
from pl_fed.adapters import MERGED, Adapter
from pl_fed.errors import FederatedConfigError
from pl_fed.modules.checkpoint import check_class, is_adapter, matching_state
from pl_fed.modules.evaluation import Evaluation
from pl_fed.modules.loading import (
    add_adapter,
    check_vocabulary,
    is_float32,
    load_base_model,
    load_tokenizer,
    new_modules,
)
from pl_fed.modules.reporting import loader_prefixes, log_client_table
from pl_fed.modules.settings import LoraSettings, ModelLoading

Batch = dict[str, Tensor]
OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]

# what Lightning's own command line uses: rebuilds the dataclasses from the plain dicts of a checkpoint
_INSTANTIATOR = f"{LightningModule.__module__.partition('.core')[0]}.cli.instantiate_module"


class LoraModule(LightningModule, ABC):
    """A transformers model with a LoRA adapter; the base model is loaded in `configure_model`.

    After an evaluation `client_metrics` has each client's figure: prefix of the loader -> client id -> value.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
    """

    auto_class: ClassVar[Any]
    task: ClassVar[TaskType]
    model: PeftModel

    def __init__(
        self,
        model: str,
        lora: LoraSettings = LoraSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        loading: ModelLoading = ModelLoading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        self.model_name, self.lora, self.loading = model, lora, loading
        self.optimizer, self.lr_scheduler, self.schedule_interval = optimizer, lr_scheduler, schedule_interval
        self.client_metrics: dict[str, dict[int, float]] = {}
        self.strict_loading = False  # checkpoints lack the base model; `on_load_checkpoint` is strict about the rest
        self.register_load_state_dict_post_hook(_forget_base_model)  # type: ignore[no-untyped-call]
        self._evaluations: dict[str, Evaluation] = {}
        self._prefixes: list[str] = []
        self.remember(model=model, lora=lora, schedule_interval=schedule_interval, loading=loading)

    # Subclasses say what they are.

    @abstractmethod
    def new_evaluation(self) -> Evaluation:
        """Return empty figures for one loader."""

    @abstractmethod
    def evaluate(self, batch: Batch, evaluation: Any, stage: str) -> None:
        """Add a batch to a loader's figures; `stage` is ``val`` or ``test``."""

    def model_options(self) -> dict[str, Any]:
        """Return more arguments of the base model's configuration."""
        return {}

    # Model and tokenizer.

    def remember(self, **settings: Any) -> None:
        """Put settings into the hyperparameters as plain values, so that checkpoints load with ``weights_only``."""
        plain = {name: _plain(value) for name, value in settings.items()}
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        self.save_hyperparameters({**plain, "_class_path": path, "_instantiator": _INSTANTIATOR})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer; there before the model, since data are tokenised first."""
        return load_tokenizer(self.model_name, self.loading)

    def configure_model(self) -> None:
        """Load the base model and add the adapter, once."""
        if hasattr(self, "model"):
            return
        trainer = self._trainer
        device = self.device if trainer is None else trainer.strategy.root_device
        network, missing = load_base_model(
            self.auto_class, self.model_name, self.loading, device, **self.model_options()
        )
        check_vocabulary(self.tokenizer, network)
        network.config.pad_token_id = self.tokenizer.pad_token_id
        new = new_modules(network, missing, self.task, self.model_name)
        accepted = inspect.signature(network.forward).parameters
        self._accepted = {"input_ids", "attention_mask", "token_type_ids", "position_ids"} & set(accepted)
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}
        self.model = add_adapter(network, self.lora, self.task, new, self.model_name)
        self._trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the module; the adapter is not made narrower, as ``precision="bf16-true"`` would."""
        kept = {name: p.data for name, p in self.named_parameters() if is_float32(name)}
        super().to(*args, **kwargs)
        for name, parameter in self.named_parameters():
            if name in kept and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = kept[name].to(parameter.device)
        return self

    def forward(self, batch: Batch) -> Any:
        """Return the base model's output; of a batch it gets what it takes, and never the labels."""
        return self.model(**{name: batch[name] for name in self._accepted if name in batch}, **self._fixed)

    # Training.

    def configure_optimizers(self) -> Any:
        """Return the optimizer of what is trainable now, and its schedule."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise FederatedConfigError("Expected trainable parameters but all are frozen: check the rule and `lora`.")
        optimizer = self.optimizer(trainable)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {
            "scheduler": self.lr_scheduler(optimizer),
            "interval": self.schedule_interval,
            "monitor": "val/loss",  # of a schedule that follows a figure
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # Checkpoints.

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a module with its base model and adapter from a checkpoint.

        Optimizer and schedule are no settings of the checkpoint: give them again to go on training.

        Args:
            args: The checkpoint's path, and more of `LightningModule.load_from_checkpoint`.
            kwargs: Constructor arguments that replace those in the checkpoint.
        """
        # Lightning rebuilds the arguments from plain values
        return super().load_from_checkpoint(*args, **{name: _plain(value) for name, value in kwargs.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter and what else is trained; the base model is where `model` says."""
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        kept = self._trained | trainable
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: v for name, v in state.items() if is_adapter(name) or name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this class and has the whole adapter, in these shapes."""
        check_class(checkpoint, type(self))
        if any(name.endswith(f".{MERGED}") for name in checkpoint["state_dict"]):  # of a rule that changes the base
            Adapter(self).add_merged()
        own = self.state_dict()
        trained = self._trained | {name for name in own if is_adapter(name)}
        checkpoint["state_dict"] = matching_state(checkpoint["state_dict"], own, sorted(trained))

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Begin with empty figures."""
        self._begin("val", self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        """Begin with empty figures."""
        self._begin("test", self.trainer.test_dataloaders)

    def _begin(self, stage: str, loaders: Any) -> None:
        self._prefixes, self._evaluations = loader_prefixes(stage, loaders), {}

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
                if self.trainer.is_global_zero and not self.trainer.sanity_checking:
                    log_client_table(self.trainer.loggers, prefix, evaluation.figure, table)
        self._evaluations = {}


def client_ids(batch: Batch, size: int) -> Tensor:
    """Return who holds each example of a batch; -1 where it does not say."""
    found = batch.get("client_id")
    return torch.full((size,), -1, device=next(iter(batch.values())).device) if found is None else found


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _forget_base_model(module: nn.Module, keys: Any) -> None:
    """Take the tensors that checkpoints leave out from those that Lightning warns about."""
    trained = cast(LoraModule, module)._trained
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
