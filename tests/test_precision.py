"""`precision: auto` is what the device multiplies in itself."""

import logging

import pytest
import torch

from pl_fed.cli_trainer import FederatedTrainer
from pl_fed.precision import device_of, fast_precision, has_bf16


def cpu_with(monkeypatch: pytest.MonkeyPatch, *units: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in units, raising=False)


@pytest.mark.parametrize(
    ("units", "expected"),
    [((), "32-true"), (("_is_avx512_bf16_supported",), "bf16-mixed"), (("_is_amx_tile_supported",), "bf16-mixed")],
    ids=["none", "avx512", "amx"],
)
def test_on_a_cpu(units: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, *units)
    trainer = FederatedTrainer(precision="auto", accelerator="cpu", logger=False, barebones=True)
    assert trainer.precision == expected


@pytest.mark.parametrize("has", [False, True])
def test_on_a_gpu(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that emulates bfloat16 (before Ampere) gets float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    assert device_of("auto") == device_of("gpu") == "cuda"
    assert fast_precision("auto") == ("bf16-mixed" if has else "32-true")


def test_other_devices_are_taken_to_be_without() -> None:
    assert not has_bf16("mps") and not has_bf16("tpu")


def test_emulation_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu_with(monkeypatch)
    with caplog.at_level(logging.WARNING):
        trainer = FederatedTrainer(precision="bf16-mixed", accelerator="cpu", logger=False, barebones=True)
    assert trainer.precision == "bf16-mixed" and "slower than `32-true`" in caplog.text
    caplog.clear()
    FederatedTrainer(accelerator="cpu", logger=False, barebones=True)
    assert "emulated" not in caplog.text
