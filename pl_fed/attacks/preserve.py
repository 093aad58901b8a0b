"""Borrowing a module: whatever is done to it in between, it comes back bit for bit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch (all devices) back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Put parameters, gradients, buffers, training flags and random states back afterwards.

    Inside, no parameter has a gradient yet. State that a module keeps elsewhere, such as that of a metric, is not seen:
    lend a copy of such a module.
    """
    parameters = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in module.parameters()]
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    flags = [(part, part.training) for part in module.modules()]
    try:
        with isolated_rng():
            for p, *_ in parameters:
                p.grad = None
            yield
    finally:
        with torch.no_grad():
            for p, value, gradient, flag in parameters:
                p.data.copy_(value)
                p.requires_grad_(flag).grad = gradient
            for owner, name, buffer, value in buffers:
                owner._buffers[name] = buffer.copy_(value)
        for part, training in flags:
            part.training = training


def still(module: nn.Module) -> None:
    """Turn dropout off but keep batch norms on batch statistics, as in training: samples that are alike stay alike."""
    module.eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train()


@contextmanager
def capture_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the input of a layer, one tensor for each time it runs."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
