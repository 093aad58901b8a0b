"""`LoraCausalLM` against formulas written out, example by example, without padding."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pl_fed.errors import FederatedConfigError
from pl_fed.loaders import ClientLoader
from pl_fed.modules import GenerationSettings, LoraCausalLM, LoraSettings
from pl_fed.modules.evaluation import LanguageEvaluation, response_losses
from pl_fed.modules.means import ClientMean
from pl_fed.modules.reporting import loader_prefixes
from tests.modules.tiny_models import Rows, collate_language, language_rows

Make = Callable[..., pl.Trainer]


def shaken(module: LoraCausalLM) -> Any:
    """Return the module, loaded, with an adapter that does something."""
    module.configure_model()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def by_hand(module: LoraCausalLM, row: dict[str, Any]) -> tuple[float, int]:
    """Return the summed loss of one example's response and its number of tokens."""
    ids = row["input_ids"]
    with torch.no_grad():
        scores = module.model(input_ids=ids[None]).logits[0].log_softmax(-1)
    losses = [-float(scores[i - 1, ids[i]]) for i in range(row["prompt"], len(ids))]
    return sum(losses), len(losses)


def figures_by_hand(module: LoraCausalLM, rows: Rows) -> tuple[float, dict[int, float]]:
    """Return the mean loss by token of all rows, and of each client's."""
    module.eval()
    parts = [(row["client_id"], *by_hand(module, row)) for row in rows]
    means = {}
    for client_id in sorted({k for k, _, _ in parts if k >= 0}):
        mine = [(loss, n) for k, loss, n in parts if k == client_id]
        means[client_id] = sum(loss for loss, _ in mine) / sum(n for _, n in mine)
    return sum(loss for _, loss, _ in parts) / sum(n for _, _, n in parts), means


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_training_loss_is_the_masked_cross_entropy(model: str, request: pytest.FixtureRequest) -> None:
    module = shaken(LoraCausalLM(request.getfixturevalue(model), LoraSettings(r=2)))
    rows = language_rows(5)
    expected, _ = figures_by_hand(module, rows)
    module.log = lambda *_, **__: None
    found = module.training_step(collate_language(rows), 0)
    torch.testing.assert_close(found, torch.tensor(expected))
    unlabelled = {**collate_language(rows), "labels": torch.full((5, 10), -100)[:, : max(map(width, rows))]}
    assert module.training_step(unlabelled, 0) == 0.0


def width(row: dict[str, Any]) -> int:
    return len(row["input_ids"])


