"""`SemanticScorer`: learning, missing ratings, whole models, checkpoints, federation, and the labels of an audit."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import LongformerConfig, LongformerModel

from pl_fed.clients import ClientsConfig
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.scorers import CheckpointScorer
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.modules import LoraSettings, ModelLoading, ScoreSettings, SemanticScorer, export_adapter
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA, FedIT
from pl_fed.strategy import FederatedStrategy
from tests.modules.rated_rows import SEMANTIC, collate_rated, column, rated_rows, scorer, shards, without_semantic
from tests.modules.tiny_models import VOCAB, save

Make = Callable[..., pl.Trainer]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    # `load_from_checkpoint` calls what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
GENTLE = partial(torch.optim.AdamW, lr=3e-3)
BLANK = Image.new("RGB", (4, 4))
BOTH_LEVELS = ScoreSettings(levels=5, soft_labels=True)


def loader(rows: list[dict[str, Any]], **changes: Any) -> DataLoader[Any]:
    return DataLoader(rows, collate_fn=collate_rated, **{"batch_size": 7, **changes})  # type: ignore[arg-type]


class Means(pl.LightningDataModule):
    """What `RatedImages` says of its training images."""

    score_means = (0.5, 0.25)
    max_length = 6

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.rows = rows

    def val_dataloader(self) -> Any:
        return loader(self.rows)


@pytest.mark.parametrize("scores", [ScoreSettings(("semantic",)), SEMANTIC, BOTH_LEVELS])
@pytest.mark.parametrize("whole", [False, True])
def test_it_learns_under_a_plain_trainer(bert: str, trainer: Make, scores: ScoreSettings, whole: bool) -> None:
    """The words of a text say its semantic level; a third of the ratings is missing."""
    rows = without_semantic(rated_rows(), every=3)
    module = scorer(bert, scores=scores, **({"lora": None, "optimizer": GENTLE} if whole else {}))
    run = trainer(max_epochs=15)
    run.fit(module, loader(rows, shuffle=True), loader(rows))
    figures = run.callback_metrics
    assert float(figures["val/semantic_srcc"]) > 0.9 and float(figures["val/semantic_rmse"]) < 0.2
    assert ("val/entity_srcc" in figures) == ("entity" in scores.names)
    assert set(module.client_metrics["val"]) == {0, 1, 2, 3} and "val/worst_client_semantic_rmse" in figures
    assert math.isfinite(float(figures["train/loss"]))
    found = trainer().predict(module, loader(rated_rows()))
    truth = torch.stack([row["targets"][1] for row in rated_rows()])
    assert (column(found, "semantic") - truth).abs().mean() < 0.15
    if scores.levels:
        levels = column(found, "semantic_levels")
        torch.testing.assert_close(levels @ torch.linspace(0, 1, 5), column(found, "semantic"))
        assert column(found, "semantic_uncertainty").shape == (40,)
    assert found is not None and found[0]["file_name"][:2] == ["0.png", "1.png"]  # type: ignore[call-overload,index]


def test_longformer(trainer: Make, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LongformerConfig(vocab_size=VOCAB, attention_window=4, max_position_embeddings=34, pad_token_id=0, **sizes)
    module = scorer(save(LongformerModel(config), tmp_path))
    rows = rated_rows(14)
    trainer().fit(module, loader(rows))
    assert module.score(["w5 w6 w7 w8 w9"], [BLANK])[0].semantic is not None


def test_a_batch_without_ratings_teaches_nothing(bert: str) -> None:
    module = scorer(bert)
    module.configure_model()
    batch = collate_rated([{**row, "targets": torch.full((2,), math.nan)} for row in rated_rows(3)])
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_the_reference_line_of_a_constant(bert: str, trainer: Make) -> None:
    """Of the datamodule's means, the semantic one is .25; the ratings are the quarters from 0 to 1."""
    rows = rated_rows(5)
    module = scorer(bert, scores=SEMANTIC)
    (figures,) = trainer().validate(module, datamodule=Means(rows), verbose=False)
    errors = [0.25, 0.0, 0.25, 0.5, 0.75]
    assert figures["val/semantic_constant_rmse"] == pytest.approx((sum(e * e for e in errors) / 5) ** 0.5)
    assert module.scores.max_length == module.hparams["scores"]["max_length"] == 6


# Checkpoints.


