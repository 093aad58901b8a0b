"""From an image alone to its scores, by a pretrained vision transformer with an adapter."""

import inspect
from typing import Any, ClassVar

from jaxtyping import Float
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForImageClassification

from pl_fed.adapters import ADAPTER_NAME
from pl_fed.modules.base import Batch
from pl_fed.modules.lora_scorer import LoraScorer
from pl_fed.packing import ImageRows


class ViTScorer(LoraScorer):
    """A scorer of `images` (batch, channels, height, width), as its base model wants them normalised.

    Any of transformers' models for image classification. What it logs is in `ScoringModule`.

    The arguments are those of `LoraScorer`.

    Example:
        >>> from pl_fed.modules.settings import LoraSettings
        >>> module = ViTScorer("google/vit-base-patch16-224", lora=LoraSettings(target_modules=["q_proj", "v_proj"]))
        >>> module.hparams["lora"]["target_modules"]
        ['q_proj', 'v_proj']
    """

    auto_class = AutoModelForImageClassification
    task = TaskType.SEQ_CLS  # peft has none for images; of this one it takes that the head is trained
    reads_text: ClassVar[bool] = False
    tokenizer = None  # type: ignore[assignment]  # there is no text

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

    def packed_losses(self, rows: ImageRows) -> Float[Tensor, " clients"]:
        """Return the loss of `training_step` for each of several clients that train together."""
        return self.losses_of_clients(self({"images": rows.images}), rows)
