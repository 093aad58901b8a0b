"""The clients' batches of an audit, drawn from a training loader without moving it, and batches of noise like them."""

from collections.abc import Mapping, Sequence, Sized
from itertools import cycle, islice
from typing import Any

import torch
from jaxtyping import Int
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pl_fed.errors import FederatedConfigError
from pl_fed.rounds import derive_seed

LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def all_whole(least: int, *numbers: object) -> bool:
    """Tell whether all numbers that are given are whole and not below `least`.

    Example:
        >>> all_whole(1, 2, None), all_whole(1, 2.5), all_whole(1, 0)
        (True, False, False)
    """
    return all(number is None or (isinstance(number, int) and number >= least) for number in numbers)


def draw_batches(
    loader: Any, num_clients: int, steps: int, batch_size: int | None = None, seed: int = 0
) -> list[list[Any]]:
    """Return `steps` batches for each client.

    A data set that can be indexed is read directly, with the loader's own `collate_fn`; where the loader knows shards,
    as that of a federation does, each client has its own. Any other loader is iterated from its beginning.

    Args:
        loader: The training loader.
        num_clients: Number of clients.
        steps: Batches of each client.
        batch_size: Examples of a batch; None takes the loader's.
        seed: Seed of the choice.
    """
    size = batch_size or _batch_size(loader)
    dataset = getattr(loader, "dataset", None)
    indexed = (
        isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    )
    if not isinstance(loader, DataLoader) or not indexed or size is None:
        return _iterated(loader, num_clients, steps, batch_size)
    generator = torch.Generator().manual_seed(derive_seed(seed, 0xA7))
    clients = _shards(loader, num_clients, len(dataset), generator)  # type: ignore[arg-type]  # it is Sized
    return [
        [loader.collate_fn([loader.dataset[i] for i in ids[s * size : (s + 1) * size]]) for s in range(steps)]
        for ids in (_repeat(shard, steps * size) for shard in clients)
    ]


def _batch_size(loader: Any) -> int | None:
    own = getattr(loader, "batch_size", None)
    return own if own is not None else getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def _shards(loader: Any, num_clients: int, num_examples: int, generator: torch.Generator) -> list[list[int]]:
    """Return every client's example indices, in random order."""
    known = getattr(getattr(loader, "batch_sampler", None), "shards", None)
    if known is None:
        order = torch.randperm(num_examples, generator=generator)
        shards = [part.tolist() for part in order.tensor_split(num_clients)]
    else:
        chosen = torch.randperm(len(known), generator=generator)[:num_clients].tolist()
        shards = []
        for k in chosen:
            ids = list(known[k])
            shards.append([ids[i] for i in torch.randperm(len(ids), generator=generator).tolist()])
    if len(shards) < num_clients or not all(shards):
        raise FederatedConfigError(
            f"Expected examples for {num_clients} clients (`num_clients`) but the training data has {num_examples} "
            f"examples in {len(shards)} shards, some of them empty: lower it."
        )
    return shards


def _repeat(ids: Sequence[int], length: int) -> list[int]:
    return list(islice(cycle(ids), length))


def _iterated(loader: Any, num_clients: int, steps: int, batch_size: int | None) -> list[list[Any]]:
    if batch_size is not None:
        raise FederatedConfigError(
            f"Expected no `batch_size` for a loader that can only be iterated but got {batch_size}: set the loader's."
        )
    generator = getattr(loader, "generator", None)
    state = None if generator is None else generator.get_state()
    batches = list(islice(loader, num_clients * steps))
    if generator is not None:
        generator.set_state(state)
    if not batches:
        raise FederatedConfigError("Expected training batches for the audit but the loader has none.")
    dealt = list(islice(cycle(batches), num_clients * steps))
    return [dealt[k * steps : (k + 1) * steps] for k in range(num_clients)]


def find_labels(batch: Any) -> Tensor:
    """Return the labels of a batch: of a mapping ``labels`` or the like, of a sequence the last entry.

    Example:
        >>> find_labels((torch.zeros(2, 3), torch.tensor([1, 0])))
        tensor([1, 0])
    """
    found: Any = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, Sequence) and len(batch) > 1:
        found = batch[-1]
    if not isinstance(found, Tensor) or found.dim() == 0:
        raise FederatedConfigError(
            f"Expected batches with labels, under one of {LABEL_KEYS} or last in a tuple, but got a "
            f"{type(batch).__name__}: override `LabelInferenceAttack.labels`."
        )
    return found


def count_labels(labels: Tensor, num_classes: int) -> Int[Tensor, " classes"]:
    """Count class indices, or sum one-hot or multi-hot rows.

    Example:
        >>> count_labels(torch.tensor([0, 2, 2]), 3)
        tensor([1, 0, 2])
    """
    if labels.dim() == 2 and labels.shape[1] == num_classes:
        return labels.sum(0).round().long().cpu()
    if (
        labels.is_floating_point()
        or labels.numel() == 0
        or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes
    ):
        raise FederatedConfigError(
            f"Expected labels as class indices in [0, {num_classes}) or as rows of {num_classes} but got "
            f"{labels.dtype} of shape {tuple(labels.shape)}: the audit needs a classification loss."
        )
    return torch.bincount(labels.flatten(), minlength=num_classes).cpu()


def count_examples(labels: Tensor, num_classes: int) -> int:
    """Return what the mean of a loss divides by: class indices, or rows of labels, which may have several or none.

    Example:
        >>> count_examples(torch.tensor([0, 2, 2]), 3), count_examples(torch.zeros(4, 3), 3)
        (3, 4)
    """
    return len(labels) if labels.dim() == 2 and labels.shape[1] == num_classes else labels.numel()


def noise_like(batch: Any, seed: int = 0) -> Any:
    """Return a batch of the same shapes: noise for floats, random integers in range; masks and the like stay.

    A batch of one example gives noise of two: only samples that differ show whether a layer's input depends on them.

    Example:
        >>> noise_like([torch.zeros(2, 3)])[0].shape
        torch.Size([2, 3])
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0xA8))
    sizes: set[int] = set()
    apply_to_collection(batch, Tensor, lambda tensor: sizes.update(tensor.shape[:1]))

    def noise(tensor: Tensor) -> Tensor:
        if sizes == {1} and tensor.dim():
            tensor = tensor.repeat_interleave(2, 0)
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator).to(tensor)
        if tensor.dtype is torch.bool or tensor.numel() == 0 or int(tensor.max()) <= 1 or int(tensor.min()) < 0:
            return tensor.clone()
        return torch.randint(0, int(tensor.max()) + 1, tensor.shape, generator=generator).to(tensor)

    return apply_to_collection(batch, Tensor, noise)
