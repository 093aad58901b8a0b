"""Scorers and baselines on SYNTHETIC scenes: one table of errors and correlations, with the spread over seeds.

    python benchmarks/isa.py                                   # about half an hour of a CPU core
    python benchmarks/isa.py --images 100 --epochs 2 --seeds 0 --zero_shot 0
    python benchmarks/isa.py --only "number of"                # counts: a minute, no training of networks

A seed draws its own scenes, raters, split and training. Nobody has rated these pictures, and texts are written by the
program that drew them: the table says how methods work on a known structure, nothing about photographs.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from flwr_datasets.partitioner import IidPartitioner
from torch import Tensor

from pl_fed.clients import ClientsConfig
from pl_fed.datamodules import ImageTransform, LoadingConfig, RatedImages, RatedSource, SplitConfig
from pl_fed.isa.baselines import clue_features, entity_features, fit_ridge, mean_embeddings, word_features
from pl_fed.isa.scenes.folder import SceneConfig, write_scenes
from pl_fed.isa.scorers.zero_shot import ZeroShotScorer
from pl_fed.metrics import pearson, rmse, spearman
from pl_fed.modules import ImageScorer, LoraSettings, NetworkSettings, ScoreSettings, SemanticScorer
from pl_fed.rounds import CohortConfig
from pl_fed.rules import AFLoRA
from pl_fed.strategy import FederatedStrategy

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
RANKS = [16, 8, 4, 2]  # of the clients of the federated scorer
FIGURES = {"RMSE": rmse, "PCC": pearson, "SRCC": spearman}
Scored = tuple[Tensor, Tensor]  # predictions and targets, (images, 2) each


class Seed:
    """The data of one seed, and what each method predicts for its test images.

    Args:
        seed: Of scenes, raters, split and training.
        folder: Where the scenes go.
        options: The command line.
    """

    def __init__(self, seed: int, folder: Path, options: argparse.Namespace) -> None:
        self.seed, self.options = seed, options
        scenes = write_scenes(folder, SceneConfig(options.images, seed, size=2 * options.pixels))
        self.data = {kind: self._data(scenes, kind) for kind in ("cot", "naive")}
        self.data["sites"] = self._data(scenes, "cot", num_clients=len(RANKS))
        self.train, self.test = self._collected("cot")

    def _data(self, scenes: Path, kind: str, num_clients: int = 1) -> RatedImages:
        data = RatedImages(
            RatedSource(str(scenes / "ratings.csv"), str(scenes / "images"), {kind: str(scenes / "texts.jsonl")}),
            ImageTransform(size=self.options.pixels, channels=3),
            IidPartitioner(num_clients),
            SplitConfig(validation_fraction=0.0, test_fraction=0.3, seed=self.seed),
            MINILM,
            self.options.tokens,
            loading=LoadingConfig(cache_dir=str(scenes.parent / "cache")),
        )
        data.setup()
        return data

    def _collected(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return texts, targets and ratings of the training and of the test images."""
        data = self.data[kind]
        return _of_all(data.train_dataloader(), kind), _of_all(data.predict_dataloader(), kind)

    def constant(self) -> Scored:
        return self.train["targets"].mean(0).expand_as(self.test["targets"]), self.test["targets"]

    def one_rater(self) -> Scored:
        """The first rater against the mean of the others."""
        return self.test["ratings"][:, 0], self.test["ratings"][:, 1:].mean(1)

    def ridge(self, features: Callable[[list[str]], Tensor], kind: str = "cot") -> Scored:
        train, test = self._collected(kind)
        model = fit_ridge(features(train["text"]), train["targets"])
        return model.predict(features(test["text"])), test["targets"]

    def zero_shot(self) -> Scored:
        num = self.options.zero_shot
        found = ZeroShotScorer(max_tokens=self.options.tokens).score(self.test["text"][:num], [])
        return torch.tensor([[score.entity, score.semantic] for score in found]), self.test["targets"][:num]

    def image_only(self) -> Scored:
        pl.seed_everything(self.seed, verbose=False)
        network = NetworkSettings({"width": self.options.width}, in_channels=3, image_size=self.options.pixels)
        scorer = ImageScorer("icnet", network, partial(torch.optim.AdamW, lr=1e-3))
        return self._trained(scorer, "cot", 3 * self.options.epochs)

    def text(self, kind: str) -> Scored:
        return self._trained(self._scorer(), kind, self.options.epochs)

    def federated(self) -> Scored:
        """AFLoRA over clients with unequal ranks; what central training sees stays divided between them."""
        cohort = CohortConfig(clients=len(RANKS))
        strategy = FederatedStrategy(AFLoRA(), cohort, clients=ClientsConfig(ranks=RANKS), seed=self.seed)
        return self._trained(self._scorer(), "sites", 2 * self.options.epochs, strategy)

    def _scorer(self) -> SemanticScorer:
        pl.seed_everything(self.seed, verbose=False)
        lora = LoraSettings(r=16, target_modules=["query", "value"])
        optimizer = partial(torch.optim.AdamW, lr=self.options.lr)
        return SemanticScorer(MINILM, lora, optimizer, scores=ScoreSettings(levels=self.options.levels))

    def _trained(self, module: pl.LightningModule, kind: str, epochs: int, strategy: Any = "auto") -> Scored:
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            enable_model_summary=False,
            strategy=strategy,
            gradient_clip_val=1.0,
            **quiet,
        )
        trainer.fit(module, self.data[kind].train_dataloader())
        loader = self.data[kind].predict_dataloader()
        rows: Any = trainer.predict(module, loader)
        scores = torch.cat([torch.stack([row["entity"], row["semantic"]], 1) for row in rows])
        return scores, torch.cat([batch["targets"] for batch in loader])


