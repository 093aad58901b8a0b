"""Named tensors as one vector and back, in an order that does not depend on who made the dictionary."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pl_fed.errors import FederatedConfigError


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the vector; all clients of a sum need the same one.

    Args:
        names: Names in ascending order of their code points.
        shapes: One shape for each name.
        dtypes: One floating-point type for each name; `unflatten` restores it.

    Example:
        >>> layout = Layout.of({"b": torch.ones(2), "a": torch.zeros(1, 3)})
        >>> layout.names, layout.num_values
        (('a', 'b'), 5)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Read the layout from tensors.

        Raises:
            FederatedConfigError: If a tensor is not of floating point.
        """
        names = tuple(sorted(tensors))
        for name in names:
            if not tensors[name].is_floating_point():
                raise FederatedConfigError(
                    f"Expected floating-point tensors but `{name}` is {tensors[name].dtype}: leave it out of the sum."
                )
        shapes = tuple(tuple(tensors[name].shape) for name in names)
        return cls(names, shapes, tuple(tensors[name].dtype for name in names))

    @property
    def sizes(self) -> list[int]:
        """Number of values of each tensor."""
        return [torch.Size(shape).numel() for shape in self.shapes]

    @property
    def num_values(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)


def flatten(tensors: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, " values"]:
    """Return the tensors as one vector of the widest of their types, on the CPU.

    Raises:
        FederatedConfigError: If the tensors do not have this layout.
    """
    found = Layout.of(tensors)
    if found != layout:
        raise FederatedConfigError(
            f"Expected the tensors of the layout but {_difference(found, layout)}: every client of a secure sum must "
            "send the same names, shapes and types."
        )
    dtype = torch.float32
    for other in layout.dtypes:
        dtype = torch.promote_types(dtype, other)
    parts = [tensors[name].detach().reshape(-1).to("cpu", dtype) for name in layout.names]
    return torch.cat(parts) if parts else torch.zeros(0)


def unflatten(vector: Float[Tensor, " values"], layout: Layout) -> dict[str, Tensor]:
    """Return the named tensors, each a copy in its own type.

    Raises:
        FederatedConfigError: If the vector has another length.
    """
    if vector.numel() != layout.num_values:
        raise FederatedConfigError(
            f"Expected a vector of {layout.num_values} values but got {vector.numel()}: it belongs to another layout."
        )
    parts = vector.split(layout.sizes) if layout.names else ()
    triples = zip(layout.names, parts, layout.shapes, layout.dtypes, strict=True)
    return {name: part.reshape(shape).to(dtype, copy=True) for name, part, shape, dtype in triples}


def _difference(found: Layout, expected: Layout) -> str:
    """Say where two layouts differ first."""
    if missing := sorted(set(expected.names) - set(found.names)):
        return f"`{missing[0]}` is missing"
    if extra := sorted(set(found.names) - set(expected.names)):
        return f"`{extra[0]}` is too many"
    for name, *pairs in zip(expected.names, found.shapes, expected.shapes, found.dtypes, expected.dtypes, strict=True):
        shape, wanted_shape, dtype, wanted_dtype = pairs
        if (shape, dtype) != (wanted_shape, wanted_dtype):
            return f"`{name}` is {shape} in {dtype} where {wanted_shape} in {wanted_dtype} was announced"
    return "nothing differs"
