"""The command line, as a user has it: fit, resume, validate, test, predict, export, and errors of one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pl_fed.assets import resolve_model
from pl_fed.cli import main
from pl_fed.cli_trainer import FederatedTrainer
from tests.helpers.tiny import TinyLM, eval_loader

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),  # Lightning's CLI
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),  # a resumed run has a folder of its own
]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["cli.py"])  # LightningCLI warns of pytest's own arguments
    monkeypatch.setenv("WANDB_MODE", "offline")


def command(name: str, folder: Path, *options: str) -> None:
    main([name, "--config", "configs/smoke.yaml", f"--run.folder={folder}", *options])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the smoke configuration, two rounds."""
    folder = tmp_path_factory.mktemp("runs")
    wandb.teardown()  # type: ignore[no-untyped-call]  # forget the settings and runs of other tests
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("sys.argv", ["cli.py"])
        patch.setenv("WANDB_MODE", "offline")
        command("fit", folder, "--trainer.max_epochs=2", "--run.wandb=true", "--trainer.enable_progress_bar=false")
    return folder


def test_a_run_leaves_everything(runs: Path) -> None:
    run = runs / "smoke" / "version_0"
    written = {path.name for path in run.iterdir()}
    assert written >= {"config.yaml", "metrics.csv", "clients.csv", "summary.json", "partition.png", "partition.csv"}
    assert written >= {"adapter", "checkpoints", "plots"}
    assert list((runs / "smoke" / "wandb").glob("offline-run-*"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds"] == 2
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2 and config["run"]["name"] == "smoke"
    assert any(c["class_path"].endswith("RankPruning") for c in config["trainer"]["callbacks"]), "`callbacks+` appends"
    assert any(c["class_path"].endswith("RunSummary") for c in config["trainer"]["callbacks"]), "the defaults stay"


def test_the_adapter_loads_in_peft(runs: Path) -> None:
    """Its logits differ from the base model's, and equal those of the exported checkpoint."""
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny-random-llama"))
    ids = torch.arange(5, 25)[None]
    before = base(ids).logits.detach().clone()
    adapted = PeftModel.from_pretrained(base, str(runs / "smoke" / "version_0" / "adapter")).eval()
    logits = adapted(ids).logits.detach()
    assert not torch.allclose(before, logits)
    checkpoint = runs / "smoke" / "version_0" / "checkpoints" / "last.ckpt"
    command("export", runs, f"--ckpt_path={checkpoint}", f"--folder={runs / 'exported'}", "--merge=true")
    exported = AutoModelForCausalLM.from_pretrained(runs / "exported" / "merged").eval()
    torch.testing.assert_close(exported(ids).logits.detach(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_other_commands_take_the_checkpoint(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = runs / "smoke" / "version_0" / "checkpoints" / "last.ckpt"
    command(name, runs, f"--ckpt_path={checkpoint}", "--trainer.enable_progress_bar=false")
    if name == "predict":
        written = sorted(runs.glob("smoke/version_*/predictions.jsonl"))
        rows = [json.loads(line) for line in written[-1].read_text().splitlines()]
        assert rows and all(isinstance(row["prediction"], str) for row in rows)
    if name == "test":
        assert "test_clients/worst_client_loss" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["validate", "test"])
def test_figures_are_printed_once_and_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With two loaders, each of which has a figure of its own and gets those of the whole evaluation from Lightning."""
    stage = {"validate": "val", "test": "test"}[name]
    long = f"{stage}_of_all_clients/worst_client_accuracy_of_a_long_name"

    class TwoLoaders(TinyLM):
        def step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log(f"{stage}/loss", float(dataloader_idx + 1), batch_size=3)

        validation_step = test_step = step

        def end(self) -> None:
            self.log_dict({long: 0.25, f"{stage}/worst_client_id": 12.0})

        on_validation_epoch_end = on_test_epoch_end = end

    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = FederatedTrainer(**options, default_root_dir=tmp_path)
    run = trainer.validate if name == "validate" else trainer.test
    run(TwoLoaders(), [eval_loader(), eval_loader()], verbose=False)
    assert capsys.readouterr().out == ""
    results = run(TwoLoaders(), [eval_loader(), eval_loader()])
    cells = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {figure.strip(): value.strip() for figure, value in cells} == {
        long: "0.2500",
        f"{stage}/worst_client_id": "12",
        f"{stage}/loss/dataloader_idx_0": "1.0000",
        f"{stage}/loss/dataloader_idx_1": "2.0000",
    }
    assert len(cells) == 4 == len({figure for figures in results for figure in figures})


def test_resume_goes_on(runs: Path) -> None:
    checkpoint = runs / "smoke" / "version_0" / "checkpoints" / "last.ckpt"
    command("fit", runs, f"--ckpt_path={checkpoint}", "--trainer.max_epochs=3", "--run.version=resumed",
            "--trainer.enable_progress_bar=false")  # fmt: skip
    assert json.loads((runs / "smoke" / "resumed" / "summary.json").read_text())["rounds"] == 3


def test_a_truncated_checkpoint_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    whole = (runs / "smoke" / "version_0" / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="Expected a whole checkpoint but .*half.ckpt.*it has no end: it is tr"):
        command("fit", tmp_path, f"--ckpt_path={tmp_path / 'half.ckpt'}")


def test_without_a_logger_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no run folder then, so a folder `adapter` of the user's stays."""
    mine = tmp_path / "adapter" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    command("fit", tmp_path, "--trainer.logger=false", "--trainer.max_epochs=1", "--trainer.callbacks=null",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false",
            "--trainer.enable_checkpointing=false")  # fmt: skip
    assert mine.read_text() == "mine" and len(list(mine.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.model=nobody/no-such-model"], "nobody/no-such-model.*HF_HUB_OFFLINE"),
        (["--data.init_args.dataset=nobody/no-such-data"], "nobody/no-such-data"),
        (["--data.init_args.columns.response=anwser"], "anwser"),
        (["--model.init_args.lora.target_modules=[no_such_layer]"], "no_such_layer"),
        (["--model.init_args.lora.r=4"], "server's 4 .`lora.r`. but got 8"),
        (["--trainer.strategy.init_args.cohort.clients=9"], "population's 4 clients but got `cohort.clients`=9"),
        (["--trainer.strategy.init_args.clients.num_clients=7"], "Expected 7 clients .* partitioned into 4"),
        (["--trainer.strategy.init_args.clients.uplink_mb=0.00001"], "client 0 to afford at least rank 1"),
        (["--trainer.accumulate_grad_batches=7"], "`accumulate_grad_batches`=7 divides"),
        (["--trainer.strategy.init_args.clients.uplink_mb=-1"], "`clients.uplink_mb` above 0 but got -1"),
        (["--ckpt_path=no/such/file.ckpt"], "no/such/file.ckpt"),
        (["--ckpt_path=last"], "path of a checkpoint in `--ckpt_path` but got 'last'"),
        (["--model.init_args.generation={extra: {num_beamz: 4}}"], "`generation.extra` .* but got .'num_beamz'."),
        (["--data.init_args.splits.public_fraction=0.0"], "public split for PublicRefinement"),
        (["--trainer.strategy.init_args.cohort.fraction=0.5"], "got both, 4 and 0.5: .*`--.*.cohort.clients null`"),
    ],
)
def test_a_users_error_is_one_sentence(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"(?s)pl_fed: .*{message}"):
        command("fit", tmp_path, "--trainer.enable_progress_bar=false", *options)


def test_null_turns_a_file_s_clients_into_a_fraction(tmp_path: Path) -> None:
    """Half of the smoke configuration's four clients, which may also drop out, in each of two rounds."""
    options = ["cohort.clients", "null", "cohort.fraction", "0.5", "cohort.dropout", "0.0"]
    options = [f"--trainer.strategy.init_args.{o}" if o.startswith("cohort") else o for o in options]
    command("fit", tmp_path, *options, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")
    run = tmp_path / "smoke" / "version_0"
    cohort = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["strategy"]["init_args"]["cohort"]
    assert (cohort["clients"], cohort["fraction"]) == (None, 0.5)
    rows = [line.split(",")[0] for line in (run / "clients.csv").read_text().splitlines()[1:]]
    assert rows == ["0", "0", "1", "1"]


@pytest.mark.parametrize("name", ["validate", "test", "predict", "fit"])
def test_another_module_s_checkpoint_is_one_sentence(runs: Path, tmp_path: Path, name: str) -> None:
    """Both ways: the language model's checkpoint in a classifier, and one that a classifier is said to have saved."""
    checkpoint = runs / "smoke" / "version_0" / "checkpoints" / "last.ckpt"
    message = "^pl_fed: Expected a checkpoint of `{}` but got one of `{}`: set `model.class_path` to .*{}"
    with pytest.raises(SystemExit, match=message.format("LoraSequenceClassifier", "LoraCausalLM", "LoraCausalLM")):
        command(name, tmp_path, "--model=pl_fed.modules.LoraSequenceClassifier",
                "--model.init_args.model=tiny-random-llama", "--model.init_args.num_labels=3",
                f"--ckpt_path={checkpoint}")  # fmt: skip
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "pl_fed.modules.sequence_classifier.LoraSequenceClassifier"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match=message.format("LoraCausalLM", *["LoraSequenceClassifier"] * 2)):
        command(name, tmp_path, f"--ckpt_path={tmp_path / 'other.ckpt'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epohcs=3"], "a known option but got `trainer.max_epohcs`: did you mean `trainer.max_epochs`?"),
        (["--trainer.max_epochs=abc"], "Expected `trainer.max_epochs` to be int or null but got 'abc': give"),
        (
            ["--data.init_args.max_lenght=3"],
            "InstructionData (`data`) but got `max_lenght`: did you mean `max_length`?",
        ),
        (["--model.init_args.lora.rr=3"], "LoraCausalLM (`model`) but got `lora.rr`: did you mean `lora.r`?"),
        (
            ["--trainer.strategy.init_args.rule=pl_fed.rules.AFLora"],
            "Expected `trainer.strategy.rule` to name a class but got 'pl_fed.rules.AFLora' (module 'pl_fed.rules' has"
            " no attribute 'AFLora'): did you mean 'pl_fed.rules.AFLoRA'?",
        ),
        (["--model=nowhere.Model"], "Expected `model` to name a class but got 'nowhere.Model' (No module named"),
        (
            ["--trainer.strategy.init_args.codecs.up=nope"],
            "`trainer.strategy.codecs.up` to be one of 'float32', 'bfloat16', 'int8' but got 'nope'",
        ),
        (["--config=no_such.yaml"], "no_such.yaml"),
        (["--config={folder}/key.yaml"], "got `trainer.max_epochz`: did you mean `trainer.max_epochs`?"),
        (["--config={folder}/inner.yaml"], "FederatedStrategy (`trainer.strategy`) but got `cohort.client`: did you"),
        (
            ["--trainer.strategy.init_args.clients.rank=2"],
            "an option of `trainer.strategy` and its value but got `clients.rank` and '2': check both with",
        ),
    ],
)
def test_a_usage_error_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = {"class_path": "pl_fed.strategy.FederatedStrategy", "init_args": {"cohort": {"client": 3}}}
    (tmp_path / "key.yaml").write_text("trainer: {max_epochz: 3}")
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    with pytest.raises(SystemExit) as stopped:
        command("fit", tmp_path, *(option.format(folder=tmp_path) for option in options))
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert printed.startswith("pl_fed: Expected ") and "\n" not in printed and message in printed, printed


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fitt"])
    assert capsys.readouterr().err.endswith("test, predict, export but got 'fitt': did you mean 'fit'?\n")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    assert "--trainer.max_epochs MAX_EPOCHS" in capsys.readouterr().out
