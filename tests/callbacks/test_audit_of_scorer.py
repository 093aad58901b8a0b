"""The audit of a federated scorer: its ratings are no class indices, the module says which levels its loss counts."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor

from pl_fed.callbacks import AuditPage, LabelInferenceAttack
from pl_fed.cli import main
from pl_fed.clients import ClientsConfig
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings import read_ratings
from pl_fed.isa.scenes.folder import SceneConfig, write_scenes
from pl_fed.isa.scenes.raters import RaterConfig
from pl_fed.loaders import RoundLoader
from pl_fed.modules import ImageClassifier, LoraSettings, ScoreSettings
from pl_fed.modules.score_losses import nearest_level
from pl_fed.rules import AFLoRA
from pl_fed.secure_round import SecureAggregation
from tests.callbacks.test_live_attack import attacked, sgd
from tests.modules.rated_rows import SEMANTIC, collate_rated, rated_rows, scorer, shards, without_semantic
from tests.modules.tiny_models import tokenizer

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha"),  # of a few rounds
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's CLI
]


def site_levels(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Return the counts of the five levels of every site, sorted."""
    rated = [torch.stack([rows[i]["targets"][1] for i in shard]) for shard in shards(rows)]
    counts = [torch.bincount(nearest_level(x[~x.isnan()], 5), minlength=5).tolist() for x in rated]
    return sorted(counts)


@pytest.mark.parametrize("every", [1000, 3])
def test_levels_are_read_from_the_sum(bert: str, tmp_path: Path, every: int) -> None:
    """Ten images at each of four sites, whose levels go round; where ratings are missing, only the others count."""
    rows = without_semantic(rated_rows(), every)
    attack = attacked(
        tmp_path,
        module=scorer(bert, lora=LoraSettings(r=3), scores=SEMANTIC, optimizer=sgd()),
        loader=RoundLoader(rows, shards(rows), batch_size=10, collate_fn=collate_rated),
        rule=AFLoRA(),
        clients=ClientsConfig(ranks=[1, 3, 2, 2]),
        secure_aggregation=SecureAggregation("pairwise", clip=4.0, binding=False),
    )
    (report,) = attack.reports
    assert sorted(list(row.true) for row in report.rows) == site_levels(rows)
    assert report.exact_match == 1.0


@pytest.mark.parametrize("audit", [LabelInferenceAttack(4, when="fit_end"), AuditPage(4)], ids=["attack", "page"])
def test_simulated_clients(bert: str, tmp_path: Path, audit: Any) -> None:
    rows = rated_rows()
    loader = RoundLoader(rows, shards(rows), batch_size=10, collate_fn=collate_rated)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, callbacks=[audit], default_root_dir=tmp_path, **options)
    trainer.fit(scorer(bert, scores=SEMANTIC), loader)
    report = audit.reports[0] if isinstance(audit, LabelInferenceAttack) else audit.result.report
    assert report.exact_match == 1.0 and all(sum(row.true) == 10 for row in report.rows)


def test_numbers_are_no_classes(bert: str, tmp_path: Path) -> None:
    loader = RoundLoader(rated_rows(), shards(rated_rows()), batch_size=10, collate_fn=collate_rated)
    numbers, both = (scorer(bert, scores=ScoreSettings(levels=levels), optimizer=sgd()) for levels in (None, 5))
    with pytest.raises(FederatedConfigError, match="one score with hard levels for the label inference audit"):
        attacked(tmp_path, module=both, loader=loader)
    single = scorer(bert, scores=ScoreSettings(("semantic",)), optimizer=sgd())
    with pytest.warns(UserWarning, match="does not apply: .* has one output, as in regression"):
        attacked(tmp_path, module=single, loader=loader)
    with pytest.raises(FederatedConfigError, match="one score with hard levels"):
        attacked(tmp_path, module=numbers, loader=loader)


def test_a_module_may_say_its_labels() -> None:
    """Any module with `audit_labels`; others are asked as before."""
    from pl_fed.callbacks._lent_module import labels_of

    class Own(ImageClassifier):
        def audit_labels(self, batch: Any) -> Tensor:
            return batch["other"]  # type: ignore[no-any-return]

    batch = {"labels": torch.tensor([1]), "other": torch.tensor([2])}
    otherwise = LabelInferenceAttack().labels
    assert labels_of(Own(), batch, otherwise).tolist() == [2]
    assert labels_of(ImageClassifier(), batch, otherwise).tolist() == [1]


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])


def config(name: str, folder: Path, bert: str) -> str:
    """Return a configuration that is as shipped but for its paths, a tiny model and one round."""
    given = yaml.safe_load((ROOT / "configs" / name).read_text())
    source = given["data"]["init_args"]["source"]
    scenes = Path(source["ratings"]).parent
    source["ratings"], source["images"] = (
        source[key].replace(str(scenes), str(folder)) for key in ("ratings", "images")
    )
    source["texts"] = {kind: path.replace(str(scenes), str(folder)) for kind, path in source["texts"].items()}
    given["data"]["init_args"]["loading"]["cache_dir"] = str(folder.parent / "cache")
    given["data"]["init_args"]["max_length"] = 24
    given["model"]["init_args"]["model"] = bert
    given["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    given["run"] |= {"folder": str(folder.parent / "runs"), "wandb": False}
    path = folder.parent / name
    path.write_text(yaml.safe_dump(given))
    return str(path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SYNTHETIC scenes of six sites, as the configurations say."""
    folder = tmp_path_factory.mktemp("made") / "scenes"
    return write_scenes(folder, SceneConfig(num_images=75, size=32), RaterConfig(num_sites=6))


@pytest.fixture
def reader(bert: str, scenes: Path, tmp_path: Path) -> str:
    """A tiny model whose tokenizer knows a few words of the scenes."""
    folder = Path(shutil.copytree(bert, tmp_path / "bert"))
    words = "the a is and because event from to boy girl man woman dog cat it of in an at on are"
    names = ["<pad>", "<eos>", "<unk>", *words.split()]
    tokenizer(names).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_configuration_of_the_federation(scenes: Path, reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Unequal ranks, pairwise secure aggregation and the audit: all sites' levels are found in the sum."""
    main(["fit", "--config", config("isa_federated.yaml", scenes, reader)])
    text = next((scenes.parent / "runs").rglob("label_inference_live.md")).read_text()
    assert (
        "AFLoRA, secure aggregation (pairwise, 22 bits)" in text
        and "| **the attack** | **1.000** | **1.000** |" in text
    )
    assert len(read_ratings(scenes / "ratings.csv").groups("site")) == 6


@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_central_configuration(scenes: Path, reader: str) -> None:
    main(["fit", "--config", config("isa_scenes.yaml", scenes, reader)])
    run = next((scenes.parent / "runs").rglob("isa_scenes"))
    assert list(run.rglob("last.ckpt")) and list(run.rglob("best-*.ckpt"))
    assert "val/semantic_srcc" in next(run.rglob("metrics.csv")).read_text()