def test_response_losses_leave_out_what_has_no_label() -> None:
    """The first label has no score before it; an example without labels has no loss and no tokens."""
    logits = torch.randn(3, 4, 6)
    labels = torch.tensor([[1, 2, -100, 3], [-100] * 4, [-100, -100, -100, 5]])
    log_p = logits.log_softmax(-1)
    expected = [-float(log_p[0, 0, 2] + log_p[0, 2, 3]), 0.0, -float(log_p[2, 2, 5])]
    losses, num_tokens = response_losses(logits, labels)
    torch.testing.assert_close(losses, torch.tensor(expected))
    assert num_tokens.tolist() == [2, 0, 1]


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_figures_do_not_depend_on_batches(llama: str, trainer: Make, batch_size: int) -> None:
    """Three loaders: plain, of clients, and of the clients' own adapters (here the same adapter)."""
    module, rows = shaken(LoraCausalLM(llama, LoraSettings(r=2))), language_rows()
    loss, means = figures_by_hand(module, rows)
    held = [row for row in rows if row["client_id"] >= 0]
    shards = [[i for i, row in enumerate(held) if row["client_id"] == k] for k in range(10)]
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate_language}
    loaders = [DataLoader(rows, **options)]  # type: ignore[arg-type]
    loaders += [ClientLoader(held, shards, personalised=own, **options) for own in (False, True)]
    run = trainer()
    run.test(module, loaders, verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert found["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    worst = max(means, key=means.__getitem__)
    for prefix in ("test", "test_clients", "test_personalised"):
        assert found[f"{prefix}/client_mean_loss"] == pytest.approx(sum(means.values()) / len(means), rel=1e-5)
        assert found[f"{prefix}/worst_client_loss"] == pytest.approx(means[worst], rel=1e-5)
        assert found[f"{prefix}/worst_client_id"] == worst
        assert module.client_metrics[prefix] == pytest.approx(means, rel=1e-5)
    held_loss, _ = figures_by_hand(module, held)
    assert found["test_clients/loss"] == found["test_personalised/loss"] == pytest.approx(held_loss, rel=1e-5)


def test_validation_without_clients_has_no_client_figures(llama: str, trainer: Make) -> None:
    rows = [{**row, "client_id": -1} for row in language_rows(4)]
    loader = DataLoader(rows, batch_size=2, collate_fn=collate_language)  # type: ignore[arg-type]
    module, run = shaken(LoraCausalLM(llama, LoraSettings(r=2))), trainer()
    run.validate(module, loader, verbose=False)
    assert set(run.callback_metrics) == {"val/loss", "val/perplexity"}
    assert module.client_metrics == {}


def test_figures_are_not_narrow(llama: str, trainer: Make) -> None:
    """With `bf16-true` the default type is bfloat16 in a step; sums of figures must not have it."""
    module, rows = shaken(LoraCausalLM(llama, LoraSettings(r=2))), language_rows()
    loader = DataLoader(rows, batch_size=2, collate_fn=collate_language)  # type: ignore[arg-type]
    run = trainer(precision="bf16-true")
    run.test(module, loader, verbose=False)
    with torch.no_grad():
        parts = [response_losses(module.eval()(batch).logits, batch["labels"]) for batch in loader]
    expected = sum(float(losses.sum()) for losses, _ in parts) / sum(int(n.sum()) for _, n in parts)
    assert module.model.get_base_model().dtype == torch.bfloat16
    assert float(run.callback_metrics["test/loss"]) == pytest.approx(expected, rel=1e-5)


def test_client_figures_in_float64(llama: str, trainer: Make) -> None:
    """Losses are float64 and numbers of tokens float32 there; a client's mean has the losses' precision."""
    module, rows = shaken(LoraCausalLM(llama, LoraSettings(r=2))), language_rows()
    loader = DataLoader(rows, batch_size=2, collate_fn=collate_language)  # type: ignore[arg-type]
    trainer(precision="64-true").validate(module, loader, verbose=False)
    with torch.no_grad():
        parts = [response_losses(module.eval()(batch).logits, batch["labels"]) for batch in loader]
    losses, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
    assert len(module.client_metrics["val"]) > 1
    assert losses.dtype == torch.float64
    for client_id, found in module.client_metrics["val"].items():
        own = torch.tensor([row["client_id"] == client_id for row in rows])
        expected = float(losses[own].sum() / tokens[own].sum())
        assert found == pytest.approx(expected, rel=1e-12)


def test_a_diverged_model_shows() -> None:
    """The mean must not leave out what is not a number, and perplexity must not fail."""
    evaluation = LanguageEvaluation()
    one = torch.tensor([1, 1])
    evaluation.update(torch.tensor([0.0, math.nan]), one, torch.tensor([0, 1]))
    table = evaluation.table()
    found = evaluation.results(table)
    assert math.isnan(found["loss"]) and math.isnan(found["perplexity"]) and found["worst_client_id"] == 1
    large = LanguageEvaluation()
    large.update(torch.tensor([2e3, 2e3]), one, torch.tensor([-1, -1]))
    assert large.results({})["perplexity"] == math.inf


def test_client_means_of_a_huge_population() -> None:
    """Ids are not indices: memory follows what was seen."""
    mean = ClientMean()
    ids = torch.tensor([10**12, 3, 10**12, -1])
    mean.update(torch.tensor([1.0, 5.0, 4.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), ids)
    mean.update(torch.tensor([8.0]), torch.tensor([0.0]), torch.tensor([7]))  # no weight, no mean
    assert mean.compute() == {3: 5.0, 10**12: (1 * 1 + 4 * 3) / 4}


# Generation.


def counting_rows() -> Rows:
    """Return "w3 w4 | w5 w6 w7 <eos>" and so on; the counter says w5 w6 w7 w8 there, since it knows no end."""
    rows = []
    for i, (start, prompt, length) in enumerate([(3, 2, 5), (8, 1, 4), (12, 3, 6), (20, 2, 5)]):
        rows.append({"input_ids": torch.arange(start, start + length), "prompt": prompt, "client_id": i})
    rows[3]["input_ids"][-1] = 9  # not what the counter says
    return rows


def test_generation_figures(counter: str, trainer: Make) -> None:
    """Three of four answers are right; the last shares two of its three words, in order, with the expected ones."""
    module = LoraCausalLM(counter, generation=GenerationSettings(max_new_tokens=3))
    loader = DataLoader(counting_rows(), batch_size=3, collate_fn=collate_language)  # type: ignore[arg-type]
    run = trainer()
    run.test(module, loader, verbose=False)
    assert float(run.callback_metrics["test/exact_match"]) == 0.75
    assert float(run.callback_metrics["test/rougeL"]) == pytest.approx((3 + 2 / 3) / 4)
    assert float(run.callback_metrics["test/rouge2"]) == pytest.approx((3 + 1 / 2) / 4)
    run.validate(module, loader, verbose=False)
    assert "val/loss" in run.callback_metrics and "val/exact_match" not in run.callback_metrics


def test_generation_of_a_few_examples_in_validation_too(
    counter: str, trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationSettings(max_new_tokens=3, num_examples=3, in_validation=True)
    module = LoraCausalLM(counter, generation=settings)
    generated: list[str] = []

    def generate(batch: dict[str, torch.Tensor]) -> list[str]:
        texts = LoraCausalLM.generate(module, batch)
        generated.extend(texts)
        return texts

    monkeypatch.setattr(module, "generate", generate)
    run = trainer()
    run.validate(module, DataLoader(counting_rows(), 2, collate_fn=collate_language), verbose=False)  # type: ignore[arg-type]
    assert generated == ["w5 w6 w7", "w9 w10 w11", "w15 w16 w17"]
    assert float(run.callback_metrics["val/exact_match"]) == 1.0


def test_prediction_is_text(counter: str, trainer: Make) -> None:
    module = LoraCausalLM(counter, generation=GenerationSettings(max_new_tokens=2, extra={"num_beams": 2}))
    loader = DataLoader(counting_rows(), batch_size=3, collate_fn=collate_language)  # type: ignore[arg-type]
    assert trainer().predict(module, loader) == [["w5 w6", "w9 w10", "w15 w16"], ["w22 w23"]]


def test_generation_needs_prompts(counter: str) -> None:
    module = LoraCausalLM(counter)
    module.configure_model()
    with pytest.raises(FederatedConfigError, match="`prompt_input_ids` in the batch .* got input_ids, labels: set"):
        module.predict_step({"labels": torch.ones(1, 1), "input_ids": torch.ones(1, 1)}, 0)


def test_generation_ends_at_either_end(llama: str) -> None:
    """A chat model's tokenizer and its configuration may name different tokens."""
    module = LoraCausalLM(llama)
    module.configure_model()
    module.model.get_base_model().generation_config.eos_token_id = [7, 1]  # type: ignore[union-attr]
    assert module._generation_config().eos_token_id == [1, 7]


def test_prefixes_are_distinct() -> None:
    named = ClientLoader(range(2), [[0, 1]])
    assert loader_prefixes("val", named) == ["val_clients"]
    assert loader_prefixes("test", {"a": range(1), "b": named, "c": range(1)}) == ["test", "test_clients", "test_2"]
