"""Images with a class each, split over clients."""

import numpy as np
from flwr_datasets.partitioner import Partitioner

from pl_fed.datamodules.base import FederatedData
from pl_fed.datamodules.config import ImageColumns, ImageTransform, LoadingConfig, SplitConfig
from pl_fed.datamodules.decoding import ImageTable, decode_once, image_shape
from pl_fed.datamodules.image_batches import ImageCollator, ImageDataset, TrainingCollator
from pl_fed.datamodules.image_sources import load_image_splits
from pl_fed.datamodules.labels import read_labels
from pl_fed.datamodules.sources import Rows, Splits, check_columns
from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import RoundLoader


class ImageData(FederatedData):
    """Federated image classification.

    Batches have `images` (batch, channels, height, width), and `labels` and `client_id` (batch,). After `setup` there
    are also `label_names`, `num_labels`, `num_channels` and `image_size`.

    Args:
        dataset: A folder with a folder of images for each class, maybe below folders train, validation and test; hub
            id; name of a packaged set (``fashion-mnist``); or ``digits``, the small set of scikit-learn.
        columns: Which columns hold the image and its class.
        partitioner: Any partitioner of flwr-datasets; None means ten clients with random shares of equal size.
        splits: Sizes of the splits, and the seed.
        transform: From an image file to what a network sees.
        batch_size: Images in a training batch.
        loading: How examples are read and put into batches; what it says of tokens has no meaning here.

    Example:
        >>> from flwr_datasets.partitioner import DirichletPartitioner
        >>> partitioner = DirichletPartitioner(num_partitions=10, partition_by="label", alpha=0.5)
        >>> data = ImageData("fashion-mnist", partitioner=partitioner, transform=ImageTransform(crop_padding=2))
    """

    cache_name = "images"
    label_names: list[str]
    num_channels: int
    image_size: tuple[int, int]

    def __init__(
        self,
        dataset: str,
        columns: ImageColumns = ImageColumns(),  # noqa: B008 - frozen
        partitioner: Partitioner | None = None,
        splits: SplitConfig = SplitConfig(),  # noqa: B008 - frozen
        transform: ImageTransform = ImageTransform(),  # noqa: B008 - frozen
        batch_size: int = 32,
        loading: LoadingConfig = LoadingConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(dataset, partitioner, splits, batch_size, loading)
        if loading.generation:
            raise FederatedConfigError(
                "Expected `loading.generation` to be false for classification but got true: there are no prompts."
            )
        self.columns, self.transform = columns, transform

    @property
    def num_labels(self) -> int:
        """Number of classes; there after `setup`."""
        return len(self.label_names)

    def _load_splits(self) -> Splits:
        cache = None if self.loading.cache_dir is None else self._cache / "sources"
        return load_image_splits(self.dataset, self.loading.config_name, cache)

    def _load(self) -> Rows:
        splits = self._load_splits()
        check_columns(splits, [self.columns.image, self.columns.label], self.dataset)
        splits, labels, self.label_names = read_labels(splits, self.columns.label)
        groups = [self.label_names[i] for i in labels[: len(splits["train"])]]
        return Rows(splits, groups, self.label_names, labels)

    def setup(self, stage: str | None = None) -> None:
        """Load, decode and divide the data, unless that is done already."""
        if hasattr(self, "_examples"):
            return
        rows = self._limit(self._load())
        shape = image_shape(rows.splits["train"], self.columns.image, self.transform.size, self.transform.channels)
        mean, std = (tuple(self.transform.by_channel(name, shape.channels)) for name in ("mean", "std"))
        files = [decode_once(split, self.columns.image, shape, self._cache) for split in rows.splits.values()]
        usable, start = {}, 0
        for name, split in rows.splits.items():
            usable[name] = list(range(start, start + len(split)))
            start += len(split)
        holders = self._divide(rows, usable)
        assert rows.targets is not None
        self.num_channels, self.image_size = shape.channels, (shape.height, shape.width)
        self._plain_collator = ImageCollator(mean, std)
        self._examples = ImageDataset(ImageTable(files), np.asarray(rows.targets), holders)
        self._announce(f"{start} images of {shape.height} x {shape.width} x {shape.channels}")

    def train_dataloader(self) -> RoundLoader:
        """Return the loader of a round; cheap, since every round asks for it."""
        loader = super().train_dataloader()
        if self.transform.augments:
            plain, change = self._plain_collator, self.transform
            loader.collate_fn = TrainingCollator(
                plain.mean, plain.std, change.crop_padding, change.flip, self.splits.seed, loader.plan
            )
        return loader

    def _collator(self, evaluation: bool, predicts: bool) -> ImageCollator:
        return self._plain_collator

    def _check_model(self) -> None:
        settings = getattr(self._module, "settings", None)
        found = (getattr(self._module, "num_labels", None), getattr(settings, "in_channels", None))
        for name, has, needs in zip(
            ("num_labels", "network.in_channels"), found, (self.num_labels, self.num_channels), strict=True
        ):
            if has is not None and (has < needs if name == "num_labels" else has != needs):
                raise FederatedConfigError(
                    f"Expected a model with `{name}` of {needs} for '{self.dataset}' but it has {has}: set its "
                    f"`{name}`."
                )
