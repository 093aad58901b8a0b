"""What several tests of callbacks share."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from tests.modules.tiny_models import llama_config, save


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **drop, intermediate_size=24, pad_token_id=0, initializer_range=0.2)
    return save(BertModel(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its classification head has no bias; dropout stays on, as it is before the last norm only."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=32, n_positions=32, bos_token_id=1, eos_token_id=1)
    return save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), eos_token="<eos>")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return save(LlamaForCausalLM(llama_config()), tmp_path_factory.mktemp("llama"))
