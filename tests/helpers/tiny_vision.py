"""Tiny vision-language models of real classes with random weights, saved with their processors."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
SIDE = 32  # pixels; patches of 16
SIZE = {"height": SIDE, "width": SIDE}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CHAT = (
    "{% for m in messages %}{{ m.role }}:{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(*more: str, **options: Any) -> PreTrainedTokenizerFast:
    """One token per character."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *more, *sorted(string.printable)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("", "isolated"), Fuse()
    pad, unk, bos, eos = SPECIAL
    names = {"pad_token": pad, "unk_token": unk, "bos_token": bos, "eos_token": eos}
    return PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=[*more], **names, **options)


def blip(folder: Path) -> None:
    text = tokenizer()
    BlipProcessor(BlipImageProcessorPil(size=SIZE), text).save_pretrained(folder)
    config = BlipConfig(
        text_config={**VISION, **TOKENS, "vocab_size": len(text), "encoder_hidden_size": 16, "sep_token_id": 3,
                     "max_position_embeddings": 64},
        vision_config={**VISION, "image_size": SIDE, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    save(BlipForConditionalGeneration(config), folder)


def idefics3(folder: Path) -> None:
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    text = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    Idefics3Processor(images, text, image_seq_len=1, chat_template=CHAT).save_pretrained(folder)
    config = Idefics3Config(
        vision_config={**VISION, "image_size": SIDE, "patch_size": 16},
        text_config={**VISION, **TOKENS, "model_type": "llama", "vocab_size": len(text), "num_key_value_heads": 2,
                     "max_position_embeddings": 4096},
        scale_factor=2,
        image_token_id=text.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )  # fmt: skip
    save(Idefics3ForConditionalGeneration(config), folder)


def florence2(folder: Path) -> None:
    text = tokenizer("<image>", model_specific_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessorPil(size=SIZE, do_center_crop=False)
    images.image_seq_length = 5  # 2 x 2 patches and their mean
    Florence2Processor(images, text).save_pretrained(folder)
    config = Florence2Config(
        vision_config={"depths": [1], "embed_dim": [16], "num_heads": [2], "num_groups": [2], "window_size": 2,
                       "patch_size": [7], "patch_stride": [16], "patch_padding": [3], "patch_prenorm": [False],
                       "projection_dim": 16, "max_position_embeddings": 4, "max_temporal_embeddings": 4},
        text_config={**TOKENS, "vocab_size": len(text), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                     "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
                     "decoder_attention_heads": 2, "max_position_embeddings": 256, "decoder_start_token_id": 3},
        image_token_id=text.convert_tokens_to_ids("<image>"),
        is_encoder_decoder=True,
    )  # fmt: skip
    save(Florence2ForConditionalGeneration(config), folder)


def llava(folder: Path) -> None:
    text = tokenizer("<image>", model_specific_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessorPil(size=SIZE, do_center_crop=False)
    options = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, text, chat_template=CHAT, **options).save_pretrained(folder)
    config = LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 16,
                       "num_hidden_layers": 2, "projection_dim": 16},
        text_config={**VISION, **TOKENS, "model_type": "llama", "vocab_size": len(text), "num_key_value_heads": 2,
                     "max_position_embeddings": 4096},
        image_token_id=text.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    save(LlavaForConditionalGeneration(config), folder)


def save(model: Any, folder: Path) -> None:
    """Save a model that never ends before three tokens."""
    model.generation_config.min_new_tokens = 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # random logits that differ enough for the image to matter
    model.save_pretrained(folder)
