"""Shared by all tests: shape checking, no network, fixed seeds, and failure on leaked state."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled")

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

import tests.helpers.typecheck  # noqa: F401  # the hook looks it up by name

assert not any(name.split(".")[0] == "pl_fed" for name in sys.modules), "the hook sees only later imports"
# `save_hyperparameters` walks up the frames of the constructors and would stop at the checker's, so classes of these
# packages would save fewer arguments here than in use.
UNCHECKED = {"modules", "datamodules"}
PACKAGE = Path(__file__).parents[1] / "pl_fed"
CHECKED = sorted(f"pl_fed.{path.stem}" for path in PACKAGE.iterdir() if path.stem not in UNCHECKED)
install_import_hook(CHECKED, "tests.helpers.typecheck.check")

# Set by libraries as a side effect of legitimate use, and read again only by them.
LIBRARY_VARIABLES = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",  # Trainer(deterministic=True)
        "CUDA_MODULE_LOADING",  # torch, when a device is first asked for
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "PL_GLOBAL_SEED",  # seed_everything
        "PL_SEED_WORKERS",
        "PYTEST_CURRENT_TEST",
        "PYTORCH_NVML_BASED_CUDA_CHECK",  # lightning, on import
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "WANDB_SERVICE",
    }
)
torch.set_num_threads(1)  # tiny tensors: more threads only make the runs slower and sums depend on the machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="module")
def forget_wandb() -> None:
    """End wandb's session: it reads WANDB_MODE once a process, and files of tests set different ones."""
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # a run that another file's test left open
        wandb.teardown()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Make every test draw the same numbers, alone or in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_leaked_environment() -> Iterator[None]:
    """Restore the environment and fail if the test changed it."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not (leaked := changed - LIBRARY_VARIABLES), f"changed environment variables: {sorted(leaked)}"


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail if a thread that would keep the interpreter alive outlives the test that started it."""
    before = set(threading.enumerate())
    yield
    started = set(threading.enumerate()) - before
    for thread in (leaked := [thread for thread in started if not thread.daemon]):
        thread.join(timeout=1.0)
    leaked = [thread for thread in leaked if thread.is_alive()]
    assert not leaked, f"threads still running: {sorted(thread.name for thread in leaked)}"
