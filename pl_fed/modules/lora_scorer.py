"""What the scorers with an adapter on one of transformers' models have in common: their arguments and outputs."""

from typing import Any, Literal

from torch.optim import AdamW

from pl_fed.modules.base import LoraModule, LRSchedulerCallable, OptimizerCallable
from pl_fed.modules.scoring import ScoringModule
from pl_fed.modules.settings import LoraSettings, ModelLoading, ScoreSettings


class LoraScorer(ScoringModule, LoraModule):
    """A base model with as many outputs as `scores` needs.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter; None trains the whole model.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
        scores: Which scores are learned, and how.
    """

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
