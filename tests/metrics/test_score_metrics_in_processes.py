"""Metrics of scores over two processes are those of all scores in one."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pl_fed.metrics import BootstrapInterval, Kendall, OneRater, Pearson, Spearman, rmse, spearman


def figures(rows: torch.Tensor) -> list[float]:
    """Feed (images, raters) ratings, the first two columns as predictions and targets, and return every figure."""
    found = []
    for metric in (Pearson(), Spearman(), Kendall()):
        metric.update(rows[:, 0], rows[:, 1])
        found.append(float(metric.compute()))
    interval, human = BootstrapInterval(spearman, num_resamples=50), OneRater({"rmse": rmse})
    interval.update(rows[:, 0], rows[:, 1])
    human.update(rows)
    return [*found, *map(float, interval.compute().values()), float(human.compute()["rmse"])]


def ratings() -> torch.Tensor:
    return torch.rand(20, 3, generator=torch.Generator().manual_seed(0))


def work(rank: int, port: int, expected: list[float]) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        assert figures(ratings()[7 * rank : 7 + 13 * rank]) == pytest.approx(expected, abs=1e-6)
    finally:
        dist.destroy_process_group()


def test_two_processes_are_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, figures(ratings())), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
