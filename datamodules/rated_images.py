"""Images with an entity score and a semantic score, split over clients by raters' groups, sites or any partitioner."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from flwr_datasets.partitioner import NaturalIdPartitioner, Partitioner
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from pl_fed.datamodules.base import FederatedData
from pl_fed.datamodules.config import ImageTransform, LoadingConfig, SplitConfig
from pl_fed.datamodules.decoding import ImageTable, decode_once, image_shape
from pl_fed.datamodules.image_batches import ImageCollator, TrainingCollator
from pl_fed.datamodules.partition import Indices
from pl_fed.datamodules.rated_batches import RatedCollator, RatedDataset
from pl_fed.datamodules.rated_source import LeftOut, RatedSet, RatedSource, load_rated, write_left_out
from pl_fed.datamodules.rated_splits import divide_by_content
from pl_fed.datamodules.sources import Rows
from pl_fed.datamodules.tokens import TokenTable, tokenise_once
from pl_fed.datamodules.vocabulary import check_vocabulary, find_tokenizer, pad_token_id, tokenizer_hash
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.images import unescaped
from pl_fed.isa.story_encoder import FORMAT, StoryEncoder, share_cut
from pl_fed.loaders import RoundLoader

GROUP = "group"


class RatedImages(FederatedData):
    """Rated images for a scorer.

    Batches have `targets` (batch, 2), the entity and the semantic score in [0, 1]; `ratings` (batch, raters, 2), nan
    where a rater has not rated; `client_id` (batch,) and `file_names`; `images` (batch, channels, height, width) unless
    `transform` is None. Of every kind of text there is the whole text in ``<kind>_text``; with a tokenizer also
    `input_ids` and `attention_mask` (batch, length) of the first kind, and ``<kind>_input_ids`` and
    ``<kind>_attention_mask`` of the others; what is longer than `max_length` loses parts of its longest sections.

    After `setup` there are also `raters`, `score_means`, `left_out` and, with images, `num_channels` and `image_size`.
    A partitioner can read the columns `group`, `entity_level` and `semantic_level` (1 to 5), and those of the ratings
    file that have one value for each image. The splits are those of `pl_fed.datamodules.rated_splits`.

    Args:
        source: Where ratings, images and texts are.
        transform: From an image file to what a network sees; None leaves images out of the batches.
        partitioner: Any partitioner of flwr-datasets; None means a client for each group of `source.group_by`, or ten
            clients with random shares.
        splits: Shares of the splits, and the seed; an image's split depends on its pixels alone.
        tokenizer: Name or folder of the tokenizer; None means that of the LightningModule, if it has one.
        max_length: Largest number of tokens of a text.
        batch_size: Images in a training batch.
        loading: How examples are read and put into batches.

    Example:
        >>> source = RatedSource("ratings.csv", images="images", texts={"cot": "texts.jsonl"}, group_by="site")
        >>> data = RatedImages(source, tokenizer="sentence-transformers/all-MiniLM-L6-v2", max_length=512)
    """

    cache_name = "rated"
    raters: tuple[str, ...]
    left_out: list[LeftOut]
    num_channels: int
    image_size: tuple[int, int]
    _examples: RatedDataset

    def __init__(
        self,
        source: RatedSource,
        transform: ImageTransform | None = ImageTransform(size=224, channels=3),  # noqa: B008 - frozen
        partitioner: Partitioner | None = None,
        splits: SplitConfig = SplitConfig(),  # noqa: B008 - frozen
        tokenizer: str | None = None,
        max_length: int = 512,
        batch_size: int = 16,
        loading: LoadingConfig = LoadingConfig(),  # noqa: B008 - frozen
    ) -> None:
        if max_length < 1:
            raise FederatedConfigError(f"Expected `max_length` to be at least 1 but got {max_length}.")
        if loading.generation:
            raise FederatedConfigError("Expected `loading.generation` to be false for scores but got true.")
        if partitioner is None and source.group_by is not None:
            partitioner = NaturalIdPartitioner(partition_by=GROUP)
        super().__init__(source.ratings, partitioner, splits, batch_size, loading)
        self.source, self.transform, self.tokenizer, self.max_length = source, transform, tokenizer, max_length
        self._fitted: PreTrainedTokenizerBase | None = None

    def prepare_data(self) -> None:
        """Check the images, while the machine's other processes wait."""
        load_rated(self.source, self._cache)

    def _load(self) -> Rows:
        self._rated = load_rated(self.source, self._cache)
        table = rated_table(self._rated, Path(self.source.images).expanduser())
        names = [image.group for image in self._rated.images]
        levels = [f"SS {level}" for level in table["semantic_level"]]
        order = [] if self.source.group_by else [f"SS {level}" for level in range(1, 6)]
        return Rows({"train": table}, names if self.source.group_by else levels, order)

    def setup(self, stage: str | None = None) -> None:
        """Load, check, decode, tokenise and divide the data, unless that is done for this tokenizer already."""
        found = self._tokenizer()
        if hasattr(self, "_examples") and found is self._fitted:
            return
        if found is not None:
            check_vocabulary(found, self._module)
        rows = self._limit(self._load())
        data = rows.splits["train"]
        chosen, kinds = data["row"][:], list(self._rated.texts)
        self.raters, self.left_out = self._rated.ratings.raters, self._rated.left_out
        tokens = {} if found is None else {kind: self._tokens(data, kind, found) for kind in kinds}
        images = None if self.transform is None else self._decode(data, self.transform)
        self._contents = [self._rated.contents[i] for i in chosen]
        holders = self._divide(rows, {"train": list(range(len(data)))})
        texts = {kind: [self._rated.texts[kind][i] for i in chosen] for kind in kinds}
        self._examples = RatedDataset([self._rated.images[i] for i in chosen], images, texts, tokens, holders)
        pad_id = 0 if found is None else pad_token_id(found)
        self._plain_collator = RatedCollator(self._image_collator, pad_id, self.loading.pad_to_multiple_of)
        self._fitted = found
        self._announce(f"{len(data)} rated images by {len(self.raters)} raters, {len(self.left_out)} left out")

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer; None if there are no texts, or nothing names one."""
        if not self.source.texts or (self.tokenizer is None and getattr(self._module, "tokenizer", None) is None):
            return None
        done = self._fitted if self.tokenizer is not None else None
        return done or find_tokenizer(self.tokenizer, self._module)

    def _tokens(self, data: datasets.Dataset, kind: str, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
        encode = StoryEncoder(tokenizer, self.max_length, f"text_{kind}")
        settings = [type(encode).__name__, str(FORMAT), tokenizer_hash(tokenizer), str(self.max_length)]
        table = TokenTable([tokenise_once(data, [encode.column], encode, settings, self._cache)])
        missing = share_cut(data[encode.column][:], sum(table.lengths), tokenizer)
        rank_zero_info(f"Texts of kind '{kind}': {table.stats()}; {missing:.1%} of all tokens cut.")
        return table

    def _decode(self, data: datasets.Dataset, transform: ImageTransform) -> ImageTable:
        shape = image_shape(data, "image", transform.size, transform.channels)
        self.num_channels, self.image_size = shape.channels, (shape.height, shape.width)
        return ImageTable([decode_once(data, "image", shape, self._cache)])

    @property
    def _image_collator(self) -> ImageCollator | None:
        if self.transform is None:
            return None
        mean, std = (tuple(self.transform.by_channel(name, self.num_channels)) for name in ("mean", "std"))
        return ImageCollator(mean, std)

    def _divide(self, rows: Rows, usable: dict[str, Indices]) -> np.ndarray:
        data = rows.splits["train"]
        self.partition = divide_by_content(data, self._contents, self.partitioner, self.splits)
        self._rows, self._own = rows, usable
        return self.partition.holders(len(data))

    def _lengths(self) -> Sequence[int] | None:
        tables = [table.lengths for table in self._examples.tokens.values()]
        return np.sum(tables, 0).tolist() if tables and self.loading.length_grouped else None

    def _in_order(self, indices: Sequence[int]) -> Indices:
        lengths = self._lengths()
        return list(indices) if lengths is None else sorted(indices, key=lengths.__getitem__, reverse=True)

    @property
    def score_means(self) -> Float[np.ndarray, "2"]:
        """Mean of both scores over all images to train on: what a constant predictor says; there after `setup`."""
        train = [i for shard in self.partition.train for i in shard]
        means: np.ndarray = np.mean([self._examples.rated[i].scores for i in train], 0)
        return means

    def train_dataloader(self) -> RoundLoader:
        """Return the loader of a round; cheap, since every round asks for it."""
        loader, plain = super().train_dataloader(), self._plain_collator
        if self.transform is not None and self.transform.augments and plain.images is not None:
            augment = (self.transform.crop_padding, self.transform.flip, self.splits.seed, loader.plan)
            loader.collate_fn = replace(plain, images=TrainingCollator(plain.images.mean, plain.images.std, *augment))
        return loader

    def write_left_out(self, path: str | Path) -> None:
        """Write the images that are not used and why, as CSV; after `setup`.

        Args:
            path: The file.
        """
        write_left_out(self.left_out, path)

    def _collator(self, evaluation: bool, predicts: bool) -> Any:
        return self._plain_collator

    def _check_model(self) -> None:
        if self._fitted is not None:
            check_vocabulary(self._fitted, self._module)


def rated_table(rated: RatedSet, folder: Path) -> datasets.Dataset:
    """Return rated images as rows that partitioners can read.

    Args:
        rated: The images.
        folder: Where their files are.
    """
    scores = np.stack([image.scores for image in rated.images])  # (images, 2)
    levels = np.rint(1 + 4 * scores).astype(int).T.tolist()
    columns: dict[str, list[Any]] = {
        "image": [str(unescaped(folder / image.file_name)) for image in rated.images],
        "row": list(range(len(rated.images))),
        GROUP: [image.group for image in rated.images],
        "entity_level": levels[0],
        "semantic_level": levels[1],
        **{f"text_{kind}": texts for kind, texts in rated.texts.items()},
    }
    place = {name: i for i, name in enumerate(rated.ratings.file_names)}
    for name, cells in rated.ratings.columns.items():
        values: list[set[str]] = [set() for _ in place]
        for (image, _), value in cells.items():
            values[image].add(value)
        if all(len(found) <= 1 for found in values) and name not in columns:
            columns[name] = [next(iter(values[place[image.file_name]]), None) for image in rated.images]
    rows = datasets.Dataset.from_dict(columns)
    return rows.cast_column("image", datasets.Image(decode=False))
