"""Asks a vision-language model that runs on this machine, loaded with transformers' auto classes.

SmolVLM (Idefics3), LLaVA, PaliGemma, Florence-2 and BLIP load without torchvision; SmolVLM2 and Qwen-VL need it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from pl_fed.assets import hub_or_caches, resolve_model
from pl_fed.errors import FederatedConfigError, first_line
from pl_fed.isa.extractor import ExtractionError, PromptedExtractor
from pl_fed.isa.images import LoadedImage
from pl_fed.isa.story import Mode

# These were trained on fixed tasks and follow no instruction: what they are given for a description.
TASKS = {"florence2": "<MORE_DETAILED_CAPTION>", "blip": ""}


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs.

    Args:
        device: Where.
        dtype: Type of the weights; ``auto`` is that of the checkpoint.
        quantization: Arguments of transformers' ``quantization_config``, with ``quant_method``; None for none.
        revision: Branch, tag or commit of the hub.
        trust_remote_code: Whether code of the model's repository may run.
    """

    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: dict[str, Any] | None = None
    revision: str | None = None
    trust_remote_code: bool = False


class LocalExtractor(PromptedExtractor):
    """Runs a vision-language model.

    Args:
        model: Folder or hub id.
        max_new_tokens: Longest answer; shorter limits of a prompt stay.
        placement: Where and how it runs.
        task: What a model that follows no instructions is given; None means what is known for its kind.
    """

    def __init__(
        self,
        model: str = "HuggingFaceTB/SmolVLM-Instruct",
        max_new_tokens: int = 1000,
        placement: Placement | None = None,
        task: str | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise FederatedConfigError(f"Expected `max_new_tokens` of at least 1 but got {max_new_tokens}: raise it.")
        self._name, self._max_new_tokens, self._task = model, max_new_tokens, task
        self._placement = placement or Placement()
        self._loaded: tuple[Any, Any] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model and numbers; the weights in a folder count by the time of their change."""
        files = sorted(Path(self._name).iterdir()) if Path(self._name).is_dir() else []
        changed = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        p = self._placement
        return {
            "extractor": type(self).__name__,
            "model": [self._name, p.revision, changed],
            "numbers": [p.dtype, p.quantization, self._max_new_tokens],
            "prompts": [self.prompt_version, self._task],
        }

    def extract(self, image: LoadedImage, mode: Mode) -> str:
        """Ask for what the mode says; a model of fixed tasks can only describe.

        Raises:
            FederatedConfigError: If it is asked for more.
        """
        if mode != "naive" and self._fixed_task() is not None:
            raise FederatedConfigError(
                f"Expected `mode` naive for '{self._name}', which follows no instructions, but got '{mode}': set "
                "`--mode naive`."
            )
        return super().extract(image, mode)

    @torch.inference_mode()
    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        """Return the model's answer, decoded greedily."""
        processor, model = self._load()
        task = self._fixed_task()
        try:
            inputs = self._inputs(processor, image, prompt if task is None else task, task is None)
            inputs = inputs.to(model.device, dtype=model.dtype)  # numbers of tokens stay integers
            limit = min(max_new_tokens, self._max_new_tokens)
            ids = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        except (RuntimeError, ValueError, IndexError) as error:  # out of memory too
            raise ExtractionError(f"the model failed: {first_line(error)}") from error
        # Decoder-only models repeat the prompt; BLIP was given none, or one that is the caption's beginning.
        repeats = not model.config.is_encoder_decoder and model.config.model_type != "blip"
        start = inputs["input_ids"].shape[1] if repeats else 0
        text: str = processor.batch_decode(ids[:, start:], skip_special_tokens=True)[0]
        return text.strip()

    def _inputs(self, processor: Any, image: Image.Image, prompt: str, chats: bool) -> Any:
        if not chats:
            text = {"text": prompt} if prompt else {}  # BLIP without a prompt begins by itself
            return processor(images=image, return_tensors="pt", **text)
        if not getattr(processor, "chat_template", None):
            marker = getattr(processor, "image_token", "") or ""
            return processor(images=image, text=f"{marker}{prompt}", return_tensors="pt")
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return processor(images=[image], text=text, return_tensors="pt")

    def _fixed_task(self) -> str | None:
        _, model = self._load()
        return self._task if self._task is not None else TASKS.get(model.config.model_type)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            folder, p = resolve_model(self._name, "extractor.model"), self._placement
            common = {"revision": p.revision, "trust_remote_code": p.trust_remote_code}
            more = {} if p.quantization is None else {"quantization_config": p.quantization, "device_map": p.device}
            try:
                with hub_or_caches(folder):
                    processor = AutoProcessor.from_pretrained(folder, **common)
                    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=p.dtype, **common, **more)
            except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
                raise FederatedConfigError(
                    f"Expected `extractor.model` to be a vision-language model but '{self._name}' did not load as one "
                    f"({first_line(error)}): check the name, and install what it needs."
                ) from error
            self._loaded = processor, (model if more else model.to(p.device)).eval()
        return self._loaded
