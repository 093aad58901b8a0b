"""Forward functions of single layers in a packed pass: LoRA, layers that are trained in full, dropout, pooling.

LoRA runs on each client's own rows, ``y = W x + s B_k diag(lam_k) A_k x``: as one batched product where all clients
have as many rows, else grouped or padded on a GPU and client by client over views of the stacks on a CPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pl_fed.adapters import ADAPTER_NAME, AdapterLayer
from pl_fed.packing.jagged import ragged_low_rank
from pl_fed.packing.padding import pads
from pl_fed.packing.segments import Segments

Forward = Callable[..., Tensor]


@dataclass
class Pass:
    """One forward and backward pass.

    Args:
        segments: Whose rows are whose.
        seeds: Each client's seed of this step, for dropout.
    """

    segments: Segments
    seeds: list[int]
    _generators: list[torch.Generator] = field(default_factory=list)

    def keep_mask(self, client: int, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
        """Draw a dropout mask with a client's own generator: 0 with probability `p`, else ``1 / (1 - p)``."""
        if not self._generators:
            self._generators = [torch.Generator(like.device).manual_seed(seed) for seed in self.seeds]
        mask = torch.empty(shape, dtype=like.dtype, device=like.device)
        mask.bernoulli_(1 - p, generator=self._generators[client])
        return mask.div_(1 - p) if p < 1 else mask


def add_low_rank(
    base: Tensor,
    x: Tensor,
    a: Float[Tensor, "clients rank d_in"],
    b: Float[Tensor, "clients d_out rank"],
    diagonal: Float[Tensor, "clients rank"] | None,
    scale: float,
    segments: Segments,
) -> Tensor:
    """Return ``base + scale B_k diag(lam_k) A_k x`` for the rows of every client k, in the type of `base`.

    Args:
        base: The frozen layer's output (..., d_out).
        x: Its input (..., d_in), after dropout.
        a: Every client's A.
        b: Every client's B.
        diagonal: Every client's diagonal; None for ones.
        scale: The constant in front.
        segments: Whose rows are whose.
    """
    # the scale goes where numbers are few
    factors = a.new_full((len(a), 1), scale) if diagonal is None else diagonal * scale
    sizes = segments.row_sizes(x)
    rows = x.reshape(-1, x.shape[-1])
    if len(set(sizes)) > 1:
        change = (ragged_low_rank if pads(x) else _client_by_client)(rows, a, b, factors, sizes)
        return (base + change.view(base.shape)).to(base.dtype)
    parts = rows.view(len(sizes), -1, rows.shape[1])  # (clients, rows, d_in)
    hidden = torch.bmm(parts, a.transpose(1, 2)) * factors[:, None]
    if base.dtype == hidden.dtype:
        out = base.reshape(*parts.shape[:2], -1)
        return torch.baddbmm(out, hidden, b.transpose(1, 2)).view(base.shape)
    return (base + torch.bmm(hidden, b.transpose(1, 2)).view(base.shape)).to(base.dtype)


def _client_by_client(rows: Tensor, a: Tensor, b: Tensor, factors: Tensor, sizes: list[int]) -> Tensor:
    stacks = zip(rows.split(sizes), a.unbind(), b.unbind(), factors.unbind(), strict=True)
    return torch.cat([F.linear(F.linear(part, a_k) * factor, b_k) for part, a_k, b_k, factor in stacks])


def lora_forward(layer: AdapterLayer, values: Mapping[str, Tensor], run: Pass) -> Forward:
    """Return the forward of a LoRA layer with each client's factors.

    Args:
        layer: The layer.
        values: Stacks by flat name.
        run: The pass.
    """
    module, scale = layer.module, layer.scale
    a, b = values[f"{layer.name}/a"], values[f"{layer.name}/b"]
    diagonal = values.get(f"{layer.name}/diagonal")
    dropout, base = module.lora_dropout[ADAPTER_NAME], module.base_layer

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = base(x, *args, **kwargs)
        return add_low_rank(result, dropout(x.to(a.dtype)), a, b, diagonal, scale, run.segments)

    return forward


def dropout_forward(module: nn.Dropout, run: Pass) -> Forward:
    """Return the forward of a dropout that draws each client's mask with its own generator."""

    def forward(x: Tensor) -> Tensor:
        if not module.training or module.p == 0:
            return x
        dim, parts = run.segments.split(x)
        return x * torch.cat([run.keep_mask(k, tuple(part.shape), module.p, x) for k, part in enumerate(parts)], dim)

    return forward


def _linear(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _layer_norm(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    norm = cast(nn.LayerNorm, module)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


ROW_WISE: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
}
"""Layers that may be trained in full: by class, the output of one client's rows with its weight and bias."""


def dense_forward(module: nn.Module, weight: Tensor | None, bias: Tensor | None, run: Pass) -> Forward:
    """Return the forward of a layer of `ROW_WISE` of which clients train weight (clients, ...), bias or both."""
    function, number = ROW_WISE[type(module)], run.segments.num_clients
    frozen = {key: cast(Tensor | None, getattr(module, key, None)) for key in ("weight", "bias")}

    def of_client(stack: Tensor | None, key: str) -> list[Tensor | None]:
        return [frozen[key]] * number if stack is None else list(stack.unbind())

    def forward(x: Tensor) -> Tensor:
        dim, parts = run.segments.split(x)
        trained = zip(parts, of_client(weight, "weight"), of_client(bias, "bias"), strict=True)
        return torch.cat([function(module, part, cast(Tensor, w), b) for part, w, b in trained], dim)

    return forward


def pooler_forward(module: nn.Module, run: Pass) -> Forward:
    """Return the forward of a pooler that reads a sequence's first token: from (1, tokens, width)."""

    def forward(hidden: Tensor) -> Tensor:
        starts = torch.tensor(run.segments.starts, device=hidden.device)
        return cast(Tensor, type(module).forward(module, hidden[0][starts][:, None]))

    return forward
