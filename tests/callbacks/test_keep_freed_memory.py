"""Freed memory is kept: counted in page faults, in a process of its own, which the allocator's setting outlives."""

import json
import platform
import subprocess
import sys

import pytest
from lightning.pytorch import LightningModule, Trainer

from pl_fed.callbacks import KeepFreedMemory, keep_freed_memory

FAULTS = """
import json, resource, torch
from lightning.pytorch import Trainer
from pl_fed.callbacks import KeepFreedMemory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
KeepFreedMemory().setup(None, None, "fit")
faults()  # grows the heap once
print(json.dumps([plain, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_pages_are_not_fetched_again() -> None:
    """Twenty tensors of 16 MB are at least 160 faults, with the largest huge pages; kept, next to none."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    plain, kept = json.loads(done.stdout.splitlines()[-1])
    assert plain >= 160 and kept < plain / 10


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    KeepFreedMemory().setup(Trainer(logger=False, accelerator="cpu"), LightningModule(), "fit")
    assert "expected Linux with glibc" in caplog.text
