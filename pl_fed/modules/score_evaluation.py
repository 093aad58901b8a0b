"""Figures of predicted scores: over all images, for each client, and of a predictor that knows only a mean."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import MetricCollection

from pl_fed.metrics import Kendall, Pearson, RootMeanAbsoluteError, RootMeanSquaredError, Spearman
from pl_fed.modules.evaluation import Evaluation, mean_and_worst
from pl_fed.modules.means import ClientMean


class ScoreEvaluation(Evaluation):
    """Loss, and for each score RMSE, RMAE and three correlations; RMSE by client.

    The table by client is that of the last score. Images without a rating of a score are left out of its figures.

    Args:
        names: The scores.
        constants: What a constant predictor says of each; None leaves out its figures.
    """

    def __init__(self, names: tuple[str, ...], constants: Float[Tensor, " scores"] | None = None) -> None:
        super().__init__(f"{names[-1]}_rmse", best="min")
        self.names, self.constants = names, constants
        self.figures = nn.ModuleDict({name: _figures() for name in names})
        self.constant_figures = nn.ModuleDict({name: _deviations() for name in names})
        self.squares = nn.ModuleDict({**{name: ClientMean() for name in names[:-1]}, names[-1]: self.clients})

    def update(
        self,
        scores: Float[Tensor, "batch scores"],
        targets: Float[Tensor, "batch scores"],
        losses: Float[Tensor, "batch scores"],
        client_ids: Int[Tensor, " batch"],
    ) -> None:
        """Add a batch.

        Args:
            scores: Predictions in [0, 1].
            targets: Ratings; nan where there is none.
            losses: Of every rating.
            client_ids: Who holds the image; negative for nobody.
        """
        known: Bool[Tensor, "batch scores"] = ~targets.isnan()
        self.loss.update(losses[known], torch.ones_like(losses[known]))
        for i, name in enumerate(self.names):
            rated = known[:, i]
            found, wanted = scores[rated, i], targets[rated, i]
            self.figures[name].update(found, wanted)  # type: ignore[operator]  # a metric
            self.squares[name].update((found - wanted).square(), torch.ones_like(found), client_ids[rated])  # type: ignore[operator]
            if self.constants is not None:
                constant = self.constants[i].to(wanted).expand_as(wanted)
                self.constant_figures[name].update(constant, wanted)  # type: ignore[operator]

    def table(self) -> dict[int, float]:
        """Return the last score's RMSE by client."""
        return self._client_rmse(self.names[-1])

    def results(self, table: dict[int, float]) -> dict[str, float]:
        """Return every figure by name."""
        found = super().results(table)
        for name in self.names:
            found |= {f"{name}_{key}": float(value) for key, value in self.figures[name].compute().items()}  # type: ignore[operator]
            if self.constants is not None:
                lines = self.constant_figures[name].compute()  # type: ignore[operator]
                found |= {f"{name}_constant_{key}": float(value) for key, value in lines.items()}
            clients = self._client_rmse(name)
            if clients and name != self.names[-1]:
                found |= mean_and_worst(clients, f"{name}_rmse", self.best)
        return found

    def _client_rmse(self, name: str) -> dict[int, float]:
        return {client_id: mean**0.5 for client_id, mean in self.squares[name].compute().items()}  # type: ignore[operator]


def _deviations() -> MetricCollection:
    return MetricCollection({"rmse": RootMeanSquaredError(), "rmae": RootMeanAbsoluteError()}, compute_groups=False)


def _figures() -> MetricCollection:
    parts = {"rmse": RootMeanSquaredError(), "rmae": RootMeanAbsoluteError()}
    ranks = {"pcc": Pearson(), "srcc": Spearman(), "kendall": Kendall()}
    return MetricCollection({**parts, **ranks}, compute_groups=False)
