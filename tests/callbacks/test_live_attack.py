"""The attack inside a federation's own rounds: its sums, its clients, its secure aggregation."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from pl_fed.attacks import LocalSteps, LossSpec
from pl_fed.callbacks import ClientDP, LabelInferenceAttack
from pl_fed.clients import ClientsConfig
from pl_fed.context import RoundContext
from pl_fed.errors import ClientFailureError, FederatedConfigError
from pl_fed.loaders import RoundLoader
from pl_fed.modules import LoraSequenceClassifier, LoraSettings
from pl_fed.privacy.pairwise.errors import ModelMismatchError
from pl_fed.rounds import CohortConfig, LocalTraining
from pl_fed.rules import AFLoRA, FedIT, FedSALoRA
from pl_fed.secure_round import SecureAggregation
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.strategy import FederatedStrategy
from tests.modules.tiny_images import image_rows, make
from tests.modules.tiny_models import class_rows, collate_classes

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha"),  # of a few rounds
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),  # the driver of rounds
]
SHARDS = [[0, 3, 6, 1], [4, 7, 10, 13, 2, 5], [8, 11, 14, 17, 9], [12, 15, 18, 21, 20]]
ONE_STEP = LocalTraining(steps=1)
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def data(**changes: Any) -> RoundLoader:
    return RoundLoader(image_rows(), SHARDS, **{"batch_size": 32, **changes})


def sgd(lr: float = 0.5, **options: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def attacked(
    tmp_path: Path,
    *callbacks: Any,
    module: Any = None,
    loader: Any = None,
    audit: dict[str, Any] | None = None,
    ckpt: Path | None = None,
    trainer: dict[str, Any] | None = None,
    **strategy: Any,
) -> LabelInferenceAttack:
    """Run two rounds of four clients, the first of them attacked."""
    attack = LabelInferenceAttack(when="live", **(audit or {}))
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    options = {"max_epochs": 2, "enable_checkpointing": saves, "default_root_dir": tmp_path, **(trainer or {})}
    run = pl.Trainer(
        accelerator="cpu",
        strategy=FederatedStrategy(
            **{"rule": FedIT(), "cohort": CohortConfig(), "seed": 2, "local": ONE_STEP, **strategy}
        ),
        callbacks=[attack, *callbacks],
        **QUIET,
        **options,
    )
    run.fit(module or make(optimizer=sgd()), loader or data(), ckpt_path=ckpt)
    return attack


def counts(shard: list[int]) -> tuple[int, ...]:
    """The label of image i is i modulo 3."""
    return tuple(torch.bincount(torch.tensor(shard) % 3, minlength=3).tolist())


@pytest.mark.parametrize("backend", ["ideal", "pairwise", None])
def test_every_client_is_read_from_the_sum(tmp_path: Path, backend: Any) -> None:
    """Clients have 4, 6, 5 and 5 images in one batch each; the truth is the labels of their shards."""
    secure = None if backend is None else SecureAggregation(backend, binding=False)
    (report,) = attacked(tmp_path, secure_aggregation=secure).reports
    assert [row.client for row in report.rows] == [0, 1, 2, 3]
    assert [row.true for row in report.rows] == [counts(shard) for shard in SHARDS]
    assert report.exact_match == 1.0 and report.rank == 4 and report.margin < 0.01
    text = (tmp_path / "label_inference_live.md").read_text()
    assert "What stops it" in text and (f"({backend}, 22 bits)" in text if backend else "no secure aggregation" in text)


def weights(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Server(pl.Callback):
    """Notes the server's model after every round."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_round_end(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        self.seen.append(weights(pl_module))


def test_the_attacked_round_leaves_no_trace(tmp_path: Path) -> None:
    """The server goes on from the model that it had: parameters and statistics."""
    module, server = make(optimizer=sgd()), Server()
    module.configure_model()
    before = weights(module)
    attacked(tmp_path, server, module=module)
    assert all(torch.equal(value, before[n]) for n, value in server.seen[0].items() if "num_batches" not in n)
    assert any(not torch.equal(value, before[n]) for n, value in server.seen[1].items())


def test_a_server_optimizer_does_not_hide_the_sum(tmp_path: Path) -> None:
    options = {"server_optimizer": ServerOptimizer("adam", lr=0.01)}
    secure = SecureAggregation(binding=False)
    assert attacked(tmp_path, secure_aggregation=secure, **options).reports[0].exact_match == 1.0


def test_a_cohort_larger_than_the_norm_takes_several_rounds(tmp_path: Path) -> None:
    """Two biases: of four clients each round separates two, and then the attack is over."""
    module = make(optimizer=sgd())
    module.settings.options["width"] = 1  # type: ignore[index]
    attack = attacked(tmp_path, module=module, trainer={"max_epochs": 3})
    (report,) = attack.reports
    assert report.exact_match == 1.0 and [row.true for row in report.rows] == [counts(shard) for shard in SHARDS]
    assert "up to 1:" in report.setting and not report.under_determined


class Dropout(pl.Callback):
    def on_upload(self, trainer: Any, pl_module: Any, context: RoundContext) -> None:
        if context.client.client_id == 2:  # type: ignore[union-attr]
            raise ClientFailureError(2, "left")


def test_clients_that_drop_out(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, Dropout(), secure_aggregation=SecureAggregation(binding=False)).reports
    assert [row.client for row in report.rows] == [0, 1, 3] and report.exact_match == 1.0


def test_several_steps_are_read_from_the_run(tmp_path: Path) -> None:
    """Four steps on all of a client's images, with momentum and weight decay of the run's optimizer."""
    module = make(optimizer=sgd(0.01, momentum=0.5, weight_decay=0.01))
    (report,) = attacked(tmp_path, module=module, local=LocalTraining(epochs=4)).reports
    assert report.label_accuracy > 0.99 and report.rows[0].true == tuple(4 * n for n in counts(SHARDS[0]))


