"""What clients keep in a file: the run is that of clients in memory, and memory holds the cohort only."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pl_fed.client_store import ClientStore
from pl_fed.clients import ClientsConfig, ClientState
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.processes import Processes
from pl_fed.rounds import CohortConfig
from tests.helpers.tiny import TinyLM, eval_loader, make_strategy, make_trainer, round_loader
from tests.test_resume import CASES, PEERS, SHORT, check_every_checkpoint, run

NAMES = ["fedsa", "fedit-scaffold", "ffa-kept-optimizer", "pruning-refinement", "flora"]
ALONE = Processes()


def with_store(name: str, path: Path | None) -> dict[str, Any]:
    case = {**SHORT, **{**CASES, **PEERS}[name]}
    store = None if path is None else str(path)
    clients = ClientsConfig(ranks=[4, 3, 2, 1], store=store)
    return {**case, "strategy": {**case.get("strategy", {}), "clients": clients}}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_changes_nothing(name: str, tmp_path: Path) -> None:
    expected, found = run(with_store(name, None)), run(with_store(name, tmp_path / "clients.sqlite"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize("name", NAMES[:2])
def test_runs_that_go_on_share_a_file(name: str, tmp_path: Path) -> None:
    """Every checkpoint of a run is resumed with the same file: none of these runs sees what another one wrote."""
    (tmp_path / "checkpoints").mkdir()
    check_every_checkpoint(with_store(name, tmp_path / "folder" / "clients.sqlite"), tmp_path / "checkpoints", every=2)


def test_memory_holds_the_cohort(tmp_path: Path) -> None:
    strategy = make_strategy(
        cohort=CohortConfig(clients=2),
        clients=ClientsConfig(ranks=[4, 3, 2, 1], store=str(tmp_path / "clients.sqlite"), keep_adapters=True),
    )
    trainer = make_trainer(strategy, max_epochs=6)
    trainer.fit(TinyLM(), round_loader(), eval_loader())
    states = strategy.loop.federation.states  # type: ignore[union-attr]
    assert states.recent == {} and len(states) > 2
    adapters = [states.read(client_id).adapter for client_id in states]  # type: ignore[union-attr]
    assert all(adapters) and states.recent == {}
    assert len(states.state_dict()["clients"]) == 0


def state(value: float) -> ClientState:
    return ClientState({"layer": torch.tensor([0])}, kept={"x": torch.tensor([value])})


def test_rounds_by_hand(tmp_path: Path) -> None:
    """Two runs follow the first round of another; each finds its own later states and the first round's."""
    path = str(tmp_path / "clients.sqlite")
    first = ClientStore(path)
    first[1], first[2] = state(10.0), state(20.0)
    first.end_round(0, ALONE)
    saved = first.state_dict()
    first[1] = state(11.0)
    first.end_round(1, ALONE)
    second = ClientStore(path)
    second.load_state_dict(saved)
    assert second[1].kept["x"] == 10.0 and first[1].kept["x"] == 11.0
    second[2].kept["x"] += 1
    second.end_round(1, ALONE)
    assert second.read(2).kept["x"] == 21.0 and first.read(2).kept["x"] == 20.0  # type: ignore[union-attr]
    third = ClientStore(path)
    third.load_state_dict(second.state_dict())
    assert {k: float(third[k].kept["x"]) for k in third} == {1: 10.0, 2: 21.0}
    third[1].kept["x"] += 5
    third.drop_round()
    assert third[1].kept["x"] == 10.0 and 7 not in third and third.read(7) is None


def test_another_file(tmp_path: Path) -> None:
    store = ClientStore(str(tmp_path / "a.sqlite"))
    store[0] = state(1.0)
    store.end_round(0, ALONE)
    for path in (None, str(tmp_path / "b.sqlite")):
        with pytest.raises(CheckpointMismatchError, match="in `clients.store` but .* has none of it"):
            ClientStore(path).load_state_dict(store.state_dict())


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 100)
    for path in (tmp_path / "text", tmp_path / "text" / "below.sqlite"):
        with pytest.raises(FederatedConfigError, match="`clients.store` to be a file for clients' states but"):
            ClientStore(str(path))
