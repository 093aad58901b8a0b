"""Figures of an evaluation: over all examples, and for each client.

Sums are kept, never means of batches, so the figures do not depend on how examples were put into batches. All states
are TorchMetrics', which adds them up over processes.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.text.rouge import ROUGEScore

from pl_fed.modules.means import ClientMean, WeightedMean
from pl_fed.packing.rows import IGNORED, at_least_float32

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")  # rougeLsum would download a sentence splitter


def response_losses(
    logits: Float[Tensor, "batch length vocab"], labels: Int[Tensor, "batch length"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return each example's summed next-token loss over its labelled tokens, and their number.

    Args:
        logits: Scores of the next token at every position.
        labels: Token ids at every position; -100 is left out.

    Example:
        >>> losses, num_tokens = response_losses(torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 1]]))
        >>> [round(x, 4) for x in losses.tolist()], num_tokens.tolist()  # twice log 4
        ([2.7726], [2])
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    # (tokens, vocab): float32 only for labelled tokens, since a whole batch of logits may be the largest tensor
    losses = F.cross_entropy(at_least_float32(logits[:, :-1][chosen]), targets[chosen], reduction="none")
    return summed(losses, chosen)


def summed(
    losses: Float[Tensor, " tokens"], chosen: Bool[Tensor, "batch length"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return each example's sum over its chosen tokens, and their number.

    Args:
        losses: A value for each chosen token, example by example.
        chosen: The places of these tokens.
    """
    rows = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)[chosen]
    return losses.new_zeros(len(chosen)).index_add(0, rows, losses), chosen.sum(1)


def same_text(first: str, second: str) -> bool:
    r"""Tell whether two texts are the same but for case and white space.

    Example:
        >>> same_text(" Forty  two\n", "forty two"), same_text("-2", "2")
        (True, False)
    """
    return first.casefold().split() == second.casefold().split()


class Evaluation(nn.Module):
    """Figures over one loader, with those of its clients.

    Args:
        figure: Name of the figure that is also kept for each client.
        best: Which of a figure's extremes is good.
    """

    def __init__(self, figure: str, best: Literal["max", "min"]) -> None:
        super().__init__()
        self.figure, self.best = figure, best
        self.loss = WeightedMean()
        self.clients = ClientMean()

    def table(self) -> dict[int, float]:
        """Return the figure by client."""
        return self.clients.compute()

    def results(self, table: dict[int, float]) -> dict[str, float]:
        """Return every figure by name."""
        found = {"loss": float(self.loss.compute())}
        if table:
            found |= mean_and_worst(table, self.figure, self.best)
            found["worst_client_id"] = float(worst_client(table, self.best))
        return found


class ClassifierEvaluation(Evaluation):
    """Loss, accuracy and macro-F1; accuracy by client.

    Args:
        num_labels: Number of classes. Macro-F1 is the mean over those that occur among labels or predictions.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__("accuracy", best="max")
        self.accuracy = MulticlassAccuracy(num_labels, average="micro")
        self.macro_f1 = MulticlassF1Score(num_labels, average="macro")

    def update(
        self,
        logits: Float[Tensor, "batch labels"],
        labels: Int[Tensor, " batch"],
        client_ids: Int[Tensor, " batch"],
    ) -> None:
        """Add a batch."""
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.loss.update(losses, torch.ones_like(losses))
        guesses = logits.argmax(-1)  # (batch,)
        self.accuracy.update(guesses, labels)
        self.macro_f1.update(guesses, labels)
        correct = (guesses == labels).float()
        self.clients.update(correct, torch.ones_like(correct), client_ids)

    def results(self, table: dict[int, float]) -> dict[str, float]:
        """Return every figure by name."""
        own = {"accuracy": float(self.accuracy.compute()), "macro_f1": float(self.macro_f1.compute())}
        return {**super().results(table), **own}


class LanguageEvaluation(Evaluation):
    """Loss and perplexity by token, loss by client, and the figures of generated text."""

    def __init__(self) -> None:
        super().__init__("loss", best="min")
        self.exact_match = WeightedMean()
        self.rouge = ROUGEScore(rouge_keys=ROUGE_KEYS)
        self.num_generated = 0

    def update(
        self,
        losses: Float[Tensor, " batch"],
        num_tokens: Int[Tensor, " batch"],
        client_ids: Int[Tensor, " batch"],
    ) -> None:
        """Add a batch: each example's summed loss, and over how many tokens."""
        means = losses / num_tokens.clamp(min=1)
        self.loss.update(means, num_tokens.float())
        self.clients.update(means, num_tokens.float(), client_ids)

    def update_texts(self, generated: list[str], expected: list[str]) -> None:
        """Add generated texts and what they should have been."""
        self.num_generated += len(generated)
        same = [float(same_text(*pair)) for pair in zip(generated, expected, strict=True)]
        matches = torch.tensor(same, dtype=torch.float32, device=self.exact_match.device)
        self.exact_match.update(matches, torch.ones_like(matches))
        self.rouge.update(generated, expected)

    def results(self, table: dict[int, float]) -> dict[str, float]:
        """Return every figure by name."""
        found = super().results(table)
        found["perplexity"] = float(torch.tensor(found["loss"]).exp())  # infinite where `math.exp` would raise
        if self.num_generated:
            scores = self.rouge.compute()
            found["exact_match"] = float(self.exact_match.compute())
            found |= {key: float(scores[f"{key}_fmeasure"]) for key in ROUGE_KEYS}
        return found


def mean_and_worst(table: dict[int, float], figure: str, best: Literal["max", "min"]) -> dict[str, float]:
    """Return the mean over clients and the worst client's figure.

    Args:
        table: The figure by client.
        figure: Its name.
        best: Which of its extremes is good.
    """
    worst = table[worst_client(table, best)]
    return {f"client_mean_{figure}": sum(table.values()) / len(table), f"worst_client_{figure}": worst}


def worst_client(table: dict[int, float], best: Literal["max", "min"]) -> int:
    """Return the client with the worst figure: the first of equals, so the smallest id; not a number is worst."""
    return (min if best == "max" else max)(table, key=lambda k: _orderable(table[k], best))


def _orderable(value: float, best: str) -> float:
    if math.isnan(value):
        return -math.inf if best == "max" else math.inf
    return value
