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
    """Swaps clients' own adapters in while a test loader asks for them (`ClientLoader(personalised=True)`).

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
        """Refuse a personalised loader, which would get the server's adapter.

        Raises:
            FederatedConfigError: If the loader is personalised.
        """
        if _is_personalised(trainer.val_dataloaders, dataloader_idx):
            raise FederatedConfigError(
                "Expected a personalised loader among the test loaders but got one for validation: return it from "
                "`test_dataloader`."
            )

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Load the adapter of the batch's client, or the server's for other loaders.

        Raises:
            FederatedConfigError: If no client kept an adapter, or the batch does not name its client.
        """
        if not _is_personalised(trainer.test_dataloaders, dataloader_idx):
            self._restore()
            return
        federation = self.federation
        assert federation is not None
        kept = self.loaded
        if kept is None:
            kept = {k: state.adapter for k, state in federation.states.items() if state.adapter}
        if not kept:
            raise FederatedConfigError(
                "Expected clients' own adapters for the personalised loader but none were kept: train with "
                "`clients.keep_adapters: true` and test from that run or its checkpoint."
            )
        if not isinstance(batch, Mapping) or "client_id" not in batch:
            raise FederatedConfigError(
                "Expected batches that name their client from the personalised loader but got none with a `client_id`: "
                "let the examples of its data set have one."
            )
        if self._server is None:
            self._server = federation.adapter.read().clone()
        own = kept.get(int(batch["client_id"][0]))
        federation.adapter.write(self._server if own is None else AdapterState.from_tensors(own))

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
