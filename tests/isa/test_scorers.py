"""Scores by counting, by a language model that reads the rubric, and by a module from its checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_fed.assets import resolve_model
from pl_fed.errors import FederatedConfigError
from pl_fed.isa.assessment import make_row
from pl_fed.isa.extraction import Extracted
from pl_fed.isa.images import ImageFile
from pl_fed.isa.rubric import ENTITY, SEMANTIC
from pl_fed.isa.scorers import CheckpointScorer, HeuristicScorer, Score, Scorer, ZeroShotScorer
from pl_fed.isa.scorers.zero_shot import level_ids, moments, question
from pl_fed.isa.selection import Criteria, select
from pl_fed.isa.shortening import shorten
from pl_fed.isa.story import Finding, Story, render

STORY = Story({"mental_state": Finding(("a smile", "open arms"), "glad")}, "Objects: cup (80%, top); lamp (40%, left)")
BLANK = Image.new("RGB", (4, 4))


def scores(scorer: Scorer, *texts: str) -> Sequence[Score]:
    return scorer.score(texts, [BLANK] * len(texts))


def test_counts_by_hand() -> None:
    """Two objects of scale 5 and two clues of scale 10; then three content words (cat, red, mat) among six words."""
    both, naive = scores(HeuristicScorer(), render(STORY), "The cat and the red mat.")
    assert both.entity == pytest.approx(1 - math.exp(-2 / 5)) and both.semantic == pytest.approx(1 - math.exp(-2 / 10))
    assert naive.entity == pytest.approx(1 - math.exp(-3 / 40))
    assert naive.semantic == pytest.approx(1 - math.exp(-6 / 150))
    assert both.entity_uncertainty == pytest.approx(math.sqrt((0.25 + 0.0625) * 2 / 5)), "levels 1 to 5 at random"


def test_a_list_of_objects_tells_no_story() -> None:
    (score,) = scores(HeuristicScorer(), STORY.description)
    assert score.entity > 0 and score.semantic == 0


def test_nothing_is_nothing() -> None:
    (score,) = scores(HeuristicScorer(), "")
    assert (score.entity, score.semantic) == (0, 0)


def test_scales_and_ranges() -> None:
    with pytest.raises(FederatedConfigError, match="Expected `clues_scale` above 0 but got -1"):
        HeuristicScorer(clues_scale=-1)
    with pytest.raises(ValueError, match="Expected scores and uncertainties from 0 to 1 but got .1.5"):
        Score(1.5, 0.0, 0.0, 0.0)


def test_a_score_that_is_not_known_is_empty() -> None:
    """A scorer that learned the semantic score alone; and the row is none to select from."""
    found = Extracted(ImageFile(Path("a.png"), "a.png"), "a boy runs")
    row = make_row(found, Score(None, 0.75, None, 0.1))
    assert (row["entity_score"], row["entity_1_to_5"], row["entity_uncertainty"]) == (None, None, None)
    assert (row["semantic_score"], row["semantic_1_to_5"], row["semantic_uncertainty"]) == (0.75, 4.0, 0.1)
    assert select([row], Criteria(es=(0.0, 0.9))) == []


def test_moments_by_hand() -> None:
    """Levels 2 and 4 (scores .25 and .75) with weights 1/4 and 3/4: mean 5/8, variance 3/16 / 4."""
    mean, spread = moments(torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]))
    assert mean == pytest.approx(0.625) and spread == pytest.approx(math.sqrt(3 / 64))


def test_zero_shot_is_the_softmax_over_the_levels() -> None:
    """Computed again with the model's logits over all tokens: probabilities of 1 to 5, divided by their sum."""
    scorer = ZeroShotScorer("tiny-random-llama", max_tokens=30)
    folder = resolve_model("tiny-random-llama")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = f"<s>{question('A cup.', ENTITY)}\nLevel: "
    logits = model(tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids).logits[0, -1].detach()
    everything = logits.double().softmax(-1)
    wanted = everything[[tokenizer.convert_tokens_to_ids(digit) for digit in "12345"]]
    torch.testing.assert_close(
        scorer.probabilities("A cup.", ENTITY).double(), wanted / wanted.sum(), rtol=1e-4, atol=0
    )
    (score,) = scores(scorer, "A cup.")
    assert (score.entity, score.entity_uncertainty) == pytest.approx(moments(wanted / wanted.sum()), rel=1e-4)
    assert SEMANTIC.rules in question("A cup.", SEMANTIC)


