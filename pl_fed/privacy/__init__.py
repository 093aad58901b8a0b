"""What keeps single clients out of sight: fixed point, secure sums, model binding."""

from pl_fed.privacy.binding import HashEcho, model_hash, module_hash
from pl_fed.privacy.fixed_point import (
    CorruptSumError,
    Encoded,
    FixedPoint,
    check_ring,
    choose_ring,
    decode_mean,
    encode,
    mean_error_bound,
)
from pl_fed.privacy.flatten import Layout, flatten, unflatten
from pl_fed.privacy.ring import Ring
from pl_fed.privacy.secure_sum import IdealSum, PairwiseSum, SecureSum

__all__ = [
    "CorruptSumError",
    "Encoded",
    "FixedPoint",
    "HashEcho",
    "IdealSum",
    "Layout",
    "PairwiseSum",
    "Ring",
    "SecureSum",
    "check_ring",
    "choose_ring",
    "decode_mean",
    "encode",
    "flatten",
    "mean_error_bound",
    "model_hash",
    "module_hash",
    "unflatten",
]
