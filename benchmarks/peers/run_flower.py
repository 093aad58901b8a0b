"""Flower's simulation on Ray: `FedAvg` over the client app of `flower_client.py`, two actors of one core each."""

import os
from importlib.metadata import version
from typing import Any

import torch
from flower_client import WORK, app, arrays
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import CLIENTS, Task

ACTORS = 2
RAY_BYTES = 200 * 2**20  # of Ray's object store, which otherwise takes a third of the memory

task, server = Task(), ServerApp()
os.environ[WORK] = str(task.options.work)


class Averaging(FedAvg):  # type: ignore[misc, unused-ignore]
    """FedAvg that marks the rounds."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        result = super().aggregate_train(server_round, replies)
        task.mark()
        return result


@server.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    strategy = Averaging(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS
    )
    first = arrays(task.work.network())
    task.mark()
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=task.work.rounds)
    final = [torch.from_numpy(array.copy()) for array in result.arrays.to_numpy_ndarrays()]
    task.report(final, f"flwr {version('flwr')}")


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": ACTORS, "include_dashboard": False, "object_store_memory": RAY_BYTES},
        },
    )
