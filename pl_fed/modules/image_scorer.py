"""From an image alone to its scores, by a whole network: the baseline that any use of texts has to beat."""

from typing import Literal

from torch.optim import AdamW

from pl_fed.modules.evaluated import LRSchedulerCallable, OptimizerCallable
from pl_fed.modules.scoring import ScoringModule
from pl_fed.modules.settings import NetworkSettings, ScoreSettings
from pl_fed.modules.whole_network import WholeNetwork


class ImageScorer(ScoringModule, WholeNetwork):
    """A scorer of `images` (batch, channels, height, width) that is trained in full.

    What it logs is in `ScoringModule`.

    Args:
        architecture: ``icnet`` or any other that `ImageClassifier` takes.
        network: More arguments of the network, and the shape of the images where the datamodule does not say it.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        scores: Which scores are learned, and how.

    Example:
        >>> module = ImageScorer(network=NetworkSettings({"width": 16}))
        >>> module.hparams["architecture"]
        'icnet'
    """

    def __init__(
        self,
        architecture: str = "icnet",
        network: NetworkSettings = NetworkSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        scores: ScoreSettings = ScoreSettings(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(architecture, network, optimizer, lr_scheduler, schedule_interval)
        self.scores = scores
        self.remember(scores=scores)

    def num_outputs(self) -> int:
        """Return the number of the network's outputs."""
        return self.scores.num_outputs
