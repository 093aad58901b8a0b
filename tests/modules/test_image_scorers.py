"""Scorers of images, with a text and without: networks by hand, tiny models of the real classes, checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers import ViltConfig, ViltModel, ViTConfig, ViTForImageClassification, ViTModel

from pl_fed.isa.scorers import CheckpointScorer
from pl_fed.modules import (
    ImageScorer,
    LoraSettings,
    NetworkSettings,
    ScoreSettings,
    ViltScorer,
    ViTScorer,
    export_adapter,
)
from pl_fed.modules.networks import ICNet
from pl_fed.modules.networks.icnet import ResidualBlock
from pl_fed.modules.networks.vilt import MAX_TOKENS, ViltForScores
from tests.modules.rated_rows import collate_rated, column, rated_rows
from tests.modules.tiny_models import VOCAB, save

Make = Callable[..., pl.Trainer]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    # `load_from_checkpoint` calls what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PICTURES = {"image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(ViTConfig(**SIZES, **PICTURES), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It reads 6 tokens, as the published ones read 40."""
    torch.manual_seed(1)
    config = ViltConfig(vocab_size=VOCAB, max_position_embeddings=6, pad_token_id=0, **SIZES, **PICTURES)
    return save(ViltModel(config), tmp_path_factory.mktemp("vilt"))


def loader(rows: list[dict[str, Any]], **changes: Any) -> DataLoader[Any]:
    return DataLoader(rows, collate_fn=collate_rated, **{"batch_size": 8, **changes})  # type: ignore[arg-type]


# The network of two branches.


def test_edges_by_hand() -> None:
    """A step of height 6 from left to right has slope (1 + 2 + 1) * 6 / 8 = 3 on both sides of it; flat is 0."""
    network = ICNet(3, 2, (8, 8), width=4)
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 6.0
    edges = network.edge_strength(images)
    assert edges.shape == (1, 1, 4, 4)
    torch.testing.assert_close(edges[0, 0], torch.tensor([0.0, 1.5, 1.5, 0.0]).expand(4, 4))
    torch.testing.assert_close(network.edge_strength(images.mT), edges.mT)


def test_it_has_eighteen_layers_and_six() -> None:
    """As in ResNet-18, a stem and eight blocks of two, with a shortcut where the number of channels changes."""
    network = ICNet(3, 2, (32, 32), width=4)
    kinds = [m for m in network.whole.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size != (1, 1) for m in kinds) == 17 and sum(m.kernel_size == (1, 1) for m in kinds) == 3
    assert sum(isinstance(m, ResidualBlock) for m in network.edges) == 2 and network.head.in_features == 40
    assert "sobel" not in network.state_dict()


def test_image_scorer_learns_brightness(trainer: Make, tmp_path: Path) -> None:
    """The entity level is the brightness; the semantic level cannot be seen."""
    rows, settings = rated_rows(50), NetworkSettings({"width": 4}, in_channels=3, image_size=16)
    torch.manual_seed(0)
    module, run = ImageScorer("icnet", settings, partial(torch.optim.AdamW, lr=1e-2)), trainer(max_epochs=12)
    run.fit(module, loader(rows, shuffle=True), loader(rows))
    assert float(run.callback_metrics["val/entity_srcc"]) > 0.9
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ImageScorer.load_from_checkpoint(tmp_path / "a.ckpt")
    batch = collate_rated(rows[:4])
    assert torch.equal(loaded.eval().predict(batch).scores, module.eval().predict(batch).scores)


# A vision transformer.


