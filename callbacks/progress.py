"""Lightning's progress bars, counting rounds and naming the client in training."""

import importlib
from typing import TYPE_CHECKING

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.context import ClientContext, RoundContext

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
else:  # of the copy of Lightning that the project follows
    _callbacks = importlib.import_module(Callback.__module__.rpartition(".")[0])
    ProgressBar = _callbacks.ProgressBar
    RichProgressBar, TQDMProgressBar = _callbacks.RichProgressBar, _callbacks.TQDMProgressBar

Items = dict[str, int | str | float | dict[str, float]]


def describe_client(client: ClientContext) -> str:
    """Return a client's place in the round, its id and its rank.

    Example:
        >>> describe_client(ClientContext(5, position=1, num_clients=8, num_examples=3, rank_cap=4, slots={}))
        '2/8 (#5)'
    """
    rank = f", rank {client.mean_rank:.3g}" if client.slots else ""
    return f"{client.position + 1}/{client.num_clients} (#{client.client_id}{rank})"


class _ClientItem(ProgressBar):
    """Adds the client in training to a bar's items and says which round it is."""

    watches_steps = False  # draws them only
    _client: ClientContext | None = None

    def on_client_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Remember the client."""
        self._client = context.client
        self._show(trainer, pl_module, context)

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Forget the last client."""
        self._client = None

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Items:
        """Add the client to Lightning's items."""
        items = super().get_metrics(trainer, pl_module)
        return items if self._client is None else {"client": describe_client(self._client), **items}

    def _show(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Show round and client now, before the client's first batch is done."""
        raise NotImplementedError  # each bar draws in its own way


class FederatedProgressBar(_ClientItem, TQDMProgressBar):
    """Lightning's plain progress bar with ``Round 3`` for ``Epoch 3`` and the client in training.

    Takes the arguments of `TQDMProgressBar`. Without rounds it is that bar.

    Example:
        >>> bar = FederatedProgressBar(refresh_rate=10)
    """

    def _show(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        if not self.train_progress_bar.disable:
            self.train_progress_bar.set_description(f"Round {context.round_idx}", refresh=False)
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))


class FederatedRichProgressBar(_ClientItem, RichProgressBar):
    """Lightning's rich progress bar with ``Round 3`` for ``Epoch 3`` and the client in training.

    Takes the arguments of `RichProgressBar`. Without rounds it is that bar.

    Example:
        >>> bar = FederatedRichProgressBar(leave=True)
    """

    def _show(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        if self.progress is None or self.train_progress_bar_id is None:
            return  # the bar is off, or appears with the first batch after a resume
        self._update_metrics(trainer, pl_module)
        last = "" if context.num_rounds is None else f"/{context.num_rounds - 1}"
        text = f"Round {context.round_idx}{last}".ljust(len(self.validation_description))
        style = f"[{self.theme.description}]" if self.theme.description else ""
        self.progress.update(self.train_progress_bar_id, description=style + text)
