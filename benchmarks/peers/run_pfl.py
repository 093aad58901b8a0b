"""pfl-research: `FederatedAveraging` of a `PyTorchModel` in a `SimulatedBackend`; torchrun starts several processes."""

import itertools
import logging
import os
from importlib.metadata import version
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from workload import CLIENTS, RATE, Task, loss, trained


class Network(nn.Module):
    """The network with the two functions that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        return loss(self.model, ids)

    def metrics(self, ids: Tensor, labels: Tensor) -> dict[str, Any]:
        return {}


class Clock(TrainingProcessCallback):  # type: ignore[misc, unused-ignore]
    """Marks the rounds."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        task.mark()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        task.mark()
        return False, Metrics()


def user(number: int) -> Dataset:
    """Return the data of the n-th client that is drawn; pfl cuts it into batches in its order."""
    round_idx, client = divmod(number, CLIENTS)
    ids = task.work.batches[round_idx % task.work.rounds, client].flatten(0, 1)  # pfl may draw one more than it trains
    return Dataset(raw_data=[ids, ids], user_id=str(number))


logging.basicConfig(level=logging.WARNING)
task = Task()
network = Network(task.work.network())
parameters = list(trained(network).values())
model = PyTorchModel(
    model=network, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(parameters, 1.0)
)
backend = SimulatedBackend(
    training_data=FederatedDataset(user, itertools.count().__next__), val_data=None, postprocessors=[WeightByUser()]
)
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=task.work.rounds,
        evaluation_frequency=10**9,
        train_cohort_size=CLIENTS,
        val_cohort_size=0,
    ),
    backend=backend,
    model=model,
    model_train_params=NNTrainHyperParams(
        local_learning_rate=RATE, local_num_epochs=1, local_batch_size=task.work.batch_size
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=task.work.batch_size),
    callbacks=[Clock()],
)
if os.environ.get("RANK", "0") == "0":
    task.report(parameters, f"pfl {version('pfl')}")
