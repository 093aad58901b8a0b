"""Metrics of predicted scores: pure functions and the TorchMetrics classes around them."""

from pl_fed.metrics.bootstrap import BootstrapInterval, Interval, bootstrap, interval, resample
from pl_fed.metrics.correlation import Kendall, Pearson, Spearman, kendall, pearson, spearman
from pl_fed.metrics.deviation import RootMeanAbsoluteError, RootMeanSquaredError, rmae, rmse
from pl_fed.metrics.reference import OneRater, constant_predictor, one_rater
from pl_fed.metrics.reliability import icc, spearman_brown

__all__ = [
    "BootstrapInterval",
    "Interval",
    "Kendall",
    "OneRater",
    "Pearson",
    "RootMeanAbsoluteError",
    "RootMeanSquaredError",
    "Spearman",
    "bootstrap",
    "constant_predictor",
    "icc",
    "interval",
    "kendall",
    "one_rater",
    "pearson",
    "resample",
    "rmae",
    "rmse",
    "spearman",
    "spearman_brown",
]
