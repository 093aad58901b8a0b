"""What several tests of callbacks share."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.modules.tiny_models import save


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **drop, intermediate_size=24, pad_token_id=0, initializer_range=0.2)
    return save(BertModel(config), tmp_path_factory.mktemp("bert"))
