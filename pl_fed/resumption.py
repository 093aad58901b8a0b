"""Going on from a checkpoint: Lightning's counters and the round's made to agree.

Lightning guesses from its counters what was under way when a checkpoint was written. Two of its guesses are wrong for
rounds of unequal length, and one for everybody; they are mended here, so that a run that was resumed writes the same
checkpoints as one that was not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from pl_fed.accounting import count_tokens
from pl_fed.chunks import PackedBatch
from pl_fed.errors import CheckpointError, TooFewClientsError
from pl_fed.privacy.pairwise.errors import TooFewSurvivorsError


def tokens_by_client(batch: Any) -> list[int]:
    """Return the tokens of each client's part of a batch."""
    return [count_tokens(own) for own in (batch.batches if isinstance(batch, PackedBatch) else [batch])]


def trained_uncounted(trainer: Trainer) -> bool:
    """Tell whether a batch is trained but not every callback has heard of it."""
    now: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(now.ready == now.started == now.processed == now.completed + 1)


def begin_epoch_anew(trainer: Trainer) -> None:
    """Let Lightning begin the next epoch as it would have without the checkpoint, where it would do it by halves.

    - Written at the end of an epoch's last batch: Lightning counts the epoch as done, but begins the next without
      ``on_train_epoch_start`` and without counting it, so that later checkpoints are read as those of another moment.
    - Written while an epoch began: Lightning keeps the last epoch's batches and takes the epoch for trained.
    """
    fit_loop = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    if epoch_loop.restarted_on_train_batch_end and epoch_loop.batch_progress.is_last_batch:
        epoch_loop.batch_progress.increment_completed()
        epoch_loop._batches_that_stepped += 1
        fit_loop.reset_restart_stage()
    elif not fit_loop.restarted_on_epoch_start:
        return
    epoch_loop.reset_restart_stage()
    epoch_loop.restarting = False  # then it counts from zero


class Borders:
    """Whether what happens between two clients or rounds came to its end."""

    def __init__(self) -> None:
        self.broken = ""

    @contextmanager
    def crossing(self, where: str) -> Iterator[None]:
        """Remember where an exception left a ``with`` block: a checkpoint of that moment is of no whole state."""
        try:
            yield
        except (TooFewClientsError, TooFewSurvivorsError):  # the server is as it was before the round
            raise
        except BaseException:
            self.broken = where
            raise


def check_whole(state: dict[str, Any]) -> None:
    """Refuse a checkpoint that was written when a client or a round was half begun or half ended.

    Raises:
        CheckpointError: If it was.
    """
    if state.get("broken"):
        raise CheckpointError(
            f"Expected a checkpoint of a whole state but this one was written when an exception ended the run "
            f"{state['broken']}: resume from an earlier one."
        )
