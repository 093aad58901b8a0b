"""Baselines of scorers against scikit-learn and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from pl_fed.isa.baselines import PENALTIES, clue_features, entity_features, fit_ridge, mean_embeddings, word_features
from pl_fed.isa.story import Finding, Story, render
from tests.modules.tiny_models import VOCAB, save


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_ridge_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    """With more images than features and with fewer; the last feature is constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * rng.uniform(0.1, 9, shape[1])
    x[:, -1] = 3.0
    y = np.stack([x[:, 0] * 0.05 + 0.5 + 0.1 * rng.normal(size=len(x)), rng.uniform(size=len(x))], 1)
    scaler = StandardScaler().fit(x)
    reference = RidgeCV(PENALTIES).fit(scaler.transform(x), y)
    found = fit_ridge(torch.from_numpy(x), torch.from_numpy(y))
    assert found.penalty == reference.alpha_
    new = rng.normal(size=(5, shape[1]))
    expected = reference.predict(scaler.transform(new)).clip(0, 1)
    np.testing.assert_allclose(found.predict(torch.from_numpy(new)).numpy(), expected, atol=1e-8)


def test_features_by_hand() -> None:
    told = Story(
        {"special_time": Finding(("a moon", "stars"), "night"), "mental_state": Finding((), "sad")}, "A boy runs."
    )
    text = render(told)
    (row,) = clue_features([text]).tolist()
    assert row == [len(text.split()), 2, 0, 0, 0, 0, 0, 0, 2]
    (words,) = word_features(["The red cat and the other red dog."]).tolist()
    assert words == [3], "cat, dog and red; stop words do not count"
    texts = ["Objects: cup (80%); lamp (40%); cup (31%)", render(Story({}, "I see a cat, two dogs and a cat.")), ""]
    assert entity_features(texts).tolist() == [[3, 2], [4, 2], [0, 0]]
    assert entity_features([]).shape == (0, 2) and word_features([]).shape == (0, 1)


def test_embeddings_are_means_of_each_text_alone(tmp_path: Path) -> None:
    """Whatever text is beside it in a batch."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    folder = save(BertModel(config), tmp_path)
    texts = ["w5 w6 w7", "w9", "w4 w4 w8 w11 w12"]
    found = mean_embeddings(texts, folder, batch_size=2)
    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in zip(found, texts, strict=True):
        hidden = network(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
        torch.testing.assert_close(row, hidden[0].mean(0))
