"""How much a client's step asks of a machine: its tokens, known before training from a few batches of the loader."""

from dataclasses import dataclass
from statistics import mean

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng

from pl_fed.chunks import Grouped
from pl_fed.loaders import RoundLoader
from pl_fed.packing import base_model, inputs_of
from pl_fed.rounds import epoch_batches

CLIENTS_ASKED = 4


@dataclass(frozen=True)
class StepSize:
    """The step of a client who trains alone.

    Args:
        tokens: Tokens of a batch, padding included.
        width: Of the base model's hidden states.
        padding: Share of the tokens that is padding, in [0, 1).

    Example:
        >>> StepSize(tokens=4 * 96, width=384, padding=0.25)
        StepSize(tokens=384, width=384, padding=0.25)
    """

    tokens: int
    width: int
    padding: float = 0.0


def step_size(module: LightningModule, loader: RoundLoader) -> StepSize | None:
    """Return the size of a client's step, the mean of one batch of up to four clients; None if all have no examples.

    Batches are drawn as in training. Random numbers are left as they were.

    Args:
        module: Has a base model that can be packed.
        loader: Of the rounds.
    """
    model, plan = base_model(module), loader.plan
    assert model is not None
    inputs, examples = inputs_of(model), Grouped(loader.dataset)
    number = len(plan.shards)
    padded, kept = [], []
    with isolate_rng():
        for client_id in sorted({i * number // CLIENTS_ASKED for i in range(CLIENTS_ASKED)}):
            batches = epoch_batches(plan.shards[client_id], plan.batch_size, torch.Generator(), plan.lengths)
            if batches:
                batch = loader.collate_fn(examples[batches[0]])
                padded.append(inputs.num_padded(batch))
                kept.append(inputs.num_tokens(batch))
    if not padded:
        return None
    return StepSize(round(mean(padded)), int(model.config.hidden_size), 1 - sum(kept) / sum(padded))
