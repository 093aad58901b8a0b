"""Training of a whole network for images: in a federation without low-rank layers, plain federated averaging."""

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from pl_fed.errors import FederatedConfigError
from pl_fed.modules.checkpoint import check_class, check_whole
from pl_fed.modules.evaluated import Batch, EvaluatedModule, LRSchedulerCallable, OptimizerCallable, client_ids
from pl_fed.modules.evaluation import ClassifierEvaluation
from pl_fed.modules.networks import build_network
from pl_fed.modules.settings import NetworkSettings


class ImageClassifier(EvaluatedModule):
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

    network: nn.Module
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
        super().__init__(optimizer, lr_scheduler, schedule_interval)
        if num_labels is not None and num_labels < 2:
            raise FederatedConfigError(f"Expected `num_labels` to be at least 2 or null but got {num_labels}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise FederatedConfigError(f"Expected `label_smoothing` in [0, 1) but got {label_smoothing}.")
        if class_weights is not None and not all(0.0 < weight < float("inf") for weight in class_weights):
            raise FederatedConfigError(f"Expected `class_weights` to be positive numbers but got {class_weights}.")
        self.architecture, self.settings = architecture, network
        self.num_labels, self.label_smoothing = num_labels, label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.remember(
            architecture=architecture,
            network=network,
            schedule_interval=schedule_interval,
            num_labels=num_labels,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )

    def configure_model(self) -> None:
        """Make the network, once; a checkpoint keeps the shapes, since it loads without the data."""
        if hasattr(self, "network"):
            return
        if self.num_labels is None:
            self.num_labels = int(self.of_datamodule("num_labels", "num_labels"))
        channels, size = self.settings.in_channels, self.settings.size
        if channels is None:
            channels = int(self.of_datamodule("num_channels", "network.in_channels"))
        if size is None:
            size = tuple(self.of_datamodule("image_size", "network.image_size"))
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise FederatedConfigError(
                f"Expected `class_weights` for {self.num_labels} classes but got {len(self.class_weights)}."
            )
        self.settings = replace(self.settings, in_channels=channels, image_size=list(size))
        self.remember(num_labels=self.num_labels, network=self.settings)
        shape = cast(tuple[int, int], size)
        self.network = build_network(self.architecture, channels, shape, self.num_labels, self.settings.options)

    def forward(self, batch: Batch) -> Float[Tensor, "batch labels"]:
        """Return the scores of the classes."""
        return self.network(batch["images"])  # type: ignore[no-any-return]

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this class and has the whole network, in these shapes."""
        check_class(checkpoint, type(self))
        check_whole(checkpoint["state_dict"], self.state_dict())
