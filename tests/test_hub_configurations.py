"""The configurations that name models and data by hub id, trained from a hub: one on this machine with tiny models."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.helpers.commands import CommandLines, Done
from tests.helpers.hub import LoopbackHub
from tests.helpers.hub_content import AG_NEWS, DOLLY, GPT2, QWEN2, TINYLLAMA, VOCAB, data_of_the_hub, models_of_the_hub

SHORT = {  # what a test cannot wait for; everything else is the file's
    "classify_agnews": ["--data.init_args.max_length=32", "--trainer.strategy.init_args.local.steps=4"],
    "instruct_dolly": [
        "--data.init_args.max_length=96",
        "--data.init_args.loading.num_workers=0",
        "--model.init_args.generation.max_new_tokens=2",
    ],
}
CALLBACKS = ["RunSummary", "RankPruning", "PublicRefinement"]  # the last two change what is learnt
WITHOUT_PICTURES = f"--trainer.callbacks={json.dumps([{'class_path': f'pl_fed.callbacks.{c}'} for c in CALLBACKS])}"


@dataclass(frozen=True)
class Place:
    """The hub, a command line that reaches it, and the folder of both."""

    hub: LoopbackHub
    run: CommandLines
    folder: Path

    def fit(self, name: str, *options: str, run: CommandLines | None = None) -> Done:
        """Train two rounds of a configuration."""
        common = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        common += ["--run.wandb=false", f"--run.folder={self.folder / 'runs'}"]
        return (run or self.run)("fit", "--config", f"configs/{name}.yaml", *SHORT[name], *common, *options)

    def losses(self, run: str) -> tuple[float, float]:
        """Return the validation loss before and after the two rounds of a run."""
        summary: dict[str, Any] = json.loads((self.folder / "runs" / run / "summary.json").read_text())
        assert summary["rounds"] == 2
        return summary["before_training"]["val/loss"], summary["metrics"]["val/loss"]


def environment(hub: LoopbackHub, folder: Path, offline: str | None) -> dict[str, str | None]:
    """Return an environment in which nothing was downloaded before and only this hub is known."""
    homes = {"HF_HOME": str(folder / "hf"), "PL_FED_CACHE": str(folder / "cache")}
    hub_only = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline, "no_proxy": "127.0.0.1"}
    elsewhere = ("HF_TOKEN", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    return {**homes, **hub_only, **dict.fromkeys(elsewhere), "OMP_NUM_THREADS": "1"}  # as many as the tests themselves


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hub")
    with LoopbackHub(models_of_the_hub(), data_of_the_hub()) as hub:
        run = CommandLines(environment(hub, folder, offline=None), folder / "log")
        yield Place(hub, run, folder)
        run.close()


@pytest.fixture(scope="module")
def trained(place: Place) -> dict[str, Done]:
    """Both configurations as they are, and the second with the other model that it names."""
    qwen = [f"--model.init_args.model={QWEN2}", "--run.name=qwen", WITHOUT_PICTURES]
    return {
        "classify_agnews": place.fit("classify_agnews"),
        "instruct_dolly": place.fit("instruct_dolly"),
        "qwen": place.fit("instruct_dolly", *qwen),
    }


RUNS = [
    ("classify_agnews", GPT2, AG_NEWS, math.log(4)),
    ("instruct_dolly", TINYLLAMA, DOLLY, math.log(VOCAB)),
    ("qwen", QWEN2, DOLLY, math.log(VOCAB)),
]


@pytest.mark.parametrize(("name", "model", "data", "guessing"), RUNS)
def test_trains_from_the_hub(
    trained: dict[str, Done], place: Place, name: str, model: str, data: str, guessing: float
) -> None:
    """A random model of small weights guesses: its loss is the logarithm of the number of choices, until it learns."""
    assert trained[name].code == 0, trained[name].printed
    assert place.hub.served("models", model) >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert place.hub.served("datasets", data) == set(data_of_the_hub()[data])
    before, after = place.losses(f"{name}/version_0")
    assert before == pytest.approx(guessing, abs=0.03)
    assert after < min(before, guessing)


@pytest.mark.parametrize(("name", "model", "data", "guessing"), RUNS)
def test_the_adapter_loads_in_peft(
    trained: dict[str, Done], place: Place, tmp_path: Path, name: str, model: str, data: str, guessing: float
) -> None:
    for file, content in models_of_the_hub()[model].items():
        (tmp_path / file).write_bytes(content)
    if name == "classify_agnews":
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    else:
        base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    before = base.eval()(ids).logits.detach().clone()
    adapter = place.folder / "runs" / name / "version_0" / "adapter"
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    assert adapted.peft_config["default"].base_model_name_or_path == model
    assert not torch.allclose(before, adapted(ids).logits)


def test_export_gives_the_adapter_of_the_run(trained: dict[str, Done], place: Place) -> None:
    run, folder = place.folder / "runs" / "classify_agnews" / "version_0", place.folder / "exported"
    options = ["--config", "configs/classify_agnews.yaml", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]
    done = place.run("export", *options, f"--folder={folder}")
    assert done.code == 0, done.printed
    of_run, exported = (load_file(home / "adapter_model.safetensors") for home in (run / "adapter", folder))
    assert of_run.keys() == exported.keys()
    assert all(torch.equal(of_run[key], exported[key]) for key in of_run)


def test_a_hub_that_stalls_is_asked_once(trained: dict[str, Done], place: Place) -> None:
    """All is in the caches then; without them every file would be asked for first, each with a time-out of its own."""
    place.hub.stalls, start = ("/",), len(place.hub.requests)
    done = place.fit("classify_agnews", "--run.name=stalled", WITHOUT_PICTURES)
    place.hub.stalls = ()
    assert done.code == 0, done.printed
    assert place.hub.requests[start:] == ["HEAD /"]
    assert place.losses("stalled/version_0") == place.losses("classify_agnews/version_0")


def test_trains_again_without_the_hub(trained: dict[str, Done], place: Place) -> None:
    """The same figures, with the hub gone and nobody asking for it."""
    place.hub.go_away()
    offline = CommandLines(environment(place.hub, place.folder, offline="1"), place.folder / "log")
    for name in SHORT:
        done = place.fit(name, "--run.version=offline", WITHOUT_PICTURES, run=offline)
        assert done.code == 0, done.printed
        assert place.losses(f"{name}/offline") == place.losses(f"{name}/version_0")
    offline.close()
    place.hub.come_back()
