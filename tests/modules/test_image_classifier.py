"""`ImageClassifier`: its loss, figures and checkpoints, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.modules import ImageClassifier, LoraSequenceClassifier, NetworkSettings
from tests.modules.tiny_images import image_rows, loader, make

pytestmark = [
    # `load_from_checkpoint` calls what jsonargparse 4.49 renamed
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),  # the driver of rounds
]
Make = Callable[..., pl.Trainer]
VGG = NetworkSettings({"widths": [4, 8]}, in_channels=1, image_size=8)


def test_loss_is_that_of_torch() -> None:
    """With smoothing and weights: -w_y sum_c q_c log p_c over the sum of w_y, where q is the smoothed label."""
    module = make(label_smoothing=0.3, class_weights=[1.0, 2.0, 0.5])
    module.configure_model()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = default_collate(image_rows(6))
    loss = module.training_step(batch, 0)
    logs = module(batch).log_softmax(-1)
    target = 0.7 * F.one_hot(batch["labels"], 3) + 0.1
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = -(weights * target * logs).sum() / weights[batch["labels"]].sum()
    torch.testing.assert_close(loss, expected)


def test_figures_are_those_of_sklearn(trainer: Make) -> None:
    """Evaluated by hand in plain torch, over everything and for each client."""
    module, run, rows = make("lenet", network=NetworkSettings(in_channels=1, image_size=8)), trainer(), image_rows()
    run.validate(module, DataLoader(rows, batch_size=5), verbose=False)  # type: ignore[arg-type]
    batch = default_collate(rows)
    module.eval()
    scores = module(batch).detach()
    labels, guesses, clients = batch["labels"].numpy(), scores.argmax(-1).numpy(), batch["client_id"].numpy()
    by_client = {k: accuracy_score(labels[clients == k], guesses[clients == k]) for k in range(3)}
    worst = min(by_client, key=by_client.__getitem__)
    expected = {
        "val/loss": float(F.cross_entropy(scores, batch["labels"])),
        "val/accuracy": accuracy_score(labels, guesses),
        "val/macro_f1": f1_score(labels, guesses, labels=np.union1d(labels, guesses), average="macro"),
        "val/client_mean_accuracy": float(np.mean(list(by_client.values()))),
        "val/worst_client_accuracy": by_client[worst],
        "val/worst_client_id": worst,
    }
    assert {name: float(value) for name, value in run.callback_metrics.items()} == pytest.approx(expected, abs=1e-6)
    assert module.client_metrics["val"] == pytest.approx(by_client)


def test_it_learns_and_predicts(trainer: Make) -> None:
    module, run = make(), trainer(max_epochs=8)
    held_out = DataLoader(image_rows(), batch_size=6)  # type: ignore[arg-type]
    run.fit(module, loader(), held_out)
    assert float(run.callback_metrics["val/accuracy"]) == 1.0
    predictions = trainer().predict(module, held_out)
    assert predictions is not None
    assert torch.cat([p["label"] for p in predictions]).tolist() == [i % 3 for i in range(24)]  # type: ignore[call-overload,index]
    assert predictions[0]["probabilities"].sum(1).tolist() == pytest.approx([1.0] * 6)  # type: ignore[call-overload,index]


# Checkpoints.


class Shapes(pl.LightningDataModule):
    """Says what images and classes there are."""

    num_labels, num_channels, image_size = 3, 1, (8, 8)

    def train_dataloader(self) -> Any:
        return DataLoader(image_rows(), batch_size=8)  # type: ignore[arg-type]


def test_checkpoint_needs_no_data_and_no_federation(trainer: Make, tmp_path: Path) -> None:
    """The whole network is in it, statistics included; the shapes that came from the data are in the settings."""
    settings: dict[str, Any] = {"network": NetworkSettings({"width": 4}), "num_labels": None, "label_smoothing": 0.1}
    module, run = make("small_cnn", class_weights=[1.0, 2.0, 3.0], **settings), trainer()
    run.fit(module, datamodule=Shapes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (again.num_labels, again.label_smoothing) == (3, 0.1)
    assert again.settings == NetworkSettings({"width": 4}, 1, [8, 8])
    assert torch.equal(again.class_weights, torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[arg-type]
    assert again.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in again.state_dict().items())
    assert sum(name.endswith("running_mean") for name in again.state_dict()) == 2
    raw = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(raw["state_dict"]) == {f"network.{name}" for name in module.network.state_dict()}


def test_other_checkpoints_are_refused(trainer: Make, tmp_path: Path) -> None:
    run, module = trainer(), make()
    run.fit(module, DataLoader(image_rows(), batch_size=8))  # type: ignore[arg-type]
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointMismatchError, match="tensors are missing there .* use the `architecture` and `netw"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", architecture="vgg", network=VGG)
    with pytest.raises(CheckpointMismatchError, match=r"of shape \(5, 32\) but the checkpoint has \(3, 32\)"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", num_labels=5)
    with pytest.raises(CheckpointMismatchError, match="a checkpoint of `LoraSequenceClassifier` but got one of"):
        LoraSequenceClassifier.on_load_checkpoint(
            LoraSequenceClassifier("none"), torch.load(tmp_path / "a.ckpt", weights_only=True)
        )


def test_schedule_and_frozen_network(trainer: Make) -> None:
    module = make(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
    run = trainer(max_epochs=1)
    run.fit(module, DataLoader(image_rows(), batch_size=8))  # type: ignore[arg-type]
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
    module.network.requires_grad_(False)
    with pytest.raises(FederatedConfigError, match="trainable parameters but all are frozen"):
        module.configure_optimizers()


# Arguments.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 1}, "`num_labels` to be at least 2 or null but got 1"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` in \[0, 1\) but got 1.0"),
        ({"class_weights": [1.0, 0.0, 1.0]}, "`class_weights` to be positive numbers but got"),
        ({"class_weights": [1.0, float("nan")]}, "`class_weights` to be positive numbers but got"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": None}, "`num_labels` or a datamodule with `num_labels` but NoneType has none"),
        ({"network": NetworkSettings(image_size=8)}, "`network.in_channels` or a datamodule with `num_channels`"),
        ({"network": NetworkSettings(in_channels=1)}, "`network.image_size` or a datamodule with `image_size`"),
        ({"class_weights": [1.0, 2.0]}, "`class_weights` for 3 classes but got 2"),
    ],
)
def test_what_must_be_known_to_make_the_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        make(**changes).configure_model()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, "`network.in_channels` to be at least 1 or null but got 0"),
        ({"image_size": 0}, r"`network.image_size` to be one number of pixels or \[height, width\] but got 0"),
        ({"image_size": [8]}, r"`network.image_size` .* but got \[8\]"),
    ],
)
def test_bad_network_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        NetworkSettings(**settings)


def test_the_network_is_made_once() -> None:
    module = make()
    module.configure_model()
    network: nn.Module = module.network
    module.configure_model()
    assert module.network is network