def _of_all(loader: Any, kind: str) -> dict[str, Any]:
    """Return the texts, targets and ratings of all batches, in order."""
    batches = list(loader)
    texts = [text for batch in batches for text in batch[f"{kind}_text"]]
    return {"text": texts, **{key: torch.cat([batch[key] for batch in batches]) for key in ("targets", "ratings")}}


def methods(seed: Seed, num_zero_shot: int) -> dict[str, Callable[[], Scored]]:
    """Return every method by its name in the table."""
    found: dict[str, Callable[[], Scored]] = {
        "constant: mean of the training scores": seed.constant,
        "one simulated rater against the others": seed.one_rater,
        "naive text: ridge on the number of listed entities and kinds": partial(seed.ridge, entity_features, "naive"),
        "ridge on the number of different words": partial(seed.ridge, word_features),
        "ridge on length and clue counts": partial(seed.ridge, clue_features),
        "ridge on frozen MiniLM": partial(seed.ridge, partial(mean_embeddings, max_length=seed.options.tokens)),
        "image only: ICNet": seed.image_only,
        "chain-of-thought text: MiniLM with LoRA": partial(seed.text, "cot"),
        "naive text: MiniLM with LoRA": partial(seed.text, "naive"),
        f"chain-of-thought text, federated: AFLoRA, ranks {RANKS}": seed.federated,
    }
    if num_zero_shot:
        found[f"zero-shot rubric, SmolLM2-135M, {num_zero_shot} images"] = seed.zero_shot
    return {name: method for name, method in found.items() if seed.options.only in name}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="scenes of a seed; 30 % of them test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="of the text scorer; the image network takes three times, rounds are twice",
    )
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--pixels", type=int, default=96, help="height and width of the image network's input")
    parser.add_argument("--width", type=int, default=16, help="channels of the image network's first stage")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the text scorer")
    parser.add_argument("--levels", type=int, default=5, help="that the text scorer learns")
    parser.add_argument("--zero_shot", type=int, default=10, help="images of a seed for the zero-shot rubric")
    parser.add_argument("--only", default="", help="methods whose name in the table has this in it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*(does not have many workers|have no `val_dataloader`).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, list[list[float]]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in options.seeds:
            seed = Seed(number, Path(folder, str(number)), options)
            for name, method in methods(seed, options.zero_shot).items():
                start = time.perf_counter()
                scores, targets = method()
                row = [float(f(scores[:, i], targets[:, i])) for i in (0, 1) for f in FIGURES.values()]
                found.setdefault(name, []).append(row)
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
                print(f"seed {number}, {name}: {', '.join(f'{value:.3f}' for value in row)}", flush=True)
    print(f"\n| SYNTHETIC scenes | {' | '.join(f'{s} {f}' for s in ('ES', 'SS') for f in FIGURES)} | s |")
    print("|---" * (2 + 2 * len(FIGURES)) + "|")
    for name, rows in found.items():
        values = torch.tensor(rows, dtype=torch.float64)
        spread = values.std(0) if len(rows) > 1 else torch.zeros_like(values[0])
        cells = [f"{m:.3f} ± {s:.3f}" if m == m else "-" for m, s in zip(values.mean(0), spread, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {seconds[name] / len(rows):.0f} |")


if __name__ == "__main__":
    main()
