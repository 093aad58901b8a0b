"""From a text about an image to its entity score and semantic score, by any transformers model for texts.

The discriminator of Sizhe Song et al., "Is Your Image a Good Storyteller?", AAAI 2025, arXiv 2501.01982; its loss and
its learning rate are not stated there, and adapters and levels are ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import TaskType
from PIL import Image
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pl_fed.isa.scorers.base import UNKNOWN, Score
from pl_fed.isa.story_encoder import StoryEncoder
from pl_fed.modules.base import Batch
from pl_fed.modules.lora_scorer import LoraScorer
from pl_fed.modules.score_losses import PredictedScores
from pl_fed.modules.settings import ScoreSettings
from pl_fed.packing import TokenRows

CHUNK = 16  # texts in a batch of `score`


class SemanticScorer(LoraScorer):
    """A scorer of texts; `targets` has both scores of each image in [0, 1], nan where there is none.

    BERT, MiniLM, Longformer or any other model for sequence classification. What it logs is in `ScoringModule`.

    The arguments are those of `LoraScorer`.

    Example:
        >>> settings = ScoreSettings(("semantic",), levels=5)
        >>> module = SemanticScorer("sentence-transformers/all-MiniLM-L6-v2", scores=settings)
        >>> module.hparams["scores"]["levels"]
        5
    """

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    task = TaskType.SEQ_CLS

    def model_options(self) -> dict[str, Any]:
        """Return the number of outputs; a checkpoint keeps the length of texts, since it loads without the data."""
        length = getattr(getattr(self._trainer, "datamodule", None), "max_length", None)
        if self.scores.max_length is None and length is not None:
            self.scores = replace(self.scores, max_length=length)
            self.remember(scores=self.scores)
        return super().model_options()

    def packed_losses(self, rows: TokenRows) -> Float[Tensor, " clients"]:
        """Return the loss of `training_step` for each of several clients that train together."""
        return self.losses_of_clients(self.packed_output(rows).logits, rows)

    @torch.no_grad()
    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> list[Score]:
        """Return the scores of texts, for the command ``score``; the images are not used.

        Without levels the uncertainty is that of a rating drawn at random.

        Args:
            texts: What an extractor wrote about each image.
            images: The images, in the same order.
        """
        self.configure_model()
        encoder = StoryEncoder(self.tokenizer, self.scores.max_length or self._longest())
        found: list[Score] = []
        for start in range(0, len(texts), CHUNK):
            ids = [encoder.encode(text)[0] for text in texts[start : start + CHUNK]]
            batch = dict(self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device))
            found += as_scores(self.predict(batch | self.pixels(images[start : start + CHUNK])), self.scores)
        return found

    def pixels(self, images: Sequence[Image.Image]) -> Batch:
        """Return what a batch has of images: here nothing."""
        return {}

    def _longest(self) -> int:
        """Return the largest number of tokens that model and tokenizer take."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        return min(positions or self.tokenizer.model_max_length, self.tokenizer.model_max_length)


def as_scores(found: PredictedScores, settings: ScoreSettings) -> list[Score]:
    """Return predictions as the scores of images; None for a score that was not learned.

    Args:
        found: The predictions.
        settings: Which scores they are.
    """
    uncertainty = torch.full_like(found.scores, UNKNOWN) if found.uncertainty is None else found.uncertainty
    rows = []
    for values, spreads in zip(found.scores.tolist(), uncertainty.tolist(), strict=True):
        score, spread = (dict(zip(settings.names, row, strict=True)) for row in (values, spreads))
        rows.append(Score(score.get("entity"), score.get("semantic"), spread.get("entity"), spread.get("semantic")))
    return rows
