"""What clients keep between rounds: in memory, or in a file where a population is too large for that.

In a file a client's state is a row for each round in which it took part; rows are never changed. A checkpoint names the
rounds that it follows, so runs that go on from the same checkpoint share a file without disturbing each other.
"""

import io
import sqlite3
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection

from pl_fed.clients import ClientState
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.processes import Processes

TABLE = (
    "CREATE TABLE IF NOT EXISTS states (client_id INTEGER, run TEXT, round_idx INTEGER, state BLOB, "
    "PRIMARY KEY (client_id, run, round_idx)) WITHOUT ROWID"
)


class ClientStore(MutableMapping[int, ClientState]):
    """States by client; with a file, memory holds those of the round in progress only.

    Args:
        path: The SQLite file; None keeps everything in memory.
        device: Where tensors are wanted.
        writes: Whether this process writes the file; another one may.
    """

    def __init__(self, path: str | None = None, device: torch.device | None = None, writes: bool = True) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.device, self.writes = device or torch.device("cpu"), writes
        self.recent: dict[int, ClientState] = {}
        self._past: list[tuple[str, int]] = []  # runs to look in, each with its number of rounds; the last is this one
        self._run: str | None = None  # under which this run writes
        if self.path is not None:
            self._create()

    def _create(self) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as file, file:
                file.execute("PRAGMA journal_mode=WAL")
                file.execute(TABLE)
        except (OSError, sqlite3.Error) as error:
            raise FederatedConfigError(
                f"Expected `clients.store` to be a file for clients' states but '{self.path}' cannot be used "
                f"({error}): name another one."
            ) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self.path), timeout=60)

    def __getitem__(self, client_id: int) -> ClientState:
        """Return a client's state, which may be changed until the end of the round."""
        if client_id not in self.recent:
            found = self.read(client_id)
            if found is None:
                raise KeyError(client_id)
            self.recent[client_id] = found
        return self.recent[client_id]

    def read(self, client_id: int) -> ClientState | None:
        """Return a client's state to look at, None without one; nothing stays in memory."""
        if client_id in self.recent:
            return self.recent[client_id]
        if self.path is None:
            return None
        query = "SELECT state FROM states WHERE client_id=? AND run=? AND round_idx<? ORDER BY round_idx DESC LIMIT 1"
        with closing(self._connect()) as file:
            for run, rounds in reversed(self._past):
                row = file.execute(query, (client_id, run, rounds)).fetchone()
                if row is not None:
                    state = torch.load(io.BytesIO(row[0]), weights_only=True)
                    return ClientState.from_state_dict(state, self.device)
        return None

    def __setitem__(self, client_id: int, state: ClientState) -> None:
        """Keep a client's state."""
        self.recent[client_id] = state

    def __delitem__(self, client_id: int) -> None:
        """Forget what a client did in the round in progress."""
        del self.recent[client_id]

    def __contains__(self, client_id: object) -> bool:
        """Tell whether a client ever took part."""
        return client_id in self.recent or (isinstance(client_id, int) and self.read(client_id) is not None)

    def __iter__(self) -> Iterator[int]:
        """Iterate over all clients that ever took part."""
        found = set(self.recent)
        if self.path is not None:
            with closing(self._connect()) as file:
                for run, rounds in self._past:
                    rows = file.execute("SELECT client_id FROM states WHERE run=? AND round_idx<?", (run, rounds))
                    found |= {row[0] for row in rows}
        return iter(sorted(found))

    def __len__(self) -> int:
        """Return how many clients ever took part."""
        return sum(1 for _ in self)

    def end_round(self, round_idx: int, processes: Processes) -> None:
        """Write the states of the round, if there is a file, and let go of them."""
        if self.path is None:
            return
        if self._run is None:
            self._run = processes.broadcast(uuid.uuid4().hex)
            self._past.append((self._run, 0))
        if self.writes:
            rows = [(client_id, self._run, round_idx, _packed(state)) for client_id, state in self.recent.items()]
            with closing(self._connect()) as file, file:
                file.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", rows)
        processes.gather(None)  # nobody reads before it is written
        self._past[-1] = (self._run, round_idx + 1)
        self.recent = {}

    def drop_round(self) -> None:
        """Forget what clients did in a round that is given up, if there is a file."""
        if self.path is not None:
            self.recent = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the states in memory, and which rows of the file belong to them."""
        clients = {client_id: state.state_dict() for client_id, state in self.recent.items()}
        return {"clients": clients, "past": [list(run) for run in self._past]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointMismatchError: If the checkpoint's states are in a file, and not in this one.
        """
        self._past, self._run = [(str(run), int(rounds)) for run, rounds in state["past"]], None
        self.recent = {k: ClientState.from_state_dict(v, self.device) for k, v in state["clients"].items()}
        known = self._runs() if self._past else set()
        if missing := [run for run, rounds in self._past if rounds and run not in known]:
            raise CheckpointMismatchError(
                f"Expected the clients' states of run {missing[0]} in `clients.store` but '{self.path}' has none of "
                "it: give the file that the checkpoint's run was started with."
            )

    def _runs(self) -> set[str]:
        if self.path is None:
            return set()
        with closing(self._connect()) as file:
            return {row[0] for row in file.execute("SELECT DISTINCT run FROM states")}


def _packed(state: ClientState) -> bytes:
    buffer = io.BytesIO()
    torch.save({key: _on_cpu(value) for key, value in state.state_dict().items()}, buffer)
    return buffer.getvalue()


def _on_cpu(value: Any) -> Any:
    """Return a value with its tensors in the host's memory, none a view of more than it shows."""
    return apply_to_collection(value, torch.Tensor, lambda tensor: tensor.detach().cpu().clone())
