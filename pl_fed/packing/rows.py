"""The batches of several clients in one pass: texts as one row of tokens without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pl_fed.errors import FederatedConfigError
from pl_fed.packing.segments import Segments

IGNORED = -100  # the label that cross entropy leaves out


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Rows:
    """What a packed forward pass reads.

    Args:
        batches: Each client's batch.
        segments: Whose sequences, texts or images, are whose.

    Example:
        >>> batches = [{"labels": torch.tensor([1, 0])}, {"labels": torch.tensor([2])}]
        >>> rows = Rows(batches, Segments([5, 5, 5], [2, 1]))
        >>> rows.examples("labels").tolist(), rows.sequence_means(torch.tensor([1.0, 3.0, 7.0])).tolist()
        ([1, 0, 2], [2.0, 7.0])
    """

    batches: Sequence[Mapping[str, Tensor]]
    segments: Segments

    def examples(self, name: str) -> Shaped[Tensor, "sequences ..."]:
        """Return an entry of the batches that has a row for each example, for all clients."""
        return torch.cat([batch[name] for batch in self.batches])

    def sequence_sums(self, values: Shaped[Tensor, "sequences ..."]) -> Shaped[Tensor, " clients"]:
        """Return each client's sum over its sequences and all that there is of each."""
        return torch.stack([part.sum() for part in self.segments.split(values)[1]])

    def sequence_means(self, losses: Float[Tensor, " sequences"]) -> Float[Tensor, " clients"]:
        """Return each client's mean over its sequences."""
        return torch.stack([part.mean() for part in self.segments.split(losses)[1]])


@dataclass(frozen=True)
class TokenRows(Rows):
    """Several clients' texts as one row of tokens.

    Args:
        batches: Each client's batch, padded, with ``input_ids`` (batch, length).
        segments: Whose tokens are whose.
        masks: Which of a batch's tokens are no padding (batch, length); None for all.
    """

    masks: Sequence[Tensor | None]

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Tensor]]) -> "TokenRows":
        """Leave the padding of ``attention_mask`` out.

        Raises:
            FederatedConfigError: If a sequence has no token.
        """
        masks: list[Tensor | None] = []
        lengths: list[int] = []
        for batch in batches:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            own = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
            if min(own) == 0:
                raise FederatedConfigError("Expected at least one token in every sequence but got one without any.")
            full = sum(own) == ids.numel()
            masks.append(None if full or mask is None else mask.bool())
            lengths += own
        return cls(batches, Segments(lengths, [len(batch["input_ids"]) for batch in batches]), masks)

    def flat(self, values: Sequence[Tensor]) -> Tensor:
        """Return values (batch, length) of each client as one row (tokens,), without the padding."""
        pairs = zip(values, self.masks, strict=True)
        return torch.cat([value.flatten() if mask is None else value[mask] for value, mask in pairs])

    def pick(self, name: str) -> Int[Tensor, "1 tokens"]:
        """Return an entry of the batches as one row."""
        return self.flat([batch[name] for batch in self.batches])[None]

    @property
    def positions(self) -> Int[Tensor, "1 tokens"]:
        """Each token's place in its padded sequence."""
        places = [torch.arange(b["input_ids"].shape[1], device=b["input_ids"].device) for b in self.batches]
        pairs = zip(places, self.batches, strict=True)
        return self.flat([place.expand(len(batch["input_ids"]), -1) for place, batch in pairs])[None]

    def next_tokens(self) -> Int[Tensor, " tokens"]:
        """Return the label of the token that follows each token; -100 where there is none.

        Raises:
            FederatedConfigError: If a label follows on padding, which has no place in the row.
        """
        targets = []
        for batch, mask in zip(self.batches, self.masks, strict=True):
            labels = batch["labels"]
            following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)
            if mask is not None and bool((following[~mask] != IGNORED).any()):
                raise FederatedConfigError(
                    "Expected no label right after padding but got one, in a packed pass: pad on the right, or set "
                    "`engine: sequential`."
                )
            targets.append(following)
        return self.flat(targets)

    def owners(self) -> Int[Tensor, " tokens"]:
        """Return the client of each token."""
        device = self.batches[0]["input_ids"].device
        numbers = torch.tensor(self.segments.tokens, device=device)
        return torch.arange(len(numbers), device=device).repeat_interleave(
            numbers, output_size=sum(self.segments.tokens)
        )

    def token_means(
        self, losses: Float[Tensor, " chosen"], chosen: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " clients"]:
        """Return each client's mean over its chosen tokens; 0 for a client without any.

        Args:
            losses: A value for each chosen token.
            chosen: The places of these tokens in the row.
        """
        owners, number = self.owners()[chosen], self.segments.num_clients
        total = losses.new_zeros(number).index_add(0, owners, losses)
        counts = losses.new_zeros(number).index_add(0, owners, torch.ones_like(losses))
        return total / counts.clamp(min=1)
