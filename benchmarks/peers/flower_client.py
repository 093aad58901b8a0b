"""The client app of `run_flower.py`, in a file of its own: Ray's actors import it and keep what it has cached.

An actor makes the network once and not for every message, which is the best case for Flower.
"""

import os
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from workload import Work, put, sgd, train, trained

WORK = "PEERS_WORK"  # environment variable with the file of the work
app = ClientApp()


@cache
def known() -> tuple[Work, nn.Module]:
    torch.set_num_threads(1)
    work = Work.load(os.environ[WORK])
    return work, work.network()


def arrays(model: nn.Module) -> ArrayRecord:
    return ArrayRecord([parameter.detach().numpy() for parameter in trained(model).values()])


@app.train()  # type: ignore[untyped-decorator, unused-ignore]
def answer(message: Message, context: Context) -> Message:
    """Train one client on its batches of the round, which Flower counts from one."""
    work, model = known()
    values = [torch.from_numpy(array.copy()) for array in message.content["arrays"].to_numpy_ndarrays()]
    put(model, values)
    round_idx = int(message.content["config"]["server-round"]) - 1
    train(model, work.batches[round_idx, int(context.node_config["partition-id"])], sgd(model))
    content = {"arrays": arrays(model), "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)
