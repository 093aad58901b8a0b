"""NVFlare's simulator: its `FedAvgRecipe` over the script of `nvflare_client.py`, in two sites at a time.

Each site trains its share of the clients and sends their mean, the best case for NVFlare. A round is timed from its
first client's start to that of the next round, so the last one is not.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare_client import Adapter
from workload import Task

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=THREADS, help="a divisor of the number of clients")
    task = Task(parser)
    times, sites = Path("times.txt").resolve(), task.options.sites
    recipe = FedAvgRecipe(
        name="peers",
        model=Adapter(str(task.options.work)),
        min_clients=sites,
        num_rounds=task.work.rounds,
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
        train_args=f"{task.options.work} {times} {sites}",
    )
    recipe.execute(SimEnv(num_clients=sites, num_threads=THREADS, workspace_root=str(Path.cwd())))
    starts: dict[int, float] = {}
    for line in times.read_text().splitlines():
        round_idx, seconds = line.split()
        starts[int(round_idx)] = min(float(seconds), starts.get(int(round_idx), float("inf")))
    task.times = task.cpu_times = [starts[round_idx] for round_idx in sorted(starts)]
    (path,) = Path.cwd().rglob("FL_global_model.pt")
    found = torch.load(path)["model"]
    task.report(
        [torch.as_tensor(found[f"p{i}"]) for i in range(len(task.work.adapter))], f"nvflare {version('nvflare')}"
    )


if __name__ == "__main__":
    main()