def test_levels_need_tokens_of_their_own() -> None:
    class Blind:
        def __call__(self, text: str, **options: Any) -> Any:
            return type("Encoding", (), {"input_ids": [7]})

    with pytest.raises(FederatedConfigError, match="tells the digits 1 to 5 apart"):
        level_ids(Blind(), "")


def test_zero_shot_settings(tmp_path: Path) -> None:
    with pytest.raises(FederatedConfigError, match="`max_tokens` of at least 1 but got 0"):
        ZeroShotScorer(max_tokens=0)
    with pytest.raises(FederatedConfigError, match="`scorer.model` to be a causal language model but"):
        scores(ZeroShotScorer(str(tmp_path)), "x")


def test_shortening_takes_from_the_longest_section(caplog: pytest.LogCaptureFixture) -> None:
    """Four clues lose their last ones; the short section and the description at the end stay."""
    caplog.set_level("INFO")
    long = Finding(tuple(f"clue number {i}" for i in range(4)), "")
    text = render(Story({"special_time": long, "mental_state": Finding((), "glad")}, "A boy."))
    short = shorten(text, lambda t: len(t.split()), 16)  # 2 + 6, 2 + 2 and 1 + 2 words
    assert short == "Special time: clue number 0; clue number 1.\nMental state: -> glad\nDescription: A boy."
    assert "tokens to fit 16" in caplog.text


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 20])
def test_shortening_always_fits(limit: int) -> None:
    text = render(Story({"mental_state": Finding(("a b c d e f",), "g h i j")}, "k l m n o p q\nr s"))
    assert len(shorten(text, lambda t: len(t.split()), limit).split()) <= limit
    assert shorten(text, lambda t: len(t.split()), 1000) == text


class Trained(LightningModule):
    """Gives what it was trained to give."""

    def __init__(self, entity: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bias = torch.nn.Parameter(torch.tensor(entity))

    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> list[Score]:
        return [Score(float(self.bias), 0.5, 0.1, 0.1) for _ in texts]


class Untrained(LightningModule):
    """Has no `score`."""


def checkpoint(path: Path, module: type) -> str:
    values = {"entity": 0.0, "_class_path": f"{module.__module__}.{module.__qualname__}"}
    state = {"state_dict": {"bias": torch.tensor(0.25)}, "hyper_parameters": values}
    torch.save({**state, "pytorch-lightning_version": "2.6.0"}, path)
    return str(path)


def test_a_module_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_fed.isa.scorers.checkpoint.locate", {f"{__name__}.Trained": Trained}.get)
    (score,) = scores(CheckpointScorer(checkpoint(tmp_path / "a.ckpt", Trained)), "text")
    assert score == Score(0.25, 0.5, 0.1, 0.1)


def test_other_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_fed.isa.scorers.checkpoint.locate", {f"{__name__}.Untrained": Untrained}.get)
    with pytest.raises(FederatedConfigError, match="of a LightningModule with a method `score` but got one of .*Untr"):
        scores(CheckpointScorer(checkpoint(tmp_path / "a.ckpt", Untrained)), "text")
    with pytest.raises(FederatedConfigError, match="with a method `score` but got one of 'nowhere.Module'"):
        scores(CheckpointScorer(checkpoint(tmp_path / "a.ckpt", Trained), "nowhere.Module"), "text")
    for content in ("rubbish", ""):
        (tmp_path / "b.ckpt").write_text(content)
        with pytest.raises(FederatedConfigError, match="`scorer.path` to be a checkpoint but .*b.ckpt' cannot be read"):
            scores(CheckpointScorer(str(tmp_path / "b.ckpt")), "text")
    torch.save([1], tmp_path / "c.ckpt")
    with pytest.raises(FederatedConfigError, match="`scorer.path` to be a checkpoint but .*c.ckpt' holds a list"):
        scores(CheckpointScorer(str(tmp_path / "c.ckpt")), "text")
