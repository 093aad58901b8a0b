"""From an image and a text about it to its scores, by ViLT with an adapter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from pl_fed.modules.base import Batch
from pl_fed.modules.networks.vilt import ViltForScores
from pl_fed.modules.semantic_scorer import SemanticScorer


class ViltScorer(SemanticScorer):
    """A scorer of `images` (batch, channels, height, width), normalised to [-1, 1], with the text of each.

    Texts may have 512 tokens; the positions beyond those of the base model are new and trained in full. The arguments
    are those of `SemanticScorer`.

    Example:
        >>> module = ViltScorer("dandelin/vilt-b32-mlm")
        >>> module.hparams["scores"]["names"]
        ('entity', 'semantic')
    """

    auto_class = ViltForScores

    def forward(self, batch: Batch) -> Any:
        """Return the network's output; of a batch it gets the tokens and the images."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model(**inputs, pixel_values=batch["images"])

    def pixels(self, images: Sequence[Image.Image]) -> Batch:
        """Return `images` in the base model's size, as a datamodule with the default mean and deviation makes them."""
        side = self.model.config.image_size
        sized = [image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for image in images]
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in sized]))  # (batch, side, side, 3)
        return {"images": (stacked.permute(0, 3, 1, 2).float() / 127.5 - 1).to(self.device)}
