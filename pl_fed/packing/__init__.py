"""One forward pass for several clients: their tokens in one row without padding, or their images in one batch.

The base model is shared and frozen, so its layers see the tokens of all clients at once; what clients train lies in
stacks and is applied to each client's own tokens, and attention looks at one sequence at a time. The network itself is
as ever outside of `PackedNetwork.running`.
"""

from pl_fed.packing.images import ImageRows
from pl_fed.packing.inputs import Inputs, inputs_of
from pl_fed.packing.layers import Pass
from pl_fed.packing.network import PackedNetwork, base_model, why_not_packed
from pl_fed.packing.rows import Rows, TokenRows
from pl_fed.packing.segments import Segments

__all__ = [
    "ImageRows",
    "Inputs",
    "PackedNetwork",
    "Pass",
    "Rows",
    "Segments",
    "TokenRows",
    "base_model",
    "inputs_of",
    "why_not_packed",
]
