"""Evaluation of each client with the adapter that it keeps, apart from that of the server's."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_fed.client_store import ClientStore
from pl_fed.errors import FederatedConfigError
from pl_fed.federation import Federation
from pl_fed.loaders import ClientLoader
from pl_fed.updates import AdapterState


class PersonalisedEvaluation(Callback):
    """Swaps clients' own adapters in while an evaluation loader asks for them (`ClientLoader(personalised=True)`).

    A client that never took part is evaluated with the server's adapter, which is all it has.
    """

    def __init__(self) -> None:
        self.federation: Federation | None = None  # set by the strategy
        self.loaded: ClientStore | None = None  # of the checkpoint that the network was loaded from
        self._server: AdapterState | None = None  # put aside while a client's adapter is in the network

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on from a checkpoint: from now on clients' adapters are those of this run."""
        self.loaded = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Load the adapter of the batch's client, or the server's for other loaders and before any was kept."""
        self._load(trainer.val_dataloaders, dataloader_idx, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Load the adapter of the batch's client, or the server's for other loaders.

        Raises:
            FederatedConfigError: If no client kept an adapter, or the batch does not name its client.
        """
        first = batch_idx == 0 and _is_personalised(trainer.test_dataloaders, dataloader_idx)
        if first and not any(self._adapter_of(client_id) for client_id in self._store()):
            raise FederatedConfigError(
                "Expected clients' own adapters for the personalised loader but none were kept: train with "
                "`clients.keep_adapters: true` and test from that run or its checkpoint."
            )
        self._load(trainer.test_dataloaders, dataloader_idx, batch)

    def _store(self) -> ClientStore:
        assert self.federation is not None
        return self.federation.states if self.loaded is None else self.loaded

    def _adapter_of(self, client_id: int) -> dict[str, Tensor]:
        """Return the adapter that a client keeps; empty if it has none."""
        state = self._store().read(client_id)
        return {} if state is None else state.adapter

    def _load(self, loaders: Any, dataloader_idx: int, batch: Any) -> None:
        if not _is_personalised(loaders, dataloader_idx):
            self._restore()
            return
        assert self.federation is not None
        if not isinstance(batch, Mapping) or "client_id" not in batch:
            raise FederatedConfigError(
                "Expected batches that name their client from the personalised loader but got none with a `client_id`: "
                "let the examples of its data set have one."
            )
        adapter = self.federation.adapter
        if self._server is None:
            self._server = adapter.read().clone()
        own = self._adapter_of(int(batch["client_id"][0]))
        adapter.write(AdapterState.from_tensors(own) if own else self._server)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the server's adapter back, before the round's client is."""
        self._restore()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the server's adapter back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the server's adapter back."""
        self._restore()

    def _restore(self) -> None:
        if self._server is not None and self.federation is not None:
            self.federation.adapter.write(self._server)
            self._server = None


def _is_personalised(loaders: Any, dataloader_idx: int) -> bool:
    """Tell whether one of the Trainer's loaders, which may be one, a list or a dict, is personalised."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    loader = loaders[dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
    return isinstance(loader, ClientLoader) and loader.personalised
