"""A site's training script for `run_nvflare.py`, and the model that the server holds: the adapter alone.

python nvflare_client.py WORK TIMES SITES
"""

import sys
import time
from pathlib import Path

import nvflare.client as flare
import torch
from torch import nn
from workload import CLIENTS, Work, put, sgd, train, trained


class Adapter(nn.Module):
    """The adapter as a model of its own, which is all that travels.

    Args:
        work: File with the first adapter.
    """

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work  # NVFlare makes the model anew from attributes named as the arguments
        for index, value in enumerate(Work.load(work).adapter.values()):
            self.register_parameter(f"p{index}", nn.Parameter(value))


def main(work_file: str, times: Path, num_sites: int) -> None:
    """Train this site's share of the clients in every round and send their mean, which counts each client once."""
    torch.set_num_threads(1)
    work = Work.load(work_file)
    model = work.network()
    flare.init()
    share = CLIENTS // num_sites
    first = (int(flare.get_site_name().removeprefix("site-")) - 1) * share
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        with times.open("a") as file:  # `perf_counter` is the same clock in all processes of a Linux machine
            file.write(f"{received.current_round} {time.perf_counter()}\n")
        values = [torch.as_tensor(received.params[f"p{i}"]) for i in range(len(work.adapter))]
        ends = []
        for batches in work.batches[received.current_round, first : first + share]:
            put(model, values)
            train(model, batches, sgd(model))
            ends.append([parameter.detach().clone() for parameter in trained(model).values()])
        means = [torch.stack(parts).mean(0) for parts in zip(*ends, strict=True)]
        flare.send(flare.FLModel(params={f"p{i}": value for i, value in enumerate(means)}, meta={}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
