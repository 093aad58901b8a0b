"""Clients of an audit out of a Trainer: its training data, its module's loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pl_fed._lightning import LightningModule, Trainer
from pl_fed.attacks.audit import AuditSettings, SimulatedClients
from pl_fed.attacks.cut_norm import Forward, find_target
from pl_fed.callbacks._audit_batches import count_examples, count_labels, draw_batches, noise_like
from pl_fed.callbacks._lent_module import labels_of, loss_of


def simulated_clients(
    trainer: Trainer,
    module: LightningModule,
    settings: AuditSettings,
    num_clients: int,
    batch_size: int | None,
    labels: Callable[[Any], Tensor],
    seed: int,
) -> tuple[Forward, SimulatedClients[Any]]:
    """Return what runs the module on noise, and clients with their own examples.

    Args:
        trainer: Its training loader is drawn from, and stays as it is.
        module: A copy that may be trained.
        settings: How clients train.
        num_clients: Number of clients.
        batch_size: Labels of a client and step; None takes the loader's.
        labels: Returns the labels of a batch, for a module without `audit_labels`.
        seed: Seed of the choice of examples and of the clients' dropout.

    Raises:
        CannotAttackError: If the module has no head or norm layer that can be attacked.
    """
    loss, steps = loss_of(module), settings.local.steps
    drawn = draw_batches(trainer.train_dataloader, num_clients, steps, batch_size, seed)
    batches = [[_as_trained(trainer, module, batch) for batch in client] for client in drawn]
    noise = noise_like(batches[0][0], seed)
    num_classes = find_target(module, lambda: loss(noise)).head.out_features
    found = [[labels_of(module, batch, labels) for batch in client] for client in batches]
    counts = [torch.stack([count_labels(part, num_classes) for part in client]) for client in found]
    sizes = torch.tensor([sum(count_examples(part, num_classes) for part in client) for client in found])
    first_mix = counts[0][0].double() / count_examples(found[0][0], num_classes)
    true = torch.stack([client.sum(0) for client in counts])
    return lambda: loss(noise), SimulatedClients(batches, loss, true, first_mix, sizes, seed)


def _as_trained(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Return a batch as `training_step` gets it: in the precision's number format, on the module's device."""
    return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), module.device)
