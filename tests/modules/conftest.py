"""Folders with tiny random models, and a quiet Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from tests.modules.tiny_models import VOCAB, llama_config, save


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return save(LlamaForCausalLM(llama_config()), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its `c_attn` is a Conv1D of 8 x 24; its tokenizer has no padding token."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=VOCAB, n_positions=32, bos_token_id=1, eos_token_id=1)
    return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), eos_token="<eos>")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder without a classification head."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=0,
    )
    return save(BertModel(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama that says the next number: after token i comes i + 1, whatever was before.

    The blocks add nothing, a token's vector is its unit vector, and the output layer is a shift.
    """
    model = LlamaForCausalLM(llama_config(hidden_size=VOCAB))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB))
        model.lm_head.weight.copy_(torch.eye(VOCAB).roll(1, 0))  # row i + 1 answers unit vector i
    return save(model, tmp_path_factory.mktemp("counter"))


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Return a maker of quiet Trainers on the CPU."""

    def make(**changes: Any) -> pl.Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
        return pl.Trainer(**{**quiet, **plain, "default_root_dir": tmp_path, **changes})

    return make