@pytest.mark.parametrize("lora", [LoraSettings(r=2, target_modules=["q_proj", "v_proj"]), None])
def test_vit_learns(vit: str, trainer: Make, tmp_path: Path, lora: LoraSettings | None) -> None:
    rows, scores = rated_rows(50), ScoreSettings(("entity",), levels=5)
    torch.manual_seed(0)
    module, run = ViTScorer(vit, lora, partial(torch.optim.AdamW, lr=1e-2), scores=scores), trainer(max_epochs=10)
    run.fit(module, loader(rows, shuffle=True), loader(rows))
    assert float(run.callback_metrics["val/entity_srcc"]) > 0.9
    assert module.tokenizer is None
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded, batch = ViTScorer.load_from_checkpoint(tmp_path / "a.ckpt").eval(), collate_rated(rows[:4])
    expected = module.eval().predict(batch).scores
    torch.testing.assert_close(loaded.predict(batch).scores, expected)
    if lora is not None:  # the exported adapter, as peft's users load it
        folder = export_adapter(module, tmp_path / "adapter")
        base = ViTForImageClassification.from_pretrained(vit, num_labels=5)
        logits = PeftModel.from_pretrained(base, folder).eval()(batch["images"]).logits
        torch.testing.assert_close(logits.softmax(1) @ torch.linspace(0, 1, 5), expected[:, 0])


def test_vit_takes_images_of_another_size(vit: str) -> None:
    module = ViTScorer(vit)
    module.configure_model()
    assert module.eval()({"images": torch.zeros(2, 3, 32, 24)}).shape == (2, 2)


# ViLT.


def test_more_positions_leave_what_was_learned(vilt: str) -> None:
    """Its six positions stay, so short texts give what the base model gives; longer ones are read too."""
    network, info = ViltForScores.from_pretrained(vilt, num_labels=3, output_loading_info=True)
    base = ViltModel.from_pretrained(vilt)
    text = network.vilt.embeddings.text_embeddings
    assert text.position_embeddings.weight.shape == (MAX_TOKENS, 16)
    assert torch.equal(text.position_embeddings.weight[:6], base.embeddings.text_embeddings.position_embeddings.weight)
    assert {"classifier.weight", "classifier.bias"} < set(info["missing_keys"])
    assert any("position_embeddings" in name for name in info["missing_keys"])
    batch = {"input_ids": torch.arange(3, 9)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    batch["pixel_values"] = torch.randn(1, 3, 16, 16)
    pooled = base.eval()(**batch).pooler_output
    torch.testing.assert_close(network.eval()(**batch).logits, network.classifier(pooled))
    with pytest.raises((IndexError, RuntimeError)):
        base(**{**batch, "input_ids": torch.ones(1, 7, dtype=torch.long), "attention_mask": torch.ones(1, 7)})
    assert ViltForScores.from_pretrained(vilt, num_labels=3).extend_positions(6) is False


def test_vilt_learns_from_both(vilt: str, trainer: Make, tmp_path: Path) -> None:
    """Brightness says the entity level, the word that the text repeats the semantic one; texts have 7 tokens."""
    rows = rated_rows(50)
    torch.manual_seed(0)
    lora = LoraSettings(r=4, target_modules=["query", "value", "key"])
    module, run = ViltScorer(vilt, lora, partial(torch.optim.AdamW, lr=5e-3)), trainer(max_epochs=25)
    run.fit(module, loader(rows, shuffle=True), loader(rows))
    figures = run.callback_metrics
    assert float(figures["val/entity_srcc"]) > 0.85 and float(figures["val/semantic_srcc"]) > 0.85
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert any("position_embeddings.modules_to_save" in name for name in trained)
    assert any("classifier" in name for name in trained)
    run.save_checkpoint(tmp_path / "a.ckpt")
    rows = [row for row in rows if len(row["input_ids"]) == 7][:3]
    texts = [" ".join(f"w{i}" for i in row["input_ids"].tolist()) for row in rows]
    greys = [Image.new("RGB", (9, 9), (int(127.5 * float(row["images"].mean() + 1)),) * 3) for row in rows]
    found = CheckpointScorer(str(tmp_path / "a.ckpt")).score(texts, greys)
    expected = column(trainer().predict(module, loader(rows)), "semantic")
    assert torch.tensor([score.semantic for score in found]).sub(expected).abs().max() < 0.1, "but for the noise"
