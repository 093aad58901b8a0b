"""Figures of predicted scores: over all images and by client; beside them a constant predictor and one rater."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import MetricCollection

from pl_fed.metrics import (
    BootstrapInterval,
    Kendall,
    OneRater,
    Pearson,
    RootMeanAbsoluteError,
    RootMeanSquaredError,
    Spearman,
    pearson,
    rmse,
    spearman,
)
from pl_fed.modules.evaluation import Evaluation, mean_and_worst
from pl_fed.modules.means import ClientMean

FORMULAS = {"rmse": rmse, "pcc": pearson, "srcc": spearman}


class ScoreEvaluation(Evaluation):
    """Loss, and for each score RMSE, RMAE and three correlations; RMSE by client.

    The table by client is that of the last score. Images without a rating of a score are left out of its figures.

    Args:
        names: The scores.
        constants: What a constant predictor says of each; None leaves out its figures.
        intervals: Whether to give the ends of 95 % bootstrap intervals of RMSE, PCC and SRCC, too.
    """

    def __init__(
        self, names: tuple[str, ...], constants: Float[Tensor, " scores"] | None = None, intervals: bool = False
    ) -> None:
        super().__init__(f"{names[-1]}_rmse", best="min")
        self.names, self.constants = names, constants
        self.figures = nn.ModuleDict({name: _figures() for name in names})
        self.constant_figures = nn.ModuleDict({name: _deviations() for name in names})
        self.raters = nn.ModuleDict({name: OneRater(FORMULAS) for name in names})
        intervals_of = FORMULAS if intervals else {}
        self.intervals = nn.ModuleDict({name: _intervals(intervals_of) for name in names})
        self.squares = nn.ModuleDict({**{name: ClientMean() for name in names[:-1]}, names[-1]: self.clients})

    def update(
        self,
        scores: Float[Tensor, "batch scores"],
        targets: Float[Tensor, "batch scores"],
        losses: Float[Tensor, "batch scores"],
        client_ids: Int[Tensor, " batch"],
        ratings: Float[Tensor, "batch raters scores"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            scores: Predictions in [0, 1].
            targets: Ratings; nan where there is none.
            losses: Of every rating.
            client_ids: Who holds the image; negative for nobody.
            ratings: Of every rater, nan where there is none; None leaves out the figures of one rater.
        """
        by_rater = targets[:, None] if ratings is None else ratings  # a single one has no others to agree with
        known: Bool[Tensor, "batch scores"] = ~targets.isnan()
        self.loss.update(losses[known], torch.ones_like(losses[known]))
        for i, name in enumerate(self.names):
            rated = known[:, i]
            found, wanted = scores[rated, i], targets[rated, i]
            self.figures[name].update(found, wanted)  # type: ignore[operator]  # a metric
            self.squares[name].update((found - wanted).square(), torch.ones_like(found), client_ids[rated])  # type: ignore[operator]
            for bounds in self.intervals[name].values():  # type: ignore[operator]
                bounds.update(found, wanted)
            self.raters[name].update(by_rater[:, :, i])  # type: ignore[operator]
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
            for key, bounds in self.intervals[name].items():  # type: ignore[operator]
                found |= {f"{name}_{key}_{end}": float(value) for end, value in bounds.compute().items()}
            found |= self._one_rater(name)
            if self.constants is not None:
                lines = self.constant_figures[name].compute()  # type: ignore[operator]
                found |= {f"{name}_constant_{key}": float(value) for key, value in lines.items()}
            clients = self._client_rmse(name)
            if clients and name != self.names[-1]:
                found |= mean_and_worst(clients, f"{name}_rmse", self.best)
        return found

    def _one_rater(self, name: str) -> dict[str, float]:
        """Return what one rater reaches against the others, where two or more have rated."""
        found = {key: float(value) for key, value in self.raters[name].compute().items()}  # type: ignore[operator]
        return {f"{name}_one_rater_{key}": value for key, value in found.items() if value == value}

    def _client_rmse(self, name: str) -> dict[int, float]:
        return {client_id: mean**0.5 for client_id, mean in self.squares[name].compute().items()}  # type: ignore[operator]


def _intervals(formulas: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> nn.ModuleDict:
    return nn.ModuleDict({key: BootstrapInterval(formula) for key, formula in formulas.items()})


def _deviations() -> MetricCollection:
    return MetricCollection({"rmse": RootMeanSquaredError(), "rmae": RootMeanAbsoluteError()}, compute_groups=False)


def _figures() -> MetricCollection:
    parts = {"rmse": RootMeanSquaredError(), "rmae": RootMeanAbsoluteError()}
    ranks = {"pcc": Pearson(), "srcc": Spearman(), "kendall": Kendall()}
    return MetricCollection({**parts, **ranks}, compute_groups=False)
