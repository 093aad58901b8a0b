"""Evaluation of each client with the adapter that it keeps, apart from that of the server's."""

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
        self.loaded: dict[int, dict[str, Tensor]] = {}  # adapters from a checkpoint that is tested
        self._server: AdapterState | None = None  # put aside while a client's adapter is in the network

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Load the adapter of the batch's client, or the server's for other loaders.

        Raises:
            FederatedConfigError: If no client kept an adapter.
        """
        loaders = trainer.test_dataloaders
        loader = loaders[dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
        if not (isinstance(loader, ClientLoader) and loader.personalised):
            self.on_test_end(trainer, pl_module)
            return
        federation = self.federation
        assert federation is not None
        kept = {k: state.adapter for k, state in federation.states.items() if state.adapter} or self.loaded
        if not kept:
            raise FederatedConfigError(
                "Expected clients' own adapters for the personalised loader but none were kept: train with "
                "`clients.keep_adapters: true` and test from that run or its checkpoint."
            )
        if self._server is None:
            self._server = federation.adapter.read().clone()
        own = kept.get(int(batch["client_id"][0]))
        federation.adapter.write(self._server if own is None else AdapterState.from_tensors(own))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the server's adapter back."""
        if self._server is not None and self.federation is not None:
            self.federation.adapter.write(self._server)
            self._server = None
