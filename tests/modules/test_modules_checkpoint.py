"""Checkpoints under a plain Trainer: adapters only, loadable without code, resumable, refused if they do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from pl_fed.adapters import Adapter
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.modules import GenerationSettings, LoraCausalLM, LoraSequenceClassifier, LoraSettings, ModelLoading
from pl_fed.modules.checkpoint import fold_diagonals, matching_state
from tests.modules.tiny_models import class_rows, collate_classes, collate_language, language_rows

Make = Callable[..., pl.Trainer]

pytestmark = [
    # LightningCLI and `load_from_checkpoint` call what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def language_loader(shuffle: bool = False) -> Any:
    return DataLoader(language_rows(), batch_size=4, collate_fn=collate_language, shuffle=shuffle)  # type: ignore[arg-type]


def class_loader() -> Any:
    return DataLoader(class_rows(8), batch_size=4, collate_fn=collate_classes)  # type: ignore[arg-type]


def trained(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoint_holds_what_was_trained(bert: str, trainer: Make, tmp_path: Path, weights_only: bool) -> None:
    module, path = LoraSequenceClassifier(bert, LoraSettings(r=2), num_labels=3), tmp_path / "a.ckpt"
    run = trainer()
    run.fit(module, class_loader())
    run.save_checkpoint(path, weights_only)
    checkpoint = torch.load(path, weights_only=True)  # no code in it
    assert same(checkpoint["state_dict"], trained(module))
    size = sum(p.numel() for p in module.parameters())
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) < size / 5
    assert checkpoint["hyper_parameters"]["lora"]["r"] == 2

    again = LoraSequenceClassifier.load_from_checkpoint(path)
    assert isinstance(again, LoraSequenceClassifier) and again.lora == LoraSettings(r=2) and again.num_labels == 3
    batch = collate_classes(class_rows(4))
    with torch.no_grad():
        assert torch.equal(again.eval()(batch).logits, module.eval()(batch).logits)


def test_settings_may_be_replaced_on_loading(llama: str, trainer: Make, tmp_path: Path) -> None:
    module, run = LoraCausalLM(llama, LoraSettings(r=2, target_modules=["q_proj"])), trainer()
    run.fit(module, language_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    new = {"loading": ModelLoading(dtype="bfloat16"), "generation": {"sample": True}, "optimizer": adam}
    again = LoraCausalLM.load_from_checkpoint(tmp_path / "a.ckpt", **new, lr_scheduler=halving)
    assert again.model.dtype == torch.bfloat16 and again.generation == GenerationSettings(sample=True)
    assert again.optimizer is adam and again.lr_scheduler is halving
    assert same(trained(again), trained(module))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


@pytest.mark.parametrize(("interval", "halvings"), [("step", 6), ("epoch", 2)])
def test_resuming_equals_going_on(llama: str, trainer: Make, tmp_path: Path, interval: Any, halvings: int) -> None:
    """Two epochs of three steps, and one with the other resumed from its checkpoint: bit by bit the same."""

    def make() -> LoraCausalLM:
        torch.manual_seed(0)
        return LoraCausalLM(llama, LoraSettings(r=2, lora_dropout=0.0), adam, halving, interval)

    whole, first, second = make(), make(), make()
    run = trainer(max_epochs=2)
    run.fit(whole, language_loader())
    assert run.lr_scheduler_configs[0].scheduler.get_last_lr() == [1e-2 * 0.5**halvings]
    run = trainer(max_epochs=1)
    torch.manual_seed(0)
    run.fit(first, language_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    run = trainer(max_epochs=2)
    run.fit(second, language_loader(), ckpt_path=tmp_path / "a.ckpt")
    assert same(trained(second), trained(whole)) and run.global_step == 6


def test_testing_from_a_checkpoint(llama: str, trainer: Make, tmp_path: Path) -> None:
    module, run = LoraCausalLM(llama, LoraSettings(r=2), adam), trainer(max_epochs=2)
    run.fit(module, language_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    expected = run.test(module, language_loader(), verbose=False)
    fresh = LoraCausalLM(llama, LoraSettings(r=2))
    assert trainer().test(fresh, language_loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False) == expected


def test_frozen_sides_are_saved_too(llama: str, trainer: Make, tmp_path: Path) -> None:
    """A rule may freeze A; without it the checkpoint would mean nothing."""

    class OnlyB(LoraCausalLM):
        def configure_optimizers(self) -> Any:
            Adapter(self).set_trainable(frozenset({"b"}))
            return super().configure_optimizers()

    module, run = OnlyB(llama, LoraSettings(r=2)), trainer()
    run.fit(module, language_loader())
    assert len(run.optimizers[0].param_groups[0]["params"]) == 4  # the B of two layers in two blocks
    run.save_checkpoint(tmp_path / "a.ckpt")
    names = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"].keys()
    assert sum(".lora_A." in name for name in names) == sum(".lora_B." in name for name in names) == 4


def test_a_diagonal_comes_back_folded(llama: str, trainer: Make, tmp_path: Path) -> None:
    """Saved by a rule with a diagonal, loaded without one: the same function, not a lost diagonal."""
    module, run = LoraCausalLM(llama, LoraSettings(r=3)), trainer()
    run.fit(module, language_loader())
    adapter = Adapter(module)
    adapter.add_diagonals()
    with torch.no_grad():
        for diagonal in adapter.diagonals().values():
            diagonal.copy_(torch.tensor([0.5, 0.0, -2.0]))  # exact in any order of multiplication
        for layer in adapter.layers.values():
            layer.b.normal_()
    run.save_checkpoint(tmp_path / "a.ckpt")
    batch = collate_language(language_rows(4))
    again = LoraCausalLM.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert not Adapter(again).diagonals()
    with torch.no_grad():
        assert torch.equal(again(batch).logits, module.eval()(batch).logits)


def test_fold_keeps_zeros_and_the_input() -> None:
    b, diagonal = torch.tensor([[2.0, 5.0, 0.0]]), torch.tensor([3.0, 0.0, 7.0])
    state = {"x.lora_A.default.diagonal": diagonal, "x.lora_B.default.weight": b, "y.bias": torch.ones(1)}
    folded = fold_diagonals(state)
    assert folded.keys() == {"x.lora_B.default.weight", "y.bias"} and len(state) == 3
    assert folded["x.lora_B.default.weight"].tolist() == [[6.0, 0.0, 0.0]] and b.tolist() == [[2.0, 5.0, 0.0]]


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ({"a": (2,)}, r"1 of its tensors are missing there \['b'\] and 0 are unknown here"),
        ({"a": (2,), "b": (3,), "c": (1,)}, r"0 of .* missing there \[\] and 1 are unknown here \['c'\]"),
        ({"a": (2,), "b": (4,)}, r"Expected `b` of shape \(3,\) but the checkpoint has \(4,\): use the `lora.r`"),
    ],
)
def test_checkpoints_that_do_not_fit(loaded: dict[str, tuple[int]], message: str) -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "base": torch.zeros(9)}
    with pytest.raises(CheckpointMismatchError, match=message):
        matching_state({name: torch.zeros(shape) for name, shape in loaded.items()}, own, ["a", "b"])


def test_a_missing_tensor_stops_the_trainer(llama: str, trainer: Make, tmp_path: Path) -> None:
    module, run = LoraCausalLM(llama, LoraSettings(r=2)), trainer()
    run.fit(module, language_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    del checkpoint["state_dict"][name]
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointMismatchError, match=name.replace(".", r"\.")):
        trainer().test(LoraCausalLM(llama, LoraSettings(r=2)), language_loader(), ckpt_path=tmp_path / "b.ckpt")
    with pytest.raises(CheckpointMismatchError, match="Expected a checkpoint of this adapter"):
        LoraCausalLM.load_from_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(CheckpointMismatchError, match=r"of shape \(4, 16\) but the checkpoint has \(2, 16\)"):
        trainer().test(LoraCausalLM(llama, LoraSettings(r=4)), language_loader(), ckpt_path=tmp_path / "a.ckpt")


def test_nothing_to_train(llama: str) -> None:
    module = LoraCausalLM(llama)
    module.configure_model()
    module.requires_grad_(False)
    with pytest.raises(FederatedConfigError, match="Expected trainable parameters but all are frozen"):
        module.configure_optimizers()


def test_under_the_command_line(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of `LightningCLI` loads in Python, and gives its settings to the next command."""
    monkeypatch.setattr("sys.argv", ["command"])
    path = tmp_path / "a.ckpt"
    quiet = ["accelerator=cpu", "logger=false", "enable_checkpointing=false", "enable_progress_bar=false"]
    quiet += ["enable_model_summary=false", f"default_root_dir={tmp_path}"]
    options = [f"--trainer.{option}" for option in quiet]
    model = ["--model=pl_fed.modules.LoraCausalLM", f"--model.model={llama}", "--model.lora.r=3"]

    def cli(arguments: list[str]) -> LightningCLI:
        settings: dict[str, Any] = {
            "subclass_mode_model": True,
            "save_config_callback": None,
            "seed_everything_default": 1,
        }
        return LightningCLI(pl.LightningModule, Words, args=arguments, auto_configure_optimizers=False, **settings)

    first = cli(["fit", *options, "--trainer.max_epochs=1", *model])
    first.trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    assert LoraCausalLM.load_from_checkpoint(path).lora.r == 3
    again = cli(["validate", *options, *model[:2], f"--ckpt_path={path}"])
    assert again.model.lora.r == 3


class Words(pl.LightningDataModule):
    """Data for the command line."""

    def train_dataloader(self) -> Any:
        return language_loader()

    def val_dataloader(self) -> Any:
        return language_loader()


def test_a_checkpoint_of_another_module(bert: str, llama: str, trainer: Make, tmp_path: Path) -> None:
    """Refused by the classes, whatever their tensors; a subclass and its base load each other's."""

    class Mine(LoraCausalLM):
        pass

    run, path = trainer(), tmp_path / "a.ckpt"
    run.fit(LoraCausalLM(llama, LoraSettings(r=2)), language_loader())
    run.save_checkpoint(path)
    other = LoraSequenceClassifier(bert, LoraSettings(r=2), num_labels=3)
    with pytest.raises(CheckpointMismatchError, match="of `LoraSequenceClassifier` but got one of `LoraCausalLM`: set"):
        trainer().test(other, class_loader(), ckpt_path=path, verbose=False, weights_only=True)
    again = Mine(llama, LoraSettings(r=2))
    trainer().test(again, language_loader(), ckpt_path=path, verbose=False, weights_only=True)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert same({name: again.state_dict()[name] for name in saved}, saved)