def test_adam_is_reported_and_inverted_roughly(tmp_path: Path) -> None:
    module = make(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    (report,) = attacked(tmp_path, module=module).reports
    assert report.exact_match < 1.0 and report.label_accuracy > report.guess and "Adam" in " ".join(report.notes)


def test_clipped_gradients_leave_the_counts(tmp_path: Path) -> None:
    """Clients 0 and 3 lack a class, so that their scale is found; the others' is found from whole counts."""
    (report,) = attacked(tmp_path, trainer={"gradient_clip_val": 0.05}).reports
    assert report.exact_match == 1.0


def test_smoothing_is_stated(tmp_path: Path) -> None:
    module = make(optimizer=sgd(), label_smoothing=0.2)
    assert attacked(tmp_path, module=module, audit={"loss": LossSpec(label_smoothing=0.2)}).reports[0].exact_match == 1


# ---------------------------------------------------------------- defences


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
def test_binding_stops_the_round(tmp_path: Path, backend: Any) -> None:
    with pytest.raises(ModelMismatchError, match="round 0"):
        attacked(tmp_path, secure_aggregation=backend)
    assert "Stopped by secure aggregation" in (tmp_path / "label_inference_live.md").read_text()


def test_local_norms_hide_the_labels(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, clients=ClientsConfig(local_norms=True)).reports
    assert report.exact_match == 0.0


def test_noise_hides_the_labels(tmp_path: Path) -> None:
    (report,) = attacked(tmp_path, ClientDP(clip=1.0, noise_multiplier=1.0)).reports
    assert report.exact_match < 0.5
    (quiet,) = attacked(tmp_path, ClientDP(clip=1.0, noise_multiplier=1e-6)).reports
    assert quiet.exact_match == 1.0  # clipping alone stops nothing


# ---------------------------------------------------------------- where it does not apply


def test_a_head_that_stays_on_the_client(tmp_path: Path, bert: str) -> None:
    with pytest.warns(UserWarning, match="update of `.*classifier.*` in the sum but there is none: it stays"):
        attack = lora(bert, tmp_path, FedSALoRA(keep_head=True))
    assert not attack.reports and "no proof of safety" in (tmp_path / "label_inference_live.md").read_text()


def test_unequal_steps(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"equal numbers of local steps but clients took \[2, 3\]: set `local.steps`"):
        attack = attacked(tmp_path, loader=data(batch_size=2), local=LocalTraining(epochs=1))
    assert not attack.reports


def test_no_rounds(tmp_path: Path) -> None:
    attack = LabelInferenceAttack(when="live")
    run = pl.Trainer(accelerator="cpu", callbacks=[attack], max_epochs=1, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(FederatedConfigError, match="Expected federated rounds for `when: live` but the Trainer"):
        run.fit(make(), data())


# ---------------------------------------------------------------- resume


class SaveEveryBatch(Checkpoint):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{len(list(self.folder.iterdir())):03}.ckpt")


def test_an_interrupted_attack_begins_anew(tmp_path: Path) -> None:
    """The server does not take what crafted models trained, and the next round is attacked."""
    folder, module, server = tmp_path / "saved", make(optimizer=sgd()), Server()
    folder.mkdir()
    module.configure_model()
    before = weights(module)
    attacked(tmp_path, SaveEveryBatch(folder))
    again = make(optimizer=sgd())
    attack = attacked(tmp_path, server, module=again, ckpt=sorted(folder.iterdir())[1], trainer={"max_epochs": 3})
    assert all(torch.equal(v, before[n]) for seen in server.seen[:2] for n, v in seen.items() if "num_batches" not in n)
    assert "up to 1:" in attack.reports[0].setting and attack.reports[0].exact_match == 1.0
    done = attacked(tmp_path, ckpt=sorted(folder.iterdir())[-1], trainer={"max_epochs": 3})
    assert not done.reports


# ---------------------------------------------------------------- a LoRA classifier


def lora(bert: str, tmp_path: Path, rule: Any, **strategy: Any) -> LabelInferenceAttack:
    rows = class_rows(40)
    shards = [[i for i, row in enumerate(rows) if row["client_id"] == k] for k in range(4)]
    loader = RoundLoader(rows, shards, batch_size=8, collate_fn=collate_classes)
    module = LoraSequenceClassifier(bert, lora=LoraSettings(r=4), num_labels=3, optimizer=sgd())
    options = {"rule": rule, "clients": ClientsConfig(ranks=[4, 2, 1, 3]), **strategy}
    return attacked(tmp_path, module=module, loader=loader, **options)


@pytest.mark.parametrize("backend", ["ideal", "pairwise"])
def test_aflora_behind_secure_aggregation(bert: str, tmp_path: Path, backend: Any) -> None:
    """Unequal ranks; the norm is frozen, so the server ships it as a part of the base model."""
    (report,) = lora(bert, tmp_path, AFLoRA(), secure_aggregation=SecureAggregation(backend, binding=False)).reports
    assert report.exact_match == 1.0 and report.rank == 4 and all(sum(row.true) == 8 for row in report.rows)
    with pytest.raises(ModelMismatchError, match="round 0"):
        lora(bert, tmp_path, AFLoRA(), secure_aggregation=backend)


def test_given_local_steps(tmp_path: Path) -> None:
    """What the configuration says of the clients goes before what the run shows."""
    (right,) = attacked(tmp_path, audit={"local": LocalSteps(lr=0.5)}).reports
    (wrong,) = attacked(tmp_path, audit={"local": LocalSteps(lr=5.0)}).reports
    assert right.exact_match == 1.0 > wrong.exact_match
