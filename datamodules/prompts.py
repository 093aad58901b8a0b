"""From an instruction and a response to token ids in which the prompt is an exact prefix.

Prompt and response are tokenised apart, so that training sees the very prompt tokens that generation starts from.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from pl_fed.datamodules.config import InstructionColumns
from pl_fed.errors import FederatedConfigError

PLAIN_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"


class PromptEncoder:
    """Turns batches of rows into token ids; a response ends with the end-of-sequence token unless it is cut.

    Args:
        tokenizer: The model's tokenizer.
        columns: Names of the columns and the template.
        max_length: Largest number of tokens of an example; what is longer loses the end of its response.

    Example:
        A row with the prompt tokens ``p p p``, the response tokens ``r r`` and `max_length` 5 becomes ``p p p r r``
        (cut: the end-of-sequence token is lost); with `max_length` 3 nothing is left to learn, and its ids are empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, columns: InstructionColumns, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise FederatedConfigError(
                "Expected a tokenizer with an end-of-sequence token but it has none: set `tokenizer.eos_token`."
            )
        has_chat = columns.template is None and bool(getattr(tokenizer, "chat_template", None))
        if columns.system is not None and not has_chat:
            raise FederatedConfigError(
                "Expected a tokenizer with a chat template for `columns.system` but it has none: drop it and write "
                "the system message into `columns.template`."
            )
        self.tokenizer, self.columns, self.max_length, self.has_chat = tokenizer, columns, max_length, has_chat
        begins = None if has_chat else tokenizer.bos_token_id  # a chat template writes its own
        self.begin = [begins] if begins is not None and tokenizer("")["input_ids"][:1] == [begins] else []

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Encode a batch of columns."""
        names = self.columns
        inputs = batch[names.input] if names.input else [None] * len(batch[names.instruction])
        texts = [
            self.render(f"{_text(instruction)}\n\n{more}" if _text(more) else _text(instruction), _text(response))
            for instruction, more, response in zip(batch[names.instruction], inputs, batch[names.response], strict=True)
        ]
        prompts = self._ids([prompt for prompt, _ in texts])
        responses = self._ids([response for _, response in texts])
        rows = [
            self._row(self.begin + prompt, response if _text(raw) else [])
            for prompt, response, raw in zip(prompts, responses, batch[names.response], strict=True)
        ]
        return {name: [row[name] for row in rows] for name in ("input_ids", "prompt_length", "is_cut")}

    def render(self, message: str, response: str) -> tuple[str, str]:
        """Return the texts of the prompt and of what follows it.

        Raises:
            FederatedConfigError: If the chat template does not begin a conversation with its prompt.
        """
        if not self.has_chat:
            return (self.columns.template or PLAIN_TEMPLATE).replace("{instruction}", message), response
        turns = [{"role": "user", "content": message}]
        if self.columns.system is not None:
            turns.insert(0, {"role": "system", "content": self.columns.system})
        prompt = self._chat(turns, with_cue=True)
        whole = self._chat([*turns, {"role": "assistant", "content": response}])
        if not whole.startswith(prompt):
            raise FederatedConfigError(
                "Expected the tokenizer's chat template to begin a conversation with the prompt but got "
                f"{whole!r} for the prompt {prompt!r}: set `columns.template`."
            )
        return prompt, whole[len(prompt) :]

    def _chat(self, turns: list[dict[str, str]], with_cue: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=with_cue))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _row(self, prompt: list[int], response: list[int]) -> dict[str, Any]:
        """Join one example; without any response token it is empty."""
        eos: int = self.tokenizer.eos_token_id
        if eos in response:  # a chat template may write a line break after it
            response = response[: len(response) - response[::-1].index(eos)]
        elif response:
            response = [*response, eos]
        ids = [*prompt, *response]
        if not response or len(prompt) >= self.max_length:
            return {"input_ids": [], "prompt_length": 0, "is_cut": len(ids) > self.max_length}
        return {"input_ids": ids[: self.max_length], "prompt_length": len(prompt), "is_cut": len(ids) > self.max_length}


def _text(value: Any) -> str:
    """Return a cell as text; an empty one is missing, a 0 is not."""
    return "" if value is None else str(value)
