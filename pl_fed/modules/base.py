"""What the LoRA modules have in common: loading, optimizers, checkpoints of the adapter, evaluation by client.

A module knows nothing of rounds or clients' training: under a plain Trainer it is ordinary LoRA fine-tuning.
"""

import inspect
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, cast

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedTokenizerBase

from pl_fed.adapters import MERGED, Adapter
from pl_fed.errors import FederatedConfigError
from pl_fed.modules.checkpoint import check_class, is_adapter, matching_state
from pl_fed.modules.evaluated import Batch, EvaluatedModule, LRSchedulerCallable, OptimizerCallable, client_ids
from pl_fed.modules.loading import (
    add_adapter,
    check_vocabulary,
    is_float32,
    load_base_model,
    load_tokenizer,
    new_modules,
)
from pl_fed.modules.settings import LoraSettings, ModelLoading
from pl_fed.packing import TokenRows

__all__ = ["Batch", "LRSchedulerCallable", "LoraModule", "OptimizerCallable", "client_ids"]


class LoraModule(EvaluatedModule):
    """A transformers model with a LoRA adapter; the base model is loaded in `configure_model`.

    After an evaluation `client_metrics` has each client's figure: prefix of the loader -> client id -> value.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter; None trains the whole model instead, for subclasses that offer it.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
    """

    auto_class: ClassVar[Any]
    task: ClassVar[TaskType]
    reads_text: ClassVar[bool] = True
    model: PeftModel  # the network itself where `lora` is None; only the export asks for more than a network

    def __init__(
        self,
        model: str,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        loading: ModelLoading = ModelLoading(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(optimizer, lr_scheduler, schedule_interval)
        if lora is None and loading.quantization is not None:
            raise FederatedConfigError(
                "Expected `lora` with `loading.quantization` but got null: quantised weights are not trained, so give "
                "an adapter or load the model unquantised."
            )
        self.model_name, self.lora, self.loading = model, lora, loading
        self.strict_loading = False  # checkpoints lack the base model; `on_load_checkpoint` is strict about the rest
        self.register_load_state_dict_post_hook(_forget_base_model)  # type: ignore[no-untyped-call]
        self.remember(model=model, lora=lora, schedule_interval=schedule_interval, loading=loading)

    def model_options(self) -> dict[str, Any]:
        """Return more arguments of the base model's configuration."""
        return {}

    # Model and tokenizer.

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
        if self.reads_text:
            check_vocabulary(self.tokenizer, network)
            network.config.pad_token_id = self.tokenizer.pad_token_id
        new = new_modules(network, missing, self.task, self.model_name)
        accepted = inspect.signature(network.forward).parameters
        self._accepted = {"input_ids", "attention_mask", "token_type_ids", "position_ids"} & set(accepted)
        self._fixed = {"use_cache": False} if "use_cache" in accepted else {}
        if self.lora is None:
            self.model = cast(PeftModel, network.requires_grad_(True))
        else:
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

    def packed_output(self, rows: TokenRows, **more: Any) -> Any:
        """Return the base model's output for several clients' tokens in one row; see `pl_fed.packing`.

        Args:
            rows: Their batches.
            more: More arguments of the base model.
        """
        names = (self._accepted & rows.batches[0].keys()) - {"attention_mask"}
        given = {name: rows.pick(name) for name in names}
        return self.model(**{"position_ids": rows.positions, **given}, **self._fixed, **more)

    def log_training_loss(self, loss: Tensor, num_examples: int) -> None:
        """Log the mean loss of a training batch."""
        self.log("train/loss", loss, prog_bar=True, batch_size=num_examples)

    # Checkpoints.

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


def _forget_base_model(module: nn.Module, keys: Any) -> None:
    """Take the tensors that checkpoints leave out from those that Lightning warns about."""
    trained = cast(LoraModule, module)._trained
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in trained]
