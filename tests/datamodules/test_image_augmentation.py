"""Images that are changed at random in training: the same again wherever they are the same."""

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from pl_fed.datamodules import ImageData, ImageTransform, SplitConfig
from pl_fed.datamodules.image_batches import TrainingCollator, augment
from pl_fed.rounds import CohortConfig, LocalTraining
from tests.helpers.images import Build, ready


def test_augment_cuts_and_mirrors() -> None:
    """Every result is a window of the padded image, mirrored or not; all places and both sides come up."""
    image = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 3, 4)
    padded = torch.nn.functional.pad(image, [1] * 4)
    windows = {
        (top, left, flip): padded[0, 0, top : top + 3, left : left + 4].flip(*([1] if flip else []))
        if flip
        else padded[0, 0, top : top + 3, left : left + 4]
        for top in range(3)
        for left in range(3)
        for flip in (False, True)
    }
    found = augment(image.expand(400, 1, 3, 4), 1, True, torch.Generator().manual_seed(0))
    seen = {key for result in found for key, window in windows.items() if torch.equal(result[0], window)}
    assert all(any(torch.equal(result[0], window) for window in windows.values()) for result in found)
    assert seen == set(windows)
    plain = image.expand(3, 1, 3, 4)
    assert torch.equal(augment(plain, 0, False, torch.Generator()), plain)


def training_images(data: ImageData, round_idx: int = 0, skip: int = 0, **changes: Any) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader.plan.bind(CohortConfig(), LocalTraining(epochs=2), seed=1)
    loader.plan.set_epoch(round_idx)
    loader.plan.skip = skip
    return [batch["images"] for batch in loader]


def test_augmentation_follows_seed_round_and_batch(build_images: Build, image_folder: Path) -> None:
    """The same pixels again, from the middle of a round and in a worker; others in the next epoch, round or seed."""
    data = ready(build_images(image_folder, transform=ImageTransform(crop_padding=2, flip=True)))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, again, later = training_images(data), training_images(data), training_images(data, skip=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[5:], later, strict=True))
    worker = ready(build_images(image_folder, {"num_workers": 1}, transform=ImageTransform(crop_padding=2, flip=True)))
    assert all(torch.equal(a, b) for a, b in zip(training_images(worker, 1), training_images(data, 1), strict=True))
    other = ready(build_images(image_folder, splits=SplitConfig(seed=0), transform=ImageTransform(crop_padding=2)))
    assert not all(torch.equal(a, b) for a, b in zip(first, training_images(other), strict=True))
    plain = ready(build_images(image_folder))
    assert not any(torch.equal(a, b) for a, b in zip(first, training_images(plain), strict=True))


def test_the_same_batch_in_another_round_is_changed_anew(build_images: Build, image_folder: Path) -> None:
    data = ready(build_images(image_folder, transform=ImageTransform(crop_padding=2, flip=True)))
    loader = data.train_dataloader()
    collate: Any = loader.collate_fn
    assert isinstance(collate, TrainingCollator)
    examples = [data._examples[i] for i in range(6)]
    first = collate(examples)["images"]
    sent = pickle.loads(pickle.dumps(collate))  # as worker processes that are spawned get it
    loader.plan.set_epoch(1)
    assert not torch.equal(collate(examples)["images"], first)
    assert torch.equal(sent(examples)["images"], first)
    assert torch.equal(data.train_dataloader().collate_fn(examples)["images"], first)
    assert torch.equal(copy.deepcopy(collate)(examples)["images"], collate(examples)["images"])
    for held_out in (data.val_dataloader(), *data.test_dataloader()):
        assert isinstance(held_out, DataLoader) and not isinstance(held_out.collate_fn, TrainingCollator)
