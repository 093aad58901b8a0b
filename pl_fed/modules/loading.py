"""From a model's name to a tokenizer and a network with an adapter, both checked.

transformers reports every tensor that it could not fill as a table of warnings. A new classification head is meant to
be new, so that report is switched off while loading and read here instead: what is new and will be trained is fine,
anything else is an error.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import rank_zero_info
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN_TARGETS
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from pl_fed.adapters import ADAPTER_NAME
from pl_fed.assets import HUB_ERRORS, AssetNotFoundError, hub_or_caches, hub_refusal, packaged_models, resolve_model
from pl_fed.errors import FederatedConfigError, shortened
from pl_fed.modules.settings import LoraSettings, ModelLoading
from pl_fed.modules.targets import accepted_by_peft, check_modules_to_save, check_targets, linear_in_full
from pl_fed.packing.rows import at_least_float32

_HEADS = frozenset({"classifier", "score"})  # peft trains and saves these of a sequence classifier by itself


def load_tokenizer(model: str, loading: ModelLoading) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; one without padding pads with the end-of-sequence token.

    Raises:
        FederatedConfigError: If there is none, or it has neither of the two tokens.
    """
    with _found(model, "a tokenizer") as folder:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise FederatedConfigError(
                f"Expected the tokenizer of '{model}' to have a padding or end-of-sequence token but it has neither: "
                "set `pad_token` in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_base_model(
    auto_class: Any, model: str, loading: ModelLoading, device: torch.device, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a base model, frozen and in training mode.

    Args:
        auto_class: One of transformers' auto classes.
        model: Hub id or folder.
        loading: How to load it.
        device: Where a quantised model goes; others are moved by Lightning.
        options: More arguments of the configuration, for example ``num_labels``.

    Returns:
        The model, and the names of its tensors that the checkpoint did not have in that shape.

    Raises:
        FederatedConfigError: If the model is unknown or of another kind.
    """
    with _found(model, f"a model for {auto_class.__name__}") as folder, quiet():
        if (Path(folder) / "adapter_config.json").is_file():
            raise ValueError("it is an adapter; give its base model, or the merged weights")
        network, info = auto_class.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **_arguments(loading, device),
            **options,
        )
    if loading.quantization is not None:
        network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    if loading.gradient_checkpointing:
        # newer versions of transformers have another name for it and warn at the old one
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    mismatched = [entry[0] for entry in info["mismatched_keys"]]  # (name, shape there, shape here)
    # transformers returns eval mode, and Lightning restores whatever mode it finds
    return network.requires_grad_(False).train(), sorted({*info["missing_keys"], *mismatched})


def add_adapter(
    network: PreTrainedModel, lora: LoraSettings, task: TaskType, new: list[str], base_model: str
) -> PeftModel:
    """Put the adapter on a base model.

    Args:
        network: The base model.
        lora: Settings of the adapter.
        task: peft's kind of task.
        new: Names of modules besides a head that are trained because the checkpoint did not have them.
        base_model: Name for the exported adapter.

    Raises:
        FederatedConfigError: If `target_modules` or `modules_to_save` match nothing, or what LoRA cannot adapt.
    """
    targets: Any = lora.target_modules or KNOWN_TARGETS.get(network.config.model_type, "all-linear")
    check_targets(network, targets)
    check_modules_to_save(network, lora.modules_to_save or [])
    in_full, heads = [*(lora.modules_to_save or []), *new], _HEADS if task == TaskType.SEQ_CLS else ()
    excluded = linear_in_full(network, [*in_full, *heads]) if targets == "all-linear" else []
    with accepted_by_peft(), warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 calls deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            target_modules=targets,
            lora_dropout=lora.lora_dropout,
            init_lora_weights=cast(Any, lora.init_lora_weights),  # peft checks it
            modules_to_save=in_full or None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
            task_type=task,
            **{"exclude_modules": excluded or None, **lora.extra},
        )
        adapted = cast(PeftModel, get_peft_model(network, config, adapter_name=ADAPTER_NAME))
    adapted.peft_config[ADAPTER_NAME].base_model_name_or_path = base_model  # not this machine's folder
    for name, module in adapted.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and _in_head(name):
            _train_in_float32(module.modules_to_save[ADAPTER_NAME])
    return adapted


def new_modules(network: PreTrainedModel, missing: list[str], task: TaskType, model: str) -> list[str]:
    """Return the modules besides the head that a classifier must train since the checkpoint did not have them.

    Raises:
        FederatedConfigError: If the checkpoint lacks more than what comes after the last block.
    """
    outside = [name for name in missing if task != TaskType.SEQ_CLS or not _in_head(name)]
    modules = sorted({name.rpartition(".")[0] for name in outside})
    in_blocks = any(part.isdigit() for module in modules for part in module.split("."))
    if outside and (task != TaskType.SEQ_CLS or in_blocks or not all(_is_leaf(network, name) for name in modules)):
        raise FederatedConfigError(
            f"Expected `model` to have the weights of {type(network).__name__} but '{model}' lacks {len(outside)} of "
            f"them or has them in another shape, such as {outside[0]}: choose a model of that kind."
        )
    if modules:
        rank_zero_info(f"'{model}' has no weights for {', '.join(modules)}: new and trained in full.")
    return modules


def _is_leaf(network: nn.Module, name: str) -> bool:
    return bool(name) and next(network.get_submodule(name).children(), None) is None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """Check that the model has an embedding for every token of the tokenizer."""
    rows = cast(nn.Embedding, network.get_input_embeddings()).weight.shape[0]
    if len(tokenizer) > rows:
        raise FederatedConfigError(
            f"Expected a tokenizer of at most the model's {rows} embeddings but got one of {len(tokenizer)} tokens: "
            "the tokenizer's files belong to another model, or tokens were added without resizing the embeddings."
        )


def _in_head(name: str) -> bool:
    return not _HEADS.isdisjoint(name.split("."))


def is_float32(name: str) -> bool:
    """Tell whether a tensor is kept in float32 whatever the base model's type."""
    return ".lora_" in name or (".modules_to_save." in name and _in_head(name))


def _train_in_float32(head: nn.Module) -> None:
    def cast_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            at_least_float32(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
        )

    head.float().register_forward_pre_hook(cast_inputs)


def _arguments(loading: ModelLoading, device: torch.device) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": getattr(torch, loading.dtype),
        "revision": loading.revision,
        "trust_remote_code": loading.trust_remote_code,
    }
    if loading.attn_implementation is not None:
        arguments["attn_implementation"] = loading.attn_implementation
    if (settings := loading.quantization) is not None:
        arguments["quantization_config"] = settings if "quant_method" in settings else BitsAndBytesConfig(**settings)
        arguments["device_map"] = {"": device}
    return arguments


@contextmanager
def _found(model: str, expected: str) -> Iterator[str]:
    """Yield what to load; errors name the model in one sentence."""
    try:
        folder = resolve_model(model)
        with hub_or_caches(folder):
            yield folder
    except AssetNotFoundError as error:
        raise FederatedConfigError(str(error)) from error
    except HUB_ERRORS as error:
        reason = shortened(error)
        refusal = None if Path(model).is_dir() else hub_refusal(error, model, packaged_models())
        raise FederatedConfigError(
            f"Expected `model` to be the folder or hub id of {expected} but got '{model}'"
            f"{refusal or f' ({reason}): choose another or complete its files.'}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars, its report of tensors and its remark on layers that it does not shard."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
