"""LoRA fine-tuning of a sequence classifier; its head is trained in full."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import TaskType
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from transformers import AutoModelForSequenceClassification

from pl_fed.errors import FederatedConfigError
from pl_fed.modules.base import Batch, LoraModule, LRSchedulerCallable, OptimizerCallable, client_ids
from pl_fed.modules.evaluation import ClassifierEvaluation
from pl_fed.modules.settings import LoraSettings, ModelLoading
from pl_fed.packing import TokenRows
from pl_fed.packing.rows import at_least_float32


class LoraSequenceClassifier(LoraModule):
    """A sequence classifier; `labels` has one class for each text.

    Logs ``train/loss``, ``val/loss``, ``val/accuracy`` and ``val/macro_f1``, and in the test the same figures for each
    loader. Where batches say whose they are, also ``client_mean_accuracy``, ``worst_client_accuracy`` and
    ``worst_client_id``.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
        num_labels: Number of classes; None takes the `num_labels` of the Trainer's datamodule.

    Example:
        >>> module = LoraSequenceClassifier("sentence-transformers/all-MiniLM-L6-v2", num_labels=20)
        >>> module.hparams["num_labels"]
        20
    """

    auto_class = AutoModelForSequenceClassification
    task = TaskType.SEQ_CLS

    def __init__(
        self,
        model: str,
        lora: LoraSettings = LoraSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        loading: ModelLoading = ModelLoading(),  # noqa: B008  # frozen
        num_labels: int | None = None,
    ) -> None:
        super().__init__(model, lora, optimizer, lr_scheduler, schedule_interval, loading)
        if num_labels is not None and num_labels < 2:
            raise FederatedConfigError(f"Expected `num_labels` to be at least 2 or null but got {num_labels}.")
        self.num_labels = num_labels
        self.remember(num_labels=num_labels)

    def model_options(self) -> dict[str, Any]:
        """Return the number of classes; a checkpoint keeps it, since it loads without the data."""
        if self.num_labels is None:
            self.num_labels = int(self.of_datamodule("num_labels", "num_labels"))
            self.remember(num_labels=self.num_labels)
        return {"num_labels": self.num_labels}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy of the batch."""
        loss = F.cross_entropy(at_least_float32(self(batch).logits), batch["labels"])
        self.log_training_loss(loss, len(batch["labels"]))
        return loss

    def packed_losses(self, rows: TokenRows) -> Float[Tensor, " clients"]:
        """Return the loss of `training_step` for each of several clients that train together."""
        labels = torch.cat([batch["labels"] for batch in rows.batches])
        logits = at_least_float32(self.packed_output(rows).logits)  # (sequences, labels)
        return rows.sequence_means(F.cross_entropy(logits, labels, reduction="none"))

    def new_evaluation(self) -> ClassifierEvaluation:
        """Return empty figures for one loader."""
        assert self.num_labels is not None
        return ClassifierEvaluation(self.num_labels)

    def evaluate(self, batch: Batch, evaluation: ClassifierEvaluation, stage: str) -> None:
        """Add a batch to a loader's figures."""
        labels = batch["labels"]
        evaluation.update(self(batch).logits, labels, client_ids(batch, len(labels)))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the likeliest class `label` (batch,) and `probabilities` (batch, labels)."""
        probabilities = self(batch).logits.float().softmax(-1)
        return {"label": probabilities.argmax(-1), "probabilities": probabilities}
