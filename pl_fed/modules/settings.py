"""Settings of the modules as frozen dataclasses, so that YAML, Python and checkpoints spell them alike."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import LoraConfig
from transformers import GenerationConfig

from pl_fed.errors import FederatedConfigError

ScoreName = Literal["entity", "semantic"]
_MANAGED = ("task_type", "inference_mode", "base_model_name_or_path", "fan_in_fan_out", "revision")


@dataclass(frozen=True)
class LoraSettings:
    """What `peft` is told; the names are those of `peft.LoraConfig`.

    Args:
        r: Rank of the server's adapter; clients may hold fewer slots of it.
        lora_alpha: Numerator of the scale ``lora_alpha / r``; None means ``2 * r``, the same scale for every `r`.
        target_modules: Names (ends of names) of the layers to adapt, one regular expression over whole names, or
            ``all-linear``. None means peft's choice for the architecture, ``all-linear`` where it has none.
        lora_dropout: Probability with which inputs of the adapter are zeroed in training.
        init_lora_weights: True for B = 0 and random A, or a method's name as in peft.
        modules_to_save: Further modules that are trained and saved in full; a classification head always is.
        extra: Any other argument of `peft.LoraConfig`, for example ``{use_rslora: true}``.

    Example:
        >>> LoraSettings(r=8, target_modules=["q_proj", "v_proj"]).alpha
        16
    """

    r: int = 16
    lora_alpha: int | None = None
    target_modules: list[str] | str | None = None
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.r < 1:
            raise FederatedConfigError(f"Expected the rank `lora.r` to be at least 1 but got {self.r}.")
        if self.lora_alpha is not None and self.lora_alpha < 1:
            raise FederatedConfigError(
                f"Expected `lora.lora_alpha` to be at least 1 or null but got {self.lora_alpha}."
            )
        if not 0.0 <= self.lora_dropout < 1.0:
            raise FederatedConfigError(f"Expected `lora.lora_dropout` in [0, 1) but got {self.lora_dropout}.")
        if self.target_modules in ([], ""):
            raise FederatedConfigError(
                "Expected `lora.target_modules` to name layers but got none: name some or leave it null."
            )
        self._check_extra()

    def _check_extra(self) -> None:
        if refused := sorted(set(self.extra) & {*self.__dataclass_fields__, *_MANAGED}):
            raise FederatedConfigError(
                f"Expected `lora.extra` without what is set elsewhere but got {refused}: use the field of `lora` of "
                "that name, or drop it."
            )
        if unknown := sorted(set(self.extra) - set(LoraConfig.__dataclass_fields__)):
            raise FederatedConfigError(
                f"Expected `lora.extra` to hold arguments of `peft.LoraConfig` but got {unknown}: check the spelling."
            )

    @property
    def alpha(self) -> int:
        """Numerator of the scale."""
        return 2 * self.r if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True)
class ModelLoading:
    """How the base model is loaded.

    Args:
        dtype: Type of the frozen weights and of `lora.modules_to_save`; the LoRA factors and a classification head are
            float32 whatever it is.
        quantization: Arguments of `transformers.BitsAndBytesConfig`, for example ``{load_in_4bit: true}``; with a
            ``quant_method`` any other quantisation of transformers. None loads unquantised.
        attn_implementation: Attention of transformers, for example ``sdpa``; None leaves its choice.
        trust_remote_code: Run code that comes with the model.
        gradient_checkpointing: Recompute activations in the backward pass: slower, less memory.
        revision: Branch, tag or commit on the hub.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: dict[str, Any] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """How text is generated, and how much of it for the metrics.

    Args:
        max_new_tokens: Largest number of generated tokens.
        num_examples: Largest number of examples of each loader to generate for; None means all.
        in_validation: Generate in validation too, not in the test alone.
        sample: Draw tokens instead of taking the likeliest.
        extra: Any other argument of `transformers.GenerationConfig`, for example ``{num_beams: 4}``.
    """

    max_new_tokens: int = 64
    num_examples: int | None = None
    in_validation: bool = False
    sample: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.max_new_tokens < 1:
            raise FederatedConfigError(
                f"Expected `generation.max_new_tokens` to be at least 1 but got {self.max_new_tokens}."
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise FederatedConfigError(
                f"Expected `generation.num_examples` to be at least 1 or null but got {self.num_examples}."
            )
        elsewhere = {"max_new_tokens", "do_sample", "pad_token_id", "eos_token_id"}
        if unknown := sorted(set(self.extra) - (set(GenerationConfig().to_dict()) - elsewhere)):
            raise FederatedConfigError(
                "Expected `generation.extra` to hold arguments of `transformers.GenerationConfig` that are not set "
                f"elsewhere ({sorted(elsewhere)}) but got {unknown}: check the spelling or drop them."
            )


@dataclass(frozen=True)
class NetworkSettings:
    """What a network for images is made of; None takes what the Trainer's datamodule says.

    Args:
        options: More arguments of the network's constructor, for example ``{width: 16}``.
        in_channels: Channels of an image (`num_channels` of the datamodule).
        image_size: Height and width of an image in pixels; one number means a square.

    Example:
        >>> NetworkSettings(image_size=28).size
        (28, 28)
    """

    options: dict[str, Any] = field(default_factory=dict)
    in_channels: int | None = None
    image_size: int | list[int] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.in_channels is not None and self.in_channels < 1:
            raise FederatedConfigError(
                f"Expected `network.in_channels` to be at least 1 or null but got {self.in_channels}."
            )
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise FederatedConfigError(
                f"Expected `network.image_size` to be one number of pixels or [height, width] but got "
                f"{self.image_size}."
            )

    @property
    def size(self) -> tuple[int, ...] | None:
        """Height and width."""
        if self.image_size is None:
            return None
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)


@dataclass(frozen=True)
class ScoreSettings:
    """Which scores of an image are learned, and how.

    Args:
        names: ``entity``, ``semantic`` or both.
        levels: Learn the probability of each of so many levels by cross-entropy; the rubric has 5. None learns the
            scores themselves by their squared error.
        soft_labels: Share a rating between the two levels around it; else the nearest level has all of it.
        max_length: Tokens of a text that is to be scored, as in training; None takes the `max_length` of the
            datamodule, or else all that the model can read.

    Example:
        >>> ScoreSettings(levels=5).num_outputs
        10
    """

    names: tuple[ScoreName, ...] = ("entity", "semantic")
    levels: int | None = None
    soft_labels: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        known = get_args(ScoreName)
        if not self.names or len(set(self.names)) < len(self.names) or not set(self.names) <= set(known):
            raise FederatedConfigError(
                f"Expected `scores.names` to be one or both of {', '.join(known)} but got {list(self.names)}."
            )
        if self.levels is not None and self.levels < 2:
            raise FederatedConfigError(f"Expected `scores.levels` to be at least 2 or null but got {self.levels}.")
        if self.soft_labels and self.levels is None:
            raise FederatedConfigError(
                "Expected `scores.levels` with `scores.soft_labels` but got null: set it to 5, or drop `soft_labels`."
            )
        if self.max_length is not None and self.max_length < 1:
            raise FederatedConfigError(
                f"Expected `scores.max_length` to be at least 1 or null but got {self.max_length}."
            )

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a network: for each score one, or one a level."""
        return len(self.names) * (self.levels or 1)
