"""What the modules that score images have in common: loss, figures, predictions, and the labels of an audit."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings_layouts import SCORES
from pl_fed.modules.evaluated import Batch, EvaluatedModule, client_ids
from pl_fed.modules.score_evaluation import ScoreEvaluation
from pl_fed.modules.score_losses import PredictedScores, chosen_targets, nearest_level, predicted_scores, score_losses
from pl_fed.modules.settings import ScoreSettings
from pl_fed.packing import Rows


class ScoringModule(EvaluatedModule):
    """A module with `scores`, whose `forward` returns a network's outputs for a batch with `targets` (batch, 2).

    Logs ``train/loss`` and, for each score, ``val/semantic_rmse``, ``_rmae``, ``_pcc``, ``_srcc`` and ``_kendall``;
    where the datamodule has `score_means`, also ``val/semantic_constant_rmse`` and ``_rmae`` of a predictor that always
    says the training mean; where batches have `ratings`, ``val/semantic_one_rater_rmse``, ``_pcc`` and ``_srcc`` of a
    rater against the mean of the others. A test adds ``test/semantic_srcc_low`` and ``_high``, the ends of 95 %
    bootstrap intervals, also for ``rmse`` and ``pcc``. Where batches say whose they are, also
    ``client_mean_semantic_rmse``, ``worst_client_semantic_rmse`` and ``worst_client_id``.
    """

    scores: ScoreSettings

    def outputs(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return the network's outputs."""
        found: Any = self(batch)
        outputs: Tensor = getattr(found, "logits", found)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the batch's ratings."""
        targets = chosen_targets(batch["targets"], self.scores)
        losses, known = score_losses(self.outputs(batch), targets, self.scores)
        loss = losses.sum() / known.sum().clamp(min=1)  # a batch without ratings teaches nothing
        self.log("train/loss", loss, prog_bar=True, batch_size=len(targets))
        return loss

    def losses_of_clients(self, outputs: Float[Tensor, "rows outputs"], rows: Rows) -> Float[Tensor, " clients"]:
        """Return the loss of `training_step` for each of several clients that train together, for `packed_losses`.

        Args:
            outputs: The network's, of all clients' texts or images.
            rows: Their batches.
        """
        targets = chosen_targets(rows.examples("targets"), self.scores)
        losses, known = score_losses(outputs, targets, self.scores)
        return rows.sequence_sums(losses) / rows.sequence_sums(known).clamp(min=1)

    def new_evaluation(self) -> ScoreEvaluation:
        """Return empty figures for one loader."""
        means = getattr(getattr(self._trainer, "datamodule", None), "score_means", None)
        if means is not None:
            means = torch.tensor([float(means[SCORES.index(name)]) for name in self.scores.names])
        testing = self._trainer is not None and bool(self._trainer.testing)
        return ScoreEvaluation(self.scores.names, means, testing)

    def evaluate(self, batch: Batch, evaluation: ScoreEvaluation, stage: str) -> None:
        """Add a batch to a loader's figures."""
        targets, outputs = chosen_targets(batch["targets"], self.scores), self.outputs(batch)
        losses, _ = score_losses(outputs, targets, self.scores)
        found = predicted_scores(outputs, self.scores).scores
        ratings = batch.get("ratings")
        if ratings is not None:
            ratings = ratings[:, :, [SCORES.index(name) for name in self.scores.names]]
        evaluation.update(found, targets, losses, client_ids(batch, len(targets)), ratings)

    def predict(self, batch: Batch) -> PredictedScores:
        """Return the scores of a batch."""
        return predicted_scores(self.outputs(batch), self.scores)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return each score (batch,); of levels also ``<score>_levels`` (batch, levels) and ``<score>_uncertainty``."""
        found = self.predict(batch)
        names: Any = batch.get("file_names")
        rows: dict[str, Any] = {} if names is None else {"file_name": names}
        for i, name in enumerate(self.scores.names):
            rows[name] = found.scores[:, i]
            if found.probabilities is not None and found.uncertainty is not None:
                rows[f"{name}_levels"], rows[f"{name}_uncertainty"] = found.probabilities[:, i], found.uncertainty[:, i]
        return rows

    def audit_labels(self, batch: Batch) -> Int[Tensor, " rated"]:
        """Return the classes that the loss counts, for `LabelInferenceAttack`: the levels of the rated images.

        Raises:
            FederatedConfigError: If the loss is not plain cross-entropy over one score.
        """
        settings = self.scores
        if settings.levels is None or settings.soft_labels or len(settings.names) > 1:
            raise FederatedConfigError(
                "Expected one score with hard levels for the label inference audit but got "
                f"`scores.names`={list(settings.names)}, `levels`={settings.levels} and "
                f"`soft_labels`={settings.soft_labels}: it reads class counts from a plain cross-entropy, so set names "
                "to [semantic] and levels to 5."
            )
        targets = chosen_targets(batch["targets"], settings)[:, 0]
        return nearest_level(targets[~targets.isnan()], settings.levels)
