"""One forward pass for several clients: their tokens in one row without padding, their adapters in stacks.

The base model is shared and frozen, so its layers see the tokens of all clients at once; what clients train is applied
to each client's own tokens, and attention looks at one sequence at a time. The network itself is as ever outside of
`PackedNetwork.running`.
"""

from pl_fed.packing.layers import Pass
from pl_fed.packing.network import PackedNetwork, why_not_packed
from pl_fed.packing.rows import TokenRows
from pl_fed.packing.segments import Segments

__all__ = ["PackedNetwork", "Pass", "Segments", "TokenRows", "why_not_packed"]
