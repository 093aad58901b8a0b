"""The work that every runner does, and what it says at the end; needs torch, transformers and peft, but not pl_fed.

20 clients, each four SGD steps a round on a GPT-2 of four layers of width 128 with LoRA of rank 8; the server takes the
plain mean. Base model, first adapter and batches are the same everywhere, so every runner must end with one adapter.
"""

import argparse
import json
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

CLIENTS, STEPS, LENGTH, VOCAB, RATE = 20, 4, 32, 1024, 0.5


def network() -> nn.Module:
    """Return the network with an adapter of which both factors are nonzero, so that all of it is trained at once."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": VOCAB, "n_positions": LENGTH}
    settings |= {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel(GPT2Config(**settings)), lora).train()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trained(model).items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what clients train, by name, in the network's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def put(model: nn.Module, adapter: Sequence[Tensor]) -> None:
    """Copy an adapter into the network; its tensors are in the network's order."""
    with torch.no_grad():
        torch._foreach_copy_(list(trained(model).values()), list(adapter))


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean loss of the next token; ids (batch, length)."""
    logits: Tensor = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, batches: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Do a client's steps; batches (steps, batch, length)."""
    for ids in batches:
        optimizer.zero_grad()
        loss(model, ids).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model).values(), lr=RATE)


@dataclass(frozen=True)
class Work:
    """The first adapter and every batch of a run.

    Args:
        adapter: By name.
        batches: (rounds, clients, steps, batch, length).
        examples: The same sequences as a data set, (examples, length): client by client, the same number each.
    """

    adapter: dict[str, Tensor]
    batches: Tensor
    examples: Tensor

    @classmethod
    def load(cls, path: str | Path) -> "Work":
        return cls(**torch.load(path))

    @property
    def rounds(self) -> int:
        return self.batches.shape[0]

    @property
    def batch_size(self) -> int:
        return self.batches.shape[3]

    def network(self) -> nn.Module:
        """Return the network with the first adapter."""
        model = network()
        put(model, list(self.adapter.values()))
        return model


class Task:
    """What a runner was asked to do, and its clock.

    Args:
        parser: Has the runner's own options.
    """

    def __init__(self, parser: argparse.ArgumentParser | None = None) -> None:
        parser = parser or argparse.ArgumentParser()
        parser.add_argument("work", type=Path, help="the work, made by compare.py")
        parser.add_argument("adapter", type=Path, help="where the last adapter is written")
        self.options = parser.parse_args()
        torch.set_num_threads(1)
        self.work = Work.load(self.options.work)
        self.times: list[float] = []
        self.cpu_times: list[float] = []

    def mark(self) -> None:
        """Note that training begins, or that a round has ended."""
        self.times.append(time.perf_counter())
        self.cpu_times.append(time.process_time())

    def report(self, adapter: Sequence[Tensor], version: str) -> None:
        """Write the server's last adapter and print what was measured.

        Args:
            adapter: Its tensors in the network's order.
            version: Of the framework.
        """
        values = {name: value.detach().clone() for name, value in zip(self.work.adapter, adapter, strict=True)}
        torch.save(values, self.options.adapter)
        seconds, cpu = (list(map(operator.sub, t[1:], t[:-1])) for t in (self.times, self.cpu_times))
        versions = {"version": version, "torch": torch.__version__}
        measured = {"seconds": seconds, "cpu_seconds": cpu, "marks": self.times}
        print(json.dumps({**measured, **versions, **checksum(values)}))


def checksum(adapter: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the sum and the norm of all numbers, in float64."""
    numbers = torch.cat([value.double().flatten() for value in adapter.values()])
    return {"sum": float(numbers.sum()), "norm": float(numbers.norm())}
