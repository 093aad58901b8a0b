"""Next-token losses without a tensor of all logits: head and cross-entropy in chunks of tokens.

The logits of a batch are its largest tensor by far (2048 tokens and 49152 words: 400 MB in float32, and as much again
for their gradient). The head is frozen, so the gradient of a token's loss by its hidden state is known as soon as its
logits are, and they can be dropped: ``dl/dh = (softmax(W h) - e_target) W``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from pl_fed.packing.rows import at_least_float32

LOGITS_AT_ONCE = 2**23
"""Most logits that are there at a time, 32 MB in float32."""
_IN_CACHE, _FEWEST_ROWS = 2**17, 128  # logits that a core's cache holds; rows of a product that is still a fast one
PLAIN_LOGITS = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Classes whose logits are the head's output as it is, neither scaled nor capped."""


def frozen_head(model: PreTrainedModel) -> nn.Linear | None:
    """Return the head of a model whose losses can be had in chunks: a plain frozen layer; else None."""
    head = model.get_output_embeddings()
    if type(model).__name__ not in PLAIN_LOGITS or type(head) is not nn.Linear or "forward" in vars(head):
        return None
    return None if any(value.requires_grad for value in head.parameters()) else head


@contextmanager
def without_head(head: nn.Module) -> Iterator[None]:
    """Let a model return its last hidden states as its logits within a `with` block."""
    vars(head)["forward"] = lambda hidden: hidden
    try:
        yield
    finally:
        del vars(head)["forward"]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, at_once: int) -> Tensor:
        losses, slopes = [], []
        for part, target in zip(hidden.split(at_once), targets.split(at_once), strict=True):
            scores = F.linear(part, head.weight, head.bias)
            logs, places = at_least_float32(scores).log_softmax(1), target[:, None]
            losses.append(-logs.gather(1, places).squeeze(1))
            if ctx.needs_input_grad[0]:
                slope = logs.exp_().scatter_add_(1, places, logs.new_full(places.shape, -1.0))
                slopes.append((slope.to(scores.dtype) @ head.weight).to(hidden.dtype))
        ctx.slopes = torch.cat(slopes) if slopes else None
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        return ctx.slopes * outer[:, None].to(ctx.slopes.dtype), None, None, None


def token_losses(
    hidden: Float[Tensor, "tokens width"],
    head: nn.Linear,
    targets: Int[Tensor, " tokens"],
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Float[Tensor, " tokens"]:
    """Return the cross-entropy of each token, with gradients for the hidden states alone.

    Args:
        hidden: The head's inputs.
        head: A frozen linear layer (vocab, width).
        targets: The right words; none is left out.
        logits_at_once: Most logits in memory at a time; a single token's are always. A CPU takes fewer.

    Example:
        >>> head = nn.Linear(2, 4, bias=False).requires_grad_(False)
        >>> token_losses(torch.zeros(3, 2), head, torch.tensor([0, 1, 3]), logits_at_once=8).exp().tolist()
        [4.0, 4.0, 4.0]
    """
    if not len(hidden):
        return at_least_float32(hidden.sum(1))
    most, best = logits_at_once // head.out_features, max(_FEWEST_ROWS, _IN_CACHE // head.out_features)
    at_once = max(1, min(most, best) if hidden.device.type == "cpu" else most)
    losses: Tensor = _TokenLosses.apply(hidden, head, targets, at_once)  # type: ignore[no-untyped-call]
    return losses
