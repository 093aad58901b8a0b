"""Attention within each sequence of a packed pass, as an implementation for transformers' `AttentionInterface`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from pl_fed.packing.jagged import ragged_attention
from pl_fed.packing.layers import Pass
from pl_fed.packing.padding import pads, repeated

NAME = "pl_fed_packed"
PASS = "pl_fed_pass"
"""Attribute of an attention module with the pass that is running."""

Heads = Float[Tensor, "sequences heads length width"]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence; causal where the module is.

    Args:
        module: The attention module, with the running pass as `PASS`.
        query: (1, heads, tokens, width) of sequences in one row, or (sequences, heads, length, width) of images.
        key: As `query`, with the key heads.
        value: As `key`.
        attention_mask: Not used: there is no padding.
        scaling: Factor of the scores; None for ``width ** -0.5``.
        dropout: Probability of dropping a weight.
        is_causal: Overrules the module.
        kwargs: Not used.

    Returns:
        (1, tokens, heads, width) or (sequences, length, heads, width), and no weights.
    """
    run: Pass = getattr(module, PASS)
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if pads(query) and not run.segments.uniform and not dropout:
        return ragged_attention(query, key, value, run.segments.lengths, causal, scale), None
    return _by_sequence(run, query, repeated(key, query), repeated(value, query), causal, scale, dropout), None


def _by_sequence(
    run: Pass, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float, dropout: float
) -> Tensor:
    """Attend within each sequence, in one go where all are of one length."""
    lengths = run.segments.lengths
    masks = _masks(run, query, dropout)
    if run.segments.uniform:
        parts = [tuple(_stacked(x, lengths[0]) for x in (query, key, value))]
        masks = [torch.cat(masks)] if masks else []
    else:
        parts = list(zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True))
    outputs = []
    for i, (q, k, v) in enumerate(parts):
        attended = _attend(q, k, v, causal, scale, masks[i] if masks else None)
        outputs.append(attended.transpose(1, 2).reshape(len(query), -1, *attended.shape[1::2]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def _stacked(x: Tensor, length: int) -> Heads:
    """Turn (1, heads, tokens, width) into sequences of one length; images are that already."""
    if len(x) > 1:
        return x
    heads = x.squeeze(0)  # not `x[0]`, whose backward fills a tensor with zeros first
    return heads.reshape(x.shape[1], -1, length, x.shape[3]).transpose(0, 1)


def _attend(query: Heads, key: Heads, value: Heads, causal: bool, scale: float, mask: Tensor | None) -> Heads:
    if mask is None:
        plain: Tensor = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
        return plain
    scores = query @ key.transpose(-1, -2) * scale  # (sequences, heads, length, length)
    if causal:
        length = scores.shape[-1]
        later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) * mask @ value


def _masks(run: Pass, query: Tensor, dropout: float) -> list[Tensor]:
    """Draw the mask of every sequence from its client's generator, so that it does not depend on the others."""
    if not dropout:
        return []
    heads, segments = query.shape[1], run.segments
    return [
        run.keep_mask(client, (1, heads, length, length), dropout, query)
        for client, length in zip(segments.owners, segments.lengths, strict=True)
    ]


AttentionInterface.register(NAME, packed_attention)
