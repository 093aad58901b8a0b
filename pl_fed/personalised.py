"""Evaluation of each client with the adapter that it keeps, apart from that of the server's."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

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
        self.loaded: dict[int, dict[str, Tensor]] | None = None  # of the checkpoint that the network was loaded from
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
        if _is_personalised(trainer.test_dataloaders, dataloader_idx) and not self._kept():
            raise FederatedConfigError(
                "Expected clients' own adapters for the personalised loader but none were kept: train with "
                "`clients.keep_adapters: true` and test from that run or its checkpoint."
            )
        self._load(trainer.test_dataloaders, dataloader_idx, batch)

    def _kept(self) -> dict[int, dict[str, Tensor]]:
        assert self.federation is not None
        if self.loaded is not None:
            return self.loaded
        return {k: state.adapter for k, state in self.federation.states.items() if state.adapter}

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
        own = self._kept().get(int(batch["client_id"][0]))
        adapter.write(self._server if own is None else AdapterState.from_tensors(own))

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
