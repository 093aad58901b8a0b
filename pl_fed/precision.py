"""Which precision a machine is fast in."""

import torch

BF16, FLOAT32 = "bf16-mixed", "32-true"


def has_bf16(device: str) -> bool:
    """Tell whether a kind of device multiplies in bfloat16 itself; where it is emulated it is slower than float32.

    Args:
        device: ``cuda`` or ``cpu``; others are taken to be without.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    # what torch's own `_is_mkldnn_bf16_supported` tells is AVX-512 alone, with which it is emulated
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in known)


def device_of(accelerator: object) -> str:
    """Return the kind of device that Lightning takes for an `accelerator` given by its name.

    Example:
        >>> device_of("cpu"), device_of("gpu")
        ('cpu', 'cuda')
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return {"gpu": "cuda"}.get(str(accelerator), str(accelerator))


def fast_precision(accelerator: object) -> str:
    """Return the precision for `precision: auto`: ``bf16-mixed`` where the device has it, else ``32-true``.

    Never ``16-mixed``, whose scaler skips steps: clients would take unequal numbers of them.
    """
    return BF16 if has_bf16(device_of(accelerator)) else FLOAT32
