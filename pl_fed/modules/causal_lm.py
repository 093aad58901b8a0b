"""LoRA fine-tuning of a causal language model on instructions and responses."""

from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from peft import TaskType
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from pl_fed.errors import FederatedConfigError
from pl_fed.modules.base import Batch, LoraModule, LRSchedulerCallable, OptimizerCallable, client_ids
from pl_fed.modules.evaluation import LanguageEvaluation, response_losses, summed
from pl_fed.modules.settings import GenerationSettings, LoraSettings, ModelLoading
from pl_fed.modules.token_losses import LOGITS_AT_ONCE, frozen_head, token_losses, without_head
from pl_fed.packing import TokenRows
from pl_fed.packing.rows import IGNORED, at_least_float32


class LoraCausalLM(LoraModule):
    """A causal language model; the loss is on the tokens whose label is not -100, which leaves the prompt out.

    Logs ``train/loss``, ``val/loss`` and ``val/perplexity`` (of the mean over all labelled tokens), and in the test the
    same figures for each loader. Where batches say whose they are, also ``client_mean_loss``, ``worst_client_loss`` and
    ``worst_client_id``; with `generation` also ``exact_match``, ``rouge1``, ``rouge2`` and ``rougeL``.

    Args:
        model: Hub id or folder of the base model.
        lora: Settings of the adapter.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
        loading: How the base model is loaded.
        generation: Generate text for the metrics, from batches with `prompt_input_ids` and `prompt_attention_mask`
            (padded on the left); None generates in prediction only, with the default settings.

    Example:
        >>> module = LoraCausalLM("HuggingFaceTB/SmolLM2-135M-Instruct", lora=LoraSettings(r=8))
        >>> module.hparams["lora"]["r"]  # nothing is loaded before the Trainer asks
        8
    """

    auto_class = AutoModelForCausalLM
    task = TaskType.CAUSAL_LM
    logits_at_once: ClassVar[int] = LOGITS_AT_ONCE  # with more, losses are computed in chunks of tokens

    def __init__(
        self,
        model: str,
        lora: LoraSettings = LoraSettings(),  # noqa: B008  # frozen
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule_interval: Literal["step", "epoch"] = "step",
        loading: ModelLoading = ModelLoading(),  # noqa: B008  # frozen
        generation: GenerationSettings | None = None,
    ) -> None:
        super().__init__(model, lora, optimizer, lr_scheduler, schedule_interval, loading)
        self.generation = generation
        self.remember(generation=generation)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the batch's labelled tokens."""
        losses, num_tokens = self.response_losses(batch)
        loss = losses.sum() / num_tokens.sum().clamp(min=1)  # a batch without labels teaches nothing
        self.log_training_loss(loss, len(batch["labels"]))
        return loss

    def response_losses(self, batch: Batch) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Return each example's summed loss over its labelled tokens, and their number.

        Not the base model's own loss, which turns all logits into float32 and is unknown for GPT-2.
        """
        labels = batch["labels"]
        chosen = labels[:, 1:] != IGNORED
        head = self._head_in_chunks(int(chosen.sum()))
        if head is None:
            return response_losses(self(batch).logits, labels)
        with without_head(head):
            hidden = self(batch).logits
        return summed(token_losses(hidden[:, :-1][chosen], head, labels[:, 1:][chosen], self.logits_at_once), chosen)

    def packed_losses(self, rows: TokenRows) -> Float[Tensor, " clients"]:
        """Return the loss of `training_step` for each of several clients that train together."""
        targets = rows.next_tokens()  # (tokens,)
        chosen = (targets != IGNORED).nonzero().flatten()
        head = frozen_head(cast(PreTrainedModel, self.model.get_base_model()))
        if head is not None:
            with without_head(head):
                hidden = self.packed_output(rows, logits_to_keep=chosen).logits.squeeze(0)
            return rows.token_means(token_losses(hidden, head, targets[chosen], self.logits_at_once), chosen)
        output = self.packed_output(rows, **({"logits_to_keep": chosen} if self._plain_head() else {}))
        logits = output.logits.squeeze(0) if self._plain_head() else output.logits[0, chosen]  # (chosen, vocab)
        losses = F.cross_entropy(at_least_float32(logits), targets[chosen], reduction="none")
        return rows.token_means(losses, chosen)

    def _head_in_chunks(self, num_tokens: int) -> nn.Linear | None:
        """Return the head if its logits for so many tokens are better not there at once; else None."""
        head = frozen_head(cast(PreTrainedModel, self.model.get_base_model()))
        return None if head is None or num_tokens * head.out_features <= self.logits_at_once else head

    def _plain_head(self) -> bool:
        """Tell whether the head is the same for all clients, so that it need not know whose its rows are."""
        return type(cast(PreTrainedModel, self.model.get_base_model()).get_output_embeddings()) is nn.Linear

    def new_evaluation(self) -> LanguageEvaluation:
        """Return empty figures for one loader."""
        return LanguageEvaluation()

    def evaluate(self, batch: Batch, evaluation: LanguageEvaluation, stage: str) -> None:
        """Add a batch to a loader's figures."""
        labels = batch["labels"]
        evaluation.update(*self.response_losses(batch), client_ids(batch, len(labels)))
        settings = self.generation
        if settings is None or (stage == "val" and not settings.in_validation):
            return
        room = len(labels)
        if settings.num_examples is not None:
            room = min(room, settings.num_examples - evaluation.num_generated)
        if room > 0:
            chosen = {name: value[:room] for name, value in batch.items()}
            evaluation.update_texts(self.generate(chosen), self._decode(chosen["labels"]))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        """Return the text generated for each prompt."""
        return self.generate(batch)

    def generate(self, batch: Batch) -> list[str]:
        """Return the text generated for each prompt of a batch.

        Args:
            batch: Has `prompt_input_ids` and `prompt_attention_mask`, (batch, length), padded on the left.
        """
        if "prompt_input_ids" not in batch:
            raise FederatedConfigError(
                f"Expected `prompt_input_ids` in the batch for generation but got {', '.join(sorted(batch))}: set "
                "`data.loading.generation` to true."
            )
        prompts = batch["prompt_input_ids"]
        ids = self.model.generate(
            input_ids=prompts,
            attention_mask=batch["prompt_attention_mask"],
            generation_config=self._generation_config(),
        )
        return self._decode(ids[:, prompts.shape[1] :])

    def _generation_config(self) -> GenerationConfig:
        settings = self.generation or GenerationSettings()
        own = self.model.get_base_model().generation_config.eos_token_id  # type: ignore[union-attr]
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}
        return GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=settings.sample,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(ends) or None,
            **settings.extra,
        )

    def _decode(self, ids: Tensor) -> list[str]:
        rows: list[Any] = [row[row != IGNORED].tolist() for row in torch.atleast_2d(ids)]
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
