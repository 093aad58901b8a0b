"""A tiny random language model, made on the spot: for trying a configuration out in seconds, without any download."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pl_fed.assets.cache import build_once, cache_dir

TINY_MODEL = "tiny-random-llama"
_SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def tiny_model() -> str:
    """Return the folder of a Llama with two layers of width 32 and one token per character; 60 KB, random weights.

    Example:
        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained(tiny_model())
        >>> tokenizer.decode(tokenizer("2 + 3").input_ids)
        '2 + 3'
    """
    return str(build_once(cache_dir() / "models" / f"{TINY_MODEL}-1", _build))


def _build(work: Path, finished: Path) -> None:
    characters = sorted(string.ascii_letters + string.digits + string.punctuation + " \n")
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = Fuse()
    pad, unk, bos, eos = _SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, bos_token=bos, eos_token=eos
    )
    fast.save_pretrained(finished)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(finished)
