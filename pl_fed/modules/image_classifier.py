"""Training of a whole network for images: in a federation without low-rank layers, plain federated averaging."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from pl_fed.errors import FederatedConfigError
from pl_fed.modules.evaluated import Batch, LRSchedulerCallable, OptimizerCallable, client_ids
from pl_fed.modules.evaluation import ClassifierEvaluation
from pl_fed.modules.settings import NetworkSettings
from pl_fed.modules.whole_network import WholeNetwork


class ImageClassifier(WholeNetwork):
    """A classifier of `images` (batch, channels, height, width); `labels` has one class for each.

    Logs ``train/loss``, ``val/loss``, ``val/accuracy`` and ``val/macro_f1``, and in the test the same figures for each
    loader. Where batches say whose they are, also ``client_mean_accuracy``, ``worst_client_accuracy`` and
    ``worst_client_id``. The losses of an evaluation are without smoothing and class weights.

    Args:
        architecture: ``small_cnn``, ``groupnorm_cnn``, ``lenet``, ``vgg``, ``preact_resnet`` or ``vit``; the class path
            of any `torch.nn.Module` (of `in_channels`, `image_size` and `num_labels` it gets what its constructor
            takes); or ``timm:`` and the name of a model, for example ``timm:resnet18``.
        network: More arguments of the network, and the shape of the images where the datamodule does not say it.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        num_labels: Number of classes; None takes the `num_labels` of the Trainer's datamodule.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
        class_weights: Weight of each class in the training loss; None weighs all alike.

    Example:
        >>> module = ImageClassifier("lenet", NetworkSettings(in_channels=1, image_size=28), num_labels=10)
        >>> module.hparams["architecture"]
        'lenet'
    """

    class_weights: Tensor | None

    def __init__(
        self,
        architecture: str = "small_cnn",
        network: NetworkSettings = NetworkSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        num_labels: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(architecture, network, optimizer, lr_scheduler, schedule_interval)
        if num_labels is not None and num_labels < 2:
            raise FederatedConfigError(f"Expected `num_labels` to be at least 2 or null but got {num_labels}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise FederatedConfigError(f"Expected `label_smoothing` in [0, 1) but got {label_smoothing}.")
        if class_weights is not None and not all(0.0 < weight < float("inf") for weight in class_weights):
            raise FederatedConfigError(f"Expected `class_weights` to be positive numbers but got {class_weights}.")
        self.num_labels, self.label_smoothing = num_labels, label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.remember(num_labels=num_labels, label_smoothing=label_smoothing, class_weights=class_weights)

    def num_outputs(self) -> int:
        """Return the number of classes; a checkpoint keeps it, since it loads without the data."""
        if self.num_labels is None:
            self.num_labels = int(self.of_datamodule("num_labels", "num_labels"))
            self.remember(num_labels=self.num_labels)
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise FederatedConfigError(
                f"Expected `class_weights` for {self.num_labels} classes but got {len(self.class_weights)}."
            )
        return self.num_labels

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy of the batch."""
        scores, labels = self(batch).float(), batch["labels"]
        loss = F.cross_entropy(scores, labels, self.class_weights, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def new_evaluation(self) -> ClassifierEvaluation:
        """Return empty figures for one loader."""
        assert self.num_labels is not None
        return ClassifierEvaluation(self.num_labels)

    def evaluate(self, batch: Batch, evaluation: ClassifierEvaluation, stage: str) -> None:
        """Add a batch to a loader's figures."""
        labels = batch["labels"]
        evaluation.update(self(batch), labels, client_ids(batch, len(labels)))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the likeliest class `label` (batch,) and `probabilities` (batch, labels)."""
        probabilities = self(batch).float().softmax(-1)
        return {"label": probabilities.argmax(-1), "probabilities": probabilities}
