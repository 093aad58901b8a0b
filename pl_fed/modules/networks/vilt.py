"""ViLT with an output layer for scores, and room for texts of more tokens than it was trained on.

Wonjae Kim et al., "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", ICML 2021, arXiv
2102.03334. The published models read 40 tokens.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel, ViltPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MAX_TOKENS = 512
_POSITIONS = "vilt.embeddings.text_embeddings.position_embeddings.weight"


class ViltForScores(ViltPreTrainedModel):
    """A ViLT whose pooled output goes through a linear layer.

    Args:
        config: That of the base model, with `num_labels`.
    """

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        self.vilt = ViltModel(config)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a model and give it positions for 512 tokens; those that it had stay, the new ones are missing keys.

        Args:
            args: See transformers.
            output_loading_info: See transformers.
            kwargs: See transformers.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        network, info = loaded
        if network.extend_positions(MAX_TOKENS):
            info["missing_keys"] = {*info["missing_keys"], _POSITIONS}  # so that a module with an adapter trains them
        return (network, info) if output_loading_info else network

    @torch.no_grad()
    def extend_positions(self, num_tokens: int) -> bool:
        """Make room for longer texts; return whether there was less.

        Args:
            num_tokens: Largest number of tokens of a text.
        """
        text: Any = self.vilt.embeddings.text_embeddings
        old = text.position_embeddings
        if old.num_embeddings >= num_tokens:
            return False
        new = nn.Embedding(num_tokens, old.embedding_dim).to(old.weight)
        new.weight.normal_(0.0, self.config.initializer_range)
        new.weight[: old.num_embeddings] = old.weight
        text.position_embeddings = new
        text.position_ids = torch.arange(num_tokens, device=old.weight.device)[None]
        text.token_type_ids = torch.zeros_like(text.position_ids)
        self.config.max_position_embeddings = num_tokens
        return True

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        pixel_values: Float[Tensor, "batch channels height width"],
        **unused: Any,
    ) -> SequenceClassifierOutput:
        """Return the outputs as `logits` (batch, labels).

        Args:
            input_ids: Tokens of the text.
            attention_mask: 1 where there is a token.
            pixel_values: The image.
            unused: What peft hands on for models of texts.
        """
        found = self.vilt(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return SequenceClassifierOutput(logits=self.classifier(found.pooler_output))
