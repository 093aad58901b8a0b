"""From an image alone to its scores, by a pretrained vision transformer with an adapter."""

import inspect
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from peft import TaskType
from torch import Tensor
from torch.optim import AdamW
from transformers import AutoModelForImageClassification

from pl_fed.adapters import ADAPTER_NAME
from pl_fed.modules.base import Batch, LoraModule, LRSchedulerCallable, OptimizerCallable
from pl_fed.modules.scoring import ScoringModule
from pl_fed.modules.settings import LoraSettings, ModelLoading, ScoreSettings


class ViTScorer(ScoringModule, LoraModule):
    """A scorer of `images` (batch, channels, height, width), as its base model wants them normalised.

    Any of transformers' models for image classification. What it logs is in `ScoringModule`.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter; None trains the whole model.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
        scores: Which scores are learned, and how.

    Example:
        >>> module = ViTScorer("google/vit-base-patch16-224", lora=LoraSettings(target_modules=["q_proj", "v_proj"]))
        >>> module.hparams["lora"]["target_modules"]
        ['q_proj', 'v_proj']
    """

    auto_class = AutoModelForImageClassification
    task = TaskType.SEQ_CLS  # peft has none for images; of this one it takes that the head is trained
    reads_text: ClassVar[bool] = False
    tokenizer = None  # type: ignore[assignment]  # there is no text

    def __init__(
        self,
        model: str,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        loading: ModelLoading = ModelLoading(),  # noqa: B008  # frozen
        scores: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(model, lora, optimizer, lr_scheduler, schedule_interval, loading)
        self.scores = scores
        self.remember(scores=scores)

    def model_options(self) -> dict[str, Any]:
        """Return the number of outputs."""
        return {"num_labels": self.scores.num_outputs}

    def configure_model(self) -> None:
        """Load the base model and add the adapter, once."""
        if hasattr(self, "model"):
            return
        super().configure_model()
        if self.lora is not None:  # whoever loads the exported adapter gets peft's class that knows of no texts
            self.model.peft_config[ADAPTER_NAME].task_type = None

    def forward(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return the outputs; images of another size than the base model's get interpolated positions."""
        # past peft's own forward, which hands on `input_ids`
        network: Any = self.model if self.lora is None else self.model.get_base_model()
        resizes = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        return network(batch["images"], **({"interpolate_pos_encoding": True} if resizes else {})).logits  # type: ignore[no-any-return]
