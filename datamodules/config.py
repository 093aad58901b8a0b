"""What can be set about a federated data set; every value is checked where it is given."""

from dataclasses import dataclass
from typing import Literal

from pl_fed.errors import FederatedConfigError


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise FederatedConfigError(f"Expected `splits.{name}` in [0, 1) but got {value}.")


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise FederatedConfigError(f"Expected `{name}` to be at least 1 but got {value}.")


@dataclass(frozen=True)
class SplitConfig:
    """Who holds which examples. Everything is a function of `seed`, also after a resume.

    Args:
        validation_fraction: Share of each client's shard that it validates on, rounded down.
        test_fraction: Share of each client's shard that it is tested on, rounded down.
        public_fraction: Share of all training examples that the server holds and no client does, rounded down.
        public_examples: The same as a number of examples; give one of the two.
        limit_train: Use at most this many training examples, chosen at random, before anything is split.
        limit_test: Use at most this many examples of the data's own validation and test splits, each.
        seed: Seed of all these choices. A partitioner that draws has a seed of its own.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    public_fraction: float = 0.0
    public_examples: int | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values that need no data."""
        for name in ("validation_fraction", "test_fraction", "public_fraction"):
            _check_fraction(name, getattr(self, name))
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise FederatedConfigError(
                "Expected `splits.validation_fraction` + `splits.test_fraction` below 1 but got "
                f"{self.validation_fraction} + {self.test_fraction}: nothing would be left to train on."
            )
        if self.public_fraction and self.public_examples is not None:
            raise FederatedConfigError(
                "Expected `splits.public_fraction` or `splits.public_examples` but got both: drop one."
            )
        if self.public_examples is not None and self.public_examples < 0:
            raise FederatedConfigError(f"Expected `splits.public_examples` >= 0 but got {self.public_examples}.")
        _check_positive("splits.limit_train", self.limit_train)
        _check_positive("splits.limit_test", self.limit_test)

    def public_size(self, num_examples: int) -> int:
        """Return the size of the public split of that many training examples.

        Raises:
            FederatedConfigError: If it would leave nothing for the clients.
        """
        size = int(self.public_fraction * num_examples + 1e-9)
        if self.public_examples is not None:
            size = self.public_examples
        if size >= num_examples:
            raise FederatedConfigError(
                f"Expected a public split smaller than the {num_examples} training examples but got {size}: "
                "lower `splits.public_examples`."
            )
        return size


@dataclass(frozen=True)
class LoadingConfig:
    """How examples are read and put into batches.

    Args:
        eval_batch_size: Examples in a batch of validation, test and prediction.
        length_grouped: Put texts of like length together, which saves padding.
        num_workers: Worker processes of each loader; 0 loads in the main process.
        pad_to_multiple_of: Pad texts to a multiple of this many tokens, for kernels that need it.
        personalised: Also test every client with the adapter that it keeps, as one more test loader.
        personalised_validation: The same in every validation, on the clients' validation examples.
        generation: Give evaluation batches the prompts alone too, padded on the left (instruction data only).
        config_name: Configuration of a hub data set that has several.
        cache_dir: Folder of the tokens or decoded images; None means ``tokens`` or ``images`` in
            `pl_fed.assets.cache_dir`.
    """

    eval_batch_size: int = 32
    length_grouped: bool = True
    num_workers: int = 0
    pad_to_multiple_of: int | None = None
    personalised: bool = False
    personalised_validation: bool = False
    generation: bool = False
    config_name: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive("loading.eval_batch_size", self.eval_batch_size)
        _check_positive("loading.pad_to_multiple_of", self.pad_to_multiple_of)
        if self.num_workers < 0:
            raise FederatedConfigError(f"Expected `loading.num_workers` >= 0 but got {self.num_workers}.")


@dataclass(frozen=True)
class TextColumns:
    """Which columns hold what.

    Args:
        text: The text.
        label: Its class: an integer, a string, or a named class of `datasets`. Classes of a CSV file are integers if
            all are, with no leading zeros.
    """

    text: str = "text"
    label: str = "label"


@dataclass(frozen=True)
class InstructionColumns:
    """Which columns make an example and how they are put together.

    Args:
        instruction: What the user asks.
        response: What the model should answer; the loss is on it alone.
        input: More context that is put below the instruction, where a row has any.
        topic: A column to tell the clients apart by in the table and picture of the partition.
        template: The prompt's text with ``{instruction}`` in it. None uses the tokenizer's chat template, or a plain
            one if it has none.
        system: System message for the chat template; None leaves the template's own.
    """

    instruction: str = "instruction"
    response: str = "response"
    input: str | None = None
    topic: str | None = None
    template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        """Check the template."""
        if self.template is not None and "{instruction}" not in self.template:
            raise FederatedConfigError(
                f"Expected `columns.template` to contain '{{instruction}}' but got {self.template!r}."
            )
        if self.template is not None and self.system is not None:
            raise FederatedConfigError(
                "Expected `columns.system` with a chat template only but got `columns.template` too: write the "
                "system message into the template."
            )


@dataclass(frozen=True)
class ImageColumns:
    """Which columns hold what; a folder of images has those of the defaults.

    Args:
        image: The image: one of `datasets`, or uint8 numbers of shape (height, width) or (height, width, channels).
        label: Its class: an integer, a string, or a named class of `datasets`.
    """

    image: str = "image"
    label: str = "label"


@dataclass(frozen=True)
class ImageTransform:
    """From an image file to what a network sees: ``(pixel / 255 - mean) / std``.

    Args:
        size: Height and width in pixels to resize to (bilinear, without regard to the shape); None leaves the images,
            which then have one size.
        channels: 1 makes them grey, 3 makes them RGB; None takes what the first training image is.
        mean: Mean of each channel, of pixels in [0, 1]; one number is for all channels. The default is of no data set,
            since a statistic of the clients' data would have to be sent.
        std: Standard deviation of each channel, alike.
        crop_padding: In training, put this many black pixels around an image and cut its size out at random.
        flip: In training, mirror half of the images left to right.

    Example:
        >>> ImageTransform(size=32, channels=3, crop_padding=4, flip=True).augments
        True
    """

    size: int | None = None
    channels: Literal[1, 3] | None = None
    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the values that need no data."""
        _check_positive("transform.size", self.size)
        if self.crop_padding < 0:
            raise FederatedConfigError(f"Expected `transform.crop_padding` >= 0 but got {self.crop_padding}.")
        if min(self.std if isinstance(self.std, list) else [self.std], default=0.0) <= 0.0:
            raise FederatedConfigError(f"Expected `transform.std` above 0 but got {self.std}.")

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return self.crop_padding > 0 or self.flip

    def by_channel(self, name: str, channels: int) -> list[float]:
        """Return `mean` or `std` of every channel.

        Raises:
            FederatedConfigError: If there are more or fewer than channels.
        """
        given = getattr(self, name)
        values = list(given) if isinstance(given, list) else [given] * channels
        if len(values) != channels:
            raise FederatedConfigError(
                f"Expected `transform.{name}` to be one number or {channels}, one for each channel, but got {given}."
            )
        return values
