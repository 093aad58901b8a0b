"""Figures are those of three clients with ranks 4, 2 and 1 on two layers `c_attn`: A is (rank, 8), B is (24, rank).

So one slot of a layer is 8 weights of A and 24 of B; in float32 a slot of the network is 2 * 4 * (8 + 24) = 256 bytes.
The network has 1792 weights in matrix products: 192 + 64 + 256 + 256 in each of two layers, 256 in the head. A token
costs 4 operations for each of them and of the 64 of a slot, and 2 for each that the client trains. Shards hold 8, 5 and
11 examples of 8 tokens.
"""

import csv
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger

from pl_fed.callbacks import CommunicationMonitor, CommunicationTotals
from pl_fed.callbacks._client_table import COLUMNS, client_rows, log_table, start_csv
from pl_fed.callbacks.communication_monitor import round_seconds
from pl_fed.clients import ClientsConfig, DeviceProfile
from pl_fed.context import ClientContext, RoundContext
from pl_fed.errors import ClientFailureError
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT, FFALoRA
from pl_fed.updates import AdapterState
from tests.helpers.tiny import SHARDS, TinyLM, eval_loader, make_strategy, make_trainer, round_loader

RANKS, TOKENS = [4, 2, 1], [64, 40, 88]
BASE = 4 * 1792  # operations per token without the adapter


def fit(
    rule: Any, folder: Path, *callbacks: Callback, ckpt: Path | None = None, **options: Any
) -> CommunicationMonitor:
    """Train two rounds of all three clients; return the monitor, with what the Trainer logged as `logged`."""
    clients = options.pop("clients", ClientsConfig(ranks=RANKS))
    strategy = make_strategy(rule, cohort=options.pop("cohort", CohortConfig()), clients=clients)
    monitor = CommunicationMonitor(client_table=options.pop("client_table", True))
    logger = CSVLogger(folder, name=None, version=options.pop("version", "run"))
    trainer = make_trainer(strategy, logger=logger, callbacks=[*callbacks, monitor], **options)
    trainer.fit(TinyLM(dropout=0.0), round_loader(SHARDS[:3]), eval_loader(), ckpt_path=ckpt)
    monitor.logged = {k: v.item() for k, v in trainer.callback_metrics.items()}  # type: ignore[attr-defined]
    monitor.trainer = trainer  # type: ignore[attr-defined]
    return monitor


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "clients.csv").open() as file:
        return list(csv.DictReader(file))


class Reject(Callback):
    """Refuses one client at a hook."""

    def __init__(self, client_id: int, hook: str) -> None:
        setattr(self, hook, self.refuse)
        self.client_id = client_id

    def refuse(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.client is not None
        if context.client.client_id == self.client_id:
            raise ClientFailureError(self.client_id, "suspect")


class Delay(Callback):
    """Makes one client slow."""

    def __init__(self, client_id: int, seconds: float) -> None:
        self.client_id, self.seconds = client_id, seconds

    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        assert context.client is not None
        if context.client.client_id == self.client_id:
            context.client.seconds = self.seconds


class SaveEveryBatch(Checkpoint):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:03}.ckpt")


def test_fedit_sends_both_factors_both_ways(tmp_path: Path) -> None:
    """A round: 7 slots of 256 bytes each way; operations of a token: 4 * 1792 + rank * (4 + 2) * 64."""
    monitor = fit(FedIT(), tmp_path)
    flops = sum(tokens * (BASE + rank * 6 * 64) for tokens, rank in zip(TOKENS, RANKS, strict=True))
    assert monitor.totals == CommunicationTotals(2, 2 * 7 * 256, 2 * 7 * 256, 2.0 * flops, 0.0)
    expected = {
        "server/upload_bytes": 7 * 256,
        "server/download_bytes": 7 * 256,
        "server/total_upload_bytes": 2 * 7 * 256,
        "server/total_download_bytes": 2 * 7 * 256,
        "server/flops": flops,
        "server/total_flops": 2 * flops,
        "server/simulated_seconds": 0,
        "server/total_simulated_seconds": 0,
        "server/mean_rank": 7 / 3,
        "server/trained_parameters": 7 * 64 / 3,
    }
    logged = monitor.logged  # type: ignore[attr-defined]
    assert {name: logged[name] for name in expected} == pytest.approx(expected)


