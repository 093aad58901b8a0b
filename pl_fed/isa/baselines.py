"""Baselines that a trained scorer has to beat: ridge regression on counts and on embeddings that are not trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from pl_fed.assets import hub_or_caches, resolve_model
from pl_fed.isa.entities import listed_entities
from pl_fed.isa.parsing import parse
from pl_fed.isa.scorers.heuristic import content_words
from pl_fed.isa.story import SECTIONS, Finding
from pl_fed.isa.story_encoder import StoryEncoder

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
PENALTIES = tuple(10.0**power for power in range(-3, 6))


@dataclass(frozen=True)
class Ridge:
    """A linear predictor of scores.

    Args:
        weights: Change of each score by feature.
        offset: Scores where all features are zero.
        penalty: The penalty that it was fitted with.
    """

    weights: Float[Tensor, "features scores"]
    offset: Float[Tensor, " scores"]
    penalty: float

    def predict(self, features: Float[Tensor, "images features"]) -> Float[Tensor, "images scores"]:
        """Return scores in [0, 1]."""
        return (features.double() @ self.weights + self.offset).clamp(0, 1)


def fit_ridge(
    features: Float[Tensor, "images features"],
    targets: Float[Tensor, "images scores"],
    penalties: Sequence[float] = PENALTIES,
) -> Ridge:
    """Fit a linear predictor; of the penalties it takes the one with the smallest error on images left out one by one.

    Features are standardised and the offset is not penalised, so a penalty is in units of the variance of a feature.

    Args:
        features: Of the images to learn from.
        targets: Their scores.
        penalties: What to choose from, above 0.
    """
    x, y = features.double(), targets.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    u, s, vh = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    centred = y - y.mean(0)
    projected = u.T @ centred
    best = min(penalties, key=lambda penalty: _left_out_error(u, s, projected, centred, penalty))
    weights = vh.T @ ((s / (s.square() + best))[:, None] * projected) / scale[:, None]
    return Ridge(weights, y.mean(0) - mean @ weights, best)


def _left_out_error(u: Tensor, s: Tensor, projected: Tensor, centred: Tensor, penalty: float) -> float:
    """Return the mean squared error on images left out one by one, from one fit: residual / (1 - leverage)."""
    shrink = s.square() / (s.square() + penalty)
    residuals = centred - u @ (shrink[:, None] * projected)
    leverage = (u.square() * shrink).sum(1) + 1 / len(u)
    return float((residuals / (1 - leverage).clamp(min=1e-9)[:, None]).square().mean())


def clue_features(texts: Sequence[str]) -> Float[Tensor, "texts features"]:
    r"""Return the number of words of each text, of its clues by section, and of its sections with a conclusion.

    Example:
        >>> clue_features(["Mental state\nClue(s):\n1. a smile\nConclusion: glad\nDescription: a child"]).tolist()
        [[11.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]]
    """
    rows = []
    for text in texts:
        story = parse(text)
        clues = [len(story.findings.get(section.key, Finding()).clues) for section in SECTIONS]
        rows.append([len(text.split()), *clues, story.num_conclusions])
    return torch.tensor(rows, dtype=torch.float64)


def entity_features(texts: Sequence[str]) -> Float[Tensor, "texts 2"]:
    """Return the number of entities that the description of each text lists, and of their kinds.

    Example:
        >>> entity_features(["The picture shows a boy, a second boy and a dog."]).tolist()
        [[3.0, 2.0]]
    """
    listed = [listed_entities(parse(text).description) for text in texts]
    return torch.tensor([[len(kinds), len(set(kinds))] for kinds in listed], dtype=torch.float64).reshape(-1, 2)


def word_features(texts: Sequence[str]) -> Float[Tensor, "texts 1"]:
    """Return the number of different content words of each text."""
    return torch.tensor([len(content_words(parse(text))) for text in texts], dtype=torch.float64)[:, None]


@torch.no_grad()
def mean_embeddings(
    texts: Sequence[str], model: str = EMBEDDER, max_length: int = 256, batch_size: int = 16
) -> Float[Tensor, "texts width"]:
    """Return the mean of each text's last hidden states, by a model that is not trained.

    Args:
        texts: The texts; longer ones are cut section by section.
        model: Hub id or folder of an encoder.
        max_length: Largest number of tokens of a text.
        batch_size: Texts that go through the model together.
    """
    folder = resolve_model(model)
    with hub_or_caches(folder):
        tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoder, parts = StoryEncoder(tokenizer, max_length), []
    for start in range(0, len(texts), batch_size):
        ids = [encoder.encode(text)[0] for text in texts[start : start + batch_size]]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        hidden = network(**batch).last_hidden_state  # (batch, length, width)
        mask = batch["attention_mask"][:, :, None]
        parts.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(parts)
