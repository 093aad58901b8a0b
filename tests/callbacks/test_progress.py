"""The bars print into captured output; what they show at each update is taken from their own methods."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader

from pl_fed.callbacks import FederatedProgressBar, FederatedRichProgressBar
from pl_fed.context import RoundContext
from pl_fed.rules import FedIT
from tests.helpers.tiny import TinyLM, Tokens, eval_loader, make_strategy, make_trainer, round_loader

Bar = FederatedProgressBar | FederatedRichProgressBar


class Watch(Checkpoint):
    """Notes what the bar says after each batch; a checkpoint callback comes last."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.seen: list[tuple[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        text = self.bar.train_progress_bar
        description = text.desc if isinstance(self.bar, TQDMProgressBar) else text.description  # type: ignore[union-attr]
        self.seen.append((description.strip(" :"), self.bar.get_metrics(trainer, pl_module).get("client")))


def fit(bar: Bar, *callbacks: Any, federated: bool = True, **options: Any) -> list[tuple[str, Any]]:
    watch = Watch(bar)
    strategy: Any = make_strategy(FedIT()) if federated else "auto"
    trainer = make_trainer(strategy, callbacks=[bar, *callbacks, watch], enable_progress_bar=True, **options)
    trainer.fit(TinyLM(), round_loader() if federated else DataLoader(Tokens(), batch_size=15), eval_loader())
    return watch.seen


@pytest.mark.parametrize(("make", "last"), [(FederatedProgressBar, ""), (FederatedRichProgressBar, "/1")])
def test_bar_names_round_and_client(make: type[Bar], last: str, capsys: Any) -> None:
    """Clients train 3, 2, 4 and 2 batches in order of the cohort; after the last one the next client is loaded."""
    cohorts: list[list[int]] = []

    class Note(Checkpoint):
        def on_round_start(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
            cohorts.append(list(context.cohort))

    seen = fit(make(), Note())
    expected: list[tuple[str, Any]] = []
    for round_idx, cohort in enumerate(cohorts):
        places = [(i, k) for i, k in enumerate(cohort) for _ in range([3, 2, 4, 2][k])]
        for i, k in places[1:]:
            expected.append((f"Round {round_idx}{last}", f"{i + 1}/3 (#{k}, rank {4 - k})"))
        expected.append((f"Round {round_idx}{last}", None))
    assert seen == expected
    assert f"Round 1{last}" in capsys.readouterr().out


@pytest.mark.parametrize(("make", "last"), [(FederatedProgressBar, ""), (FederatedRichProgressBar, "/1")])
def test_without_rounds_it_is_lightnings_bar(make: type[Bar], last: str) -> None:
    assert fit(make(), federated=False) == [(f"Epoch {i}{last}", None) for i in (0, 0, 1, 1)]


@pytest.mark.parametrize("make", [FederatedProgressBar, FederatedRichProgressBar])
def test_bar_that_is_off_is_silent(make: type[Bar], capsys: Any) -> None:
    bar = make(refresh_rate=0)
    trainer = make_trainer(make_strategy(), callbacks=[bar], enable_progress_bar=True)
    trainer.fit(TinyLM(), round_loader(), eval_loader())
    assert "Round" not in capsys.readouterr().out


def test_bars_take_lightnings_arguments_and_pickle(tmp_path: Path) -> None:
    plain, rich = FederatedProgressBar(refresh_rate=7, leave=True), FederatedRichProgressBar(refresh_rate=3)
    assert isinstance(plain, TQDMProgressBar) and isinstance(rich, RichProgressBar)
    assert pickle.loads(pickle.dumps(plain)).refresh_rate == 7
    assert pickle.loads(pickle.dumps(rich)).refresh_rate == 3