def test_a_frozen_factor_is_sent_once(tmp_path: Path) -> None:
    """FFA-LoRA sends B only, 192 bytes a slot; A, 64 bytes a slot, is downloaded in a client's first round."""
    monitor = fit(FFALoRA(), tmp_path)
    assert monitor.totals.upload_bytes == 2 * 7 * 192
    assert monitor.totals.download_bytes == 2 * 7 * 192 + 7 * 64
    assert monitor.logged["server/trained_parameters"] == pytest.approx(7 * 48 / 3)  # type: ignore[attr-defined]


def test_slot_ids_travel_and_diagonals_are_trained(tmp_path: Path) -> None:
    """AFLoRA adds 2 bytes per slot and layer on the wire, and trains B and one diagonal entry: 50 a slot."""
    monitor = fit(AFLoRA(), tmp_path)
    assert monitor.totals.upload_bytes == 2 * 7 * (192 + 4)
    assert monitor.totals.download_bytes == 2 * 7 * (192 + 4) + 7 * 64
    assert monitor.logged["server/trained_parameters"] == pytest.approx(7 * 50 / 3)  # type: ignore[attr-defined]


def test_table_has_one_row_per_client_and_round(tmp_path: Path) -> None:
    fit(FedIT(), tmp_path)
    rows = table(tmp_path / "run")
    assert list(rows[0]) == COLUMNS
    assert [row["round"] for row in rows] == ["0"] * 3 + ["1"] * 3
    found = {int(row["client"]): row for row in rows[3:]}
    for client_id, (rank, tokens) in enumerate(zip(RANKS, TOKENS, strict=True)):
        row = found[client_id]
        assert (float(row["rank"]), int(row["examples"]), int(row["tokens"])) == (rank, tokens / 8, tokens)
        assert row["upload_bytes"] == row["download_bytes"] == str(256 * rank)
        assert float(row["flops"]) == tokens * (BASE + rank * 6 * 64)
        assert row["failure"] == ""


def test_time_is_that_of_the_slowest_client(tmp_path: Path) -> None:
    """1 Mbit/s down and up, 0.001 GFLOPS: client 2 with 88 tokens is the slowest."""
    device = DeviceProfile(gflops=0.001, uplink_mbps=1, downlink_mbps=1)
    monitor = fit(FedIT(), tmp_path, clients=ClientsConfig(ranks=RANKS, devices=[device], ladder=(4, 2, 1)))
    seconds = 88 * (BASE + 6 * 64) / 1e6 + 2 * 256 * 8e-6
    assert monitor.totals.simulated_seconds == pytest.approx(2 * seconds)
    assert monitor.logged["server/simulated_seconds"] == pytest.approx(seconds)  # type: ignore[attr-defined]


def test_late_client_costs_bytes_and_the_whole_time_budget(tmp_path: Path) -> None:
    """The last client is delayed to 7 s, over the budget of 5; the others take less than 1 s."""
    device = DeviceProfile(gflops=0.001)
    clients = ClientsConfig(ranks=RANKS, devices=[device], ladder=(4, 2, 1), round_seconds=5.0)
    monitor = fit(FedIT(), tmp_path, Delay(2, 7.0), clients=clients, max_epochs=1)
    assert monitor.totals.simulated_seconds == 5.0
    assert monitor.totals.upload_bytes == monitor.totals.download_bytes == 7 * 256
    assert {row["client"]: row["failure"] for row in table(tmp_path / "run")} == {"0": "", "1": "", "2": "timeout"}


@pytest.mark.parametrize(("hook", "upload"), [("on_client_end", 5 * 256), ("on_upload", 7 * 256)])
def test_rejected_client_costs_what_it_really_sent(hook: str, upload: int, tmp_path: Path) -> None:
    monitor = fit(FedIT(), tmp_path, Reject(1, hook), max_epochs=1)
    assert (monitor.totals.upload_bytes, monitor.totals.download_bytes) == (upload, 7 * 256)
    assert [row["failure"] for row in table(tmp_path / "run") if row["client"] == "1"] == ["suspect"]


def context() -> RoundContext:
    client = ClientContext(3, 0, 2, 10, 4, {}, num_tokens=80, download_bytes=7, upload_bytes=5, flops=2.0, seconds=9.0)
    return RoundContext(4, None, 0, (3, 8), AdapterState(), failures={8: "dropout"}, finished=[client])


