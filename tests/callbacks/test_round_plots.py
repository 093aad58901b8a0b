import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pl_fed.callbacks import CommunicationMonitor, RoundPlots, RunSummary
from pl_fed.callbacks._figures import MAX_CLIENTS, metric_figure, rank_figure
from pl_fed.rounds import CohortConfig
from pl_fed.rules import FedIT
from tests.helpers.tiny import TinyLM, Tokens, eval_loader, make_strategy, make_trainer, round_loader

PNG = b"\x89PNG"


class Save(Checkpoint):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(folder: Path, *callbacks: Callback, ckpt: Path | None = None, **options: Any) -> None:
    strategy = make_strategy(FedIT(), cohort=CohortConfig())
    logger = CSVLogger(folder, name=None, version="run")
    trainer = make_trainer(strategy, logger=logger, callbacks=list(callbacks), **options)
    trainer.fit(TinyLM(), round_loader(), eval_loader(), ckpt_path=ckpt)


def test_pictures_of_a_run(tmp_path: Path) -> None:
    """In any order of the callbacks; a round of ranks 4, 3, 2 and 1 sends 10 slots of 256 bytes."""
    plots = RoundPlots()
    fit(tmp_path, plots, RunSummary(print_table=False), CommunicationMonitor(), max_epochs=2)
    found = {path.name: path.read_bytes()[:4] for path in (tmp_path / "run" / "plots").iterdir()}
    assert found == {"val-loss.png": PNG, "ranks.png": PNG}
    assert [point["round"] for point in plots._points] == [1, 2]
    assert [point["upload_bytes"] for point in plots._points] == [2560, 5120]
    assert plots._ranks == {k: [(0, 4.0 - k), (1, 4.0 - k)] for k in range(4)}


def test_a_client_s_number_is_not_drawn(tmp_path: Path) -> None:
    """Unless it is asked for; its curve would mean nothing."""

    class NamesWorst(TinyLM):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("val/worst_client_id", 2.0)

    for metrics, expected in ((None, "val-loss.png"), (["val/worst_client_id"], "val-worst_client_id.png")):
        folder = tmp_path / expected
        trainer = make_trainer("auto", callbacks=[RoundPlots(metrics)], default_root_dir=folder, max_epochs=1)
        trainer.fit(NamesWorst(), DataLoader(Tokens(), batch_size=15), eval_loader())
        assert [path.name for path in (folder / "plots").iterdir()] == [expected]


def test_metrics_can_be_chosen(tmp_path: Path) -> None:
    fit(tmp_path, RoundPlots(metrics=["train/loss"], folder="pictures"), max_epochs=1)
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {"train-loss.png", "ranks.png"}


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
def test_resumed_curves_equal_uninterrupted_ones(tmp_path: Path) -> None:
    """With validations inside rounds as well, which are not counted: a round has one point."""
    expected = RoundPlots()
    fit(tmp_path, expected, CommunicationMonitor(), Save(tmp_path), max_epochs=2, val_check_interval=4)
    for checkpoint in tmp_path.glob("*.ckpt"):
        found = RoundPlots()
        fit(tmp_path, found, CommunicationMonitor(), max_epochs=2, val_check_interval=4, ckpt=checkpoint)
        assert found.state_dict() == expected.state_dict()


def test_plain_run_counts_epochs(tmp_path: Path) -> None:
    plots = RoundPlots()
    trainer = make_trainer("auto", callbacks=[plots], default_root_dir=tmp_path)
    trainer.fit(TinyLM(), DataLoader(Tokens(), batch_size=15), eval_loader())
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["val-loss.png"]
    assert [point["round"] for point in plots._points] == [1, 2]


def test_curve_against_each_cost() -> None:
    """Units grow with the values; a cost that was not counted has no panel."""
    points = [
        {"round": 0.0, "upload_bytes": 0.0, "simulated_seconds": 0.0, "val/loss": 3.0},
        {"round": 1.0, "upload_bytes": 5e6, "simulated_seconds": 5400.0, "val/loss": 2.0},
    ]
    axes = metric_figure("val/loss", points, "rounds").axes
    assert [a.get_xlabel() for a in axes] == ["Rounds of training", "Sent by clients (MB)", "Simulated time (hours)"]
    assert [a.lines[0].get_xdata()[1] for a in axes] == [1.0, 5.0, 1.5]  # type: ignore[index]
    assert all(list(a.lines[0].get_ydata()) == [3.0, 2.0] for a in axes)  # type: ignore[arg-type]
    assert axes[0].get_ylabel() == "val/loss"
    bare = [{**point, "upload_bytes": 0.0, "simulated_seconds": 0.0} for point in points]
    assert [a.get_xlabel() for a in metric_figure("val/loss", bare, "epochs").axes] == ["Epochs of training"]


def test_ranks_are_a_grid_of_clients_and_rounds() -> None:
    plot, _ = rank_figure({7: [(0, 4.0), (2, 2.5)], 3: [(1, 1.0)]}).axes
    nan = np.nan
    np.testing.assert_array_equal(plot.images[0].get_array().filled(nan), [[nan, 1, nan], [4, nan, 2.5]])  # type: ignore[union-attr]
    assert [label.get_text() for label in plot.get_yticklabels()] == ["3", "7"]
    assert sorted(text.get_text() for text in plot.texts) == ["1", "2.5", "4"]


def test_many_clients_stay_legible(tmp_path: Path) -> None:
    plot, _ = rank_figure({k: [(t, 1.0 + k % 16) for t in range(100)] for k in range(200)}).axes
    assert plot.images[0].get_array().shape == (MAX_CLIENTS, 100)  # type: ignore[union-attr]
    assert plot.get_ylabel() == "Client (first of 200)" and not plot.texts


def test_pickles() -> None:
    plots = RoundPlots()
    plots._points.append({"round": 1.0})
    assert pickle.loads(pickle.dumps(plots))._points == plots._points