@pytest.mark.parametrize("lora", [LoraSettings(r=2), None])
def test_the_command_score_takes_a_checkpoint(
    bert: str, trainer: Make, tmp_path: Path, lora: LoraSettings | None
) -> None:
    """Whatever texts stand beside one in a batch."""
    module, run = scorer(bert, lora=lora, scores=SEMANTIC), trainer(max_epochs=2)
    rows = rated_rows()
    run.fit(module, loader(rows))
    run.save_checkpoint(tmp_path / "a.ckpt")
    texts = [" ".join(f"w{i}" for i in row["input_ids"].tolist()) for row in rows]
    found = CheckpointScorer(str(tmp_path / "a.ckpt")).score(texts, [BLANK] * len(texts))
    expected = column(trainer().predict(module, loader(rows)), "semantic")
    torch.testing.assert_close(torch.tensor([score.semantic for score in found]), expected)
    assert all(score.entity is None and score.entity_uncertainty is None for score in found)
    assert all(0 < (score.semantic_uncertainty or 0) < 0.5 for score in found)
    loaded = SemanticScorer.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.scores == SEMANTIC and loaded.lora == lora


def test_a_whole_model_has_no_adapter_to_export(bert: str, tmp_path: Path) -> None:
    module = scorer(bert, lora=None)
    module.configure_model()
    assert all(p.requires_grad for p in module.parameters())
    with pytest.raises(FederatedConfigError, match="a module with an adapter to export but `lora` is null"):
        export_adapter(module, tmp_path / "adapter")
    with pytest.raises(FederatedConfigError, match="`lora` with `loading.quantization` but got null"):
        scorer(bert, lora=None, loading=ModelLoading(quantization={"load_in_4bit": True}))


# In a federation.


def test_sites_with_unequal_ranks_and_their_own_adapters(bert: str, trainer: Make) -> None:
    rows = rated_rows()
    clients = ClientsConfig(ranks=[1, 3, 2, 2], keep_adapters=True)
    strategy = FederatedStrategy(AFLoRA(), cohort=CohortConfig(clients=4), clients=clients, seed=4)
    module = scorer(bert, lora=LoraSettings(r=3), scores=SEMANTIC)
    run = trainer(strategy=strategy, max_epochs=2)
    run.fit(module, RoundLoader(rows, shards(rows), batch_size=5, collate_fn=collate_rated))
    tested = [ClientLoader(rows, shards(rows), 5, own, collate_fn=collate_rated) for own in (False, True)]
    figures = run.test(module, tested, verbose=False)
    assert figures[0]["test_clients/semantic_rmse"] != figures[1]["test_personalised/semantic_rmse"]
    assert set(module.client_metrics["test_personalised"]) == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_whole_models_are_averaged(bert: str, trainer: Make) -> None:
    """One client with all images and plain averaging: what it trained is what the server has."""
    rows, sgd = rated_rows(20), partial(torch.optim.SGD, lr=0.1)
    plain = scorer(bert, lora=None, optimizer=sgd, scores=SEMANTIC)
    federated = scorer(bert, lora=None, optimizer=sgd, scores=SEMANTIC)
    for module, strategy in ((plain, "auto"), (federated, FederatedStrategy(FedIT(), cohort=CohortConfig(), seed=4))):
        torch.manual_seed(3)  # of the new head
        module.configure_model()
        module.model.eval()  # no dropout; Lightning trains in the mode that it finds
        trainer(strategy=strategy).fit(module, RoundLoader(rows, [list(range(20))], 20, collate_fn=collate_rated))
    theirs = dict(plain.named_parameters())
    for name, parameter in federated.named_parameters():
        torch.testing.assert_close(parameter, theirs[name])


# The audit.


def test_labels_of_the_audit(bert: str) -> None:
    """The levels of what is rated; the images go round the five of them, and the first has no rating."""
    batch = collate_rated(without_semantic(rated_rows(7), every=7))
    assert scorer(bert, scores=SEMANTIC).audit_labels(batch).tolist() == [1, 2, 3, 4, 0, 1]
    for scores in (ScoreSettings(("semantic",)), BOTH_LEVELS, ScoreSettings(("entity",), 5, soft_labels=True)):
        with pytest.raises(FederatedConfigError, match="one score with hard levels for the label inference audit"):
            scorer(bert, scores=scores).audit_labels(batch)