def test_client_that_never_started_costs_nothing() -> None:
    assert client_rows(context()) == [
        [4, 3, 0.0, 10, 80, 7, 5, 2.0, 9.0, ""],
        [4, 8, None, None, 0, 0, 0, 0.0, 0.0, "dropout"],
    ]


def test_server_waits_for_the_budget_at_most() -> None:
    limited = context()
    limited.time_budget = 2.5
    assert round_seconds(context()) == 9.0
    assert round_seconds(limited) == 2.5


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
@pytest.mark.parametrize("folder", ["run", "resumed-{}"])
def test_resumed_run_equals_uninterrupted_run(folder: str, tmp_path: Path) -> None:
    """From the first, an inner and the last batch of each round, in the same folder and in a new one."""
    checkpoints = tmp_path / "run" / "checkpoints"
    options: dict[str, Any] = {"cohort": CohortConfig(clients=2), "max_epochs": 3}
    expected = fit(AFLoRA(), tmp_path, SaveEveryBatch(checkpoints), **options).totals
    written = (tmp_path / "run" / "clients.csv").read_text()
    saved = sorted(checkpoints.iterdir())
    assert len(saved) >= 12
    for number in (0, 2, 4, 5, 6, 8, len(saved) - 2):
        version = folder.format(number)
        found = fit(AFLoRA(), tmp_path, ckpt=saved[number], version=version, **options)
        assert found.totals == expected, saved[number].name
        assert (tmp_path / version / "clients.csv").read_text() == written, saved[number].name


def test_rounds_that_are_trained_again_leave_no_double_rows(tmp_path: Path) -> None:
    """Rows of the resumed round and later go, and so does one that a crash cut off."""
    path = tmp_path / "clients.csv"
    path.write_text(",".join(COLUMNS) + "\n0,1,1.0,2,3,4,5,6.0,7.0,\n1,1,1.0,2,3,4,5,6.0,7.0,timeout\n2,1,1.")
    trainer = make_trainer("auto")
    start_csv(trainer, path, 1)
    assert path.read_text().splitlines()[1:] == ["0,1,1.0,2,3,4,5,6.0,7.0,"]
    start_csv(trainer, path, 0)
    assert path.read_text().splitlines() == [",".join(COLUMNS)]


def test_loggers_with_tables_get_one_per_round(tmp_path: Path) -> None:
    class Tables(CSVLogger):
        def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
            tables.append((key, columns, data))

    tables: list[Any] = []
    logger = Tables(tmp_path)
    log_table(make_trainer("auto", logger=[CSVLogger(tmp_path), logger]), client_rows(context()))
    assert tables == [("clients", COLUMNS, client_rows(context()))]


def test_state_is_made_of_primitives(tmp_path: Path) -> None:
    """A checkpoint inside a round loads with `weights_only=True`."""
    fit(FedIT(), tmp_path, SaveEveryBatch(tmp_path), max_epochs=1)
    callbacks = torch.load(tmp_path / "001.ckpt", weights_only=True)["callbacks"]
    assert callbacks["CommunicationMonitor"]["rounds"] == callbacks["CommunicationMonitor"]["upload_bytes"] == 0
    assert callbacks["FederatedLoop"]["round"]["clients"][0]["client"]["figures"]["trained_parameters"] in (
        256,
        128,
        64,
    )


def test_testing_an_older_checkpoint_keeps_the_totals(tmp_path: Path) -> None:
    monitor = fit(FedIT(), tmp_path, SaveEveryBatch(tmp_path), max_epochs=2)
    before = CommunicationTotals(**vars(monitor.totals))
    trainer = monitor.trainer  # type: ignore[attr-defined]
    trainer.test(TinyLM(), eval_loader(), ckpt_path=tmp_path / "001.ckpt", verbose=False)
    assert monitor.totals == before != CommunicationTotals()


def test_table_can_be_left_out(tmp_path: Path) -> None:
    fit(FedIT(), tmp_path, client_table=False, max_epochs=1)
    assert not (tmp_path / "run" / "clients.csv").exists()


def test_pickles(tmp_path: Path) -> None:
    monitor = CommunicationMonitor()
    monitor.totals.upload_bytes = 3
    assert pickle.loads(pickle.dumps(monitor)).totals == monitor.totals
