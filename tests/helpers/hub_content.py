"""What the loopback hub serves under the ids of `configs/`: tiny random models, invented rows, the files of the hub."""

import functools
import io
import json
import random
import tempfile
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from tests.helpers.hub import Files

GPT2, TINYLLAMA, QWEN2 = "openai-community/gpt2", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Qwen/Qwen2.5-3B-Instruct"
AG_NEWS, DOLLY = "fancyzhx/ag_news", "databricks/databricks-dolly-15k"
WORDS = {  # of each class of AG News, in the order of its labels
    "World": "president election troops minister border treaty",
    "Sports": "striker season coach goal stadium medal",
    "Business": "shares profit merger bank quarter oil",
    "Sci/Tech": "software satellite browser chip genome server",
}
CATEGORIES = [
    "brainstorming",
    "classification",
    "closed_qa",
    "creative_writing",
    "general_qa",
    "information_extraction",
    "open_qa",
    "summarization",
]
VOCAB = 384
_ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXTS = ["the world of words", *WORDS.values(), *CATEGORIES]


@functools.cache
def models_of_the_hub() -> dict[str, Files]:
    """Return GPT-2, and TinyLlama and Qwen2.5 in bfloat16, of two layers each."""
    vocab, merges = _byte_level()
    gpt2 = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=128, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0)
    llama = LlamaConfig(**_sizes(), bos_token_id=1, eos_token_id=2)
    qwen2 = Qwen2Config(**_sizes(), bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
    chat = {"chat_template": _ZEPHYR, "pad_token": "</s>"}
    chatml = {"chat_template": _CHATML, "eos_token": "<|im_end|>"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            GPT2: _files(GPT2LMHeadModel(gpt2), GPT2Tokenizer(vocab=vocab, merges=merges)),
            TINYLLAMA: _files(LlamaForCausalLM(llama).bfloat16(), LlamaTokenizer(*_metaspace(), **chat)),
            QWEN2: _files(Qwen2ForCausalLM(qwen2).bfloat16(), Qwen2Tokenizer(vocab, merges, **chatml)),
        }


@functools.cache
def data_of_the_hub() -> dict[str, Files]:
    """Return AG News in Parquet, whose classes have words of their own, and Dolly in JSON lines."""
    return {AG_NEWS: _ag_news(num_train=2000, num_test=40), DOLLY: _dolly(num_rows=320)}


def _sizes() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    }


def _byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a tokenizer like GPT-2's and Qwen2's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(core, ["<|endoftext|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet())


def _metaspace() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a tokenizer like Llama's: what it does not know is bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return _trained(core, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], [])


def _trained(core: Tokenizer, special: list[str], alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    options = {"initial_alphabet": alphabet, "special_tokens": special, "show_progress": False}
    core.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=VOCAB - 8, **options))  # room for what is added
    trained = json.loads(core.to_str())["model"]
    return trained["vocab"], [tuple(pair) for pair in trained["merges"]]


def _files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _ag_news(num_train: int, num_test: int) -> Files:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(WORDS))})
    draw = random.Random(0)
    words = [text.split() for text in WORDS.values()]

    def parquet(num_rows: int) -> bytes:
        labels = [i % len(words) for i in range(num_rows)]
        texts = [" ".join(["the", *draw.choices(words[label], k=8)]) for label in labels]
        written = io.BytesIO()
        datasets.Dataset.from_dict({"text": texts, "label": labels}, features).to_parquet(written)
        return written.getvalue()

    names = "".join(f"          '{i}': {name}\n" for i, name in enumerate(WORDS))
    card = (
        "---\nlanguage:\n- en\ntask_categories:\n- text-classification\npretty_name: AG News\ndataset_info:\n"
        "  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n"
        f"        names:\n{names}  splits:\n  - name: train\n    num_examples: {num_train}\n"
        f"  - name: test\n    num_examples: {num_test}\n"
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\n# AG News, invented\n"
    )
    return {
        "README.md": card.encode(),
        "data/train-00000-of-00001.parquet": parquet(num_train),
        "data/test-00000-of-00001.parquet": parquet(num_test),
    }


def _dolly(num_rows: int) -> Files:
    rows = [
        {
            "instruction": f"Say {i % 7} words of {CATEGORIES[i % 8]}.",
            "context": "the world of words" if i % 3 == 0 else "",
            "response": " ".join([CATEGORIES[i % 8]] * (1 + i % 4)),
            "category": CATEGORIES[i % 8],
        }
        for i in range(num_rows)
    ]
    card = "---\nlicense: cc-by-sa-3.0\ntask_categories:\n- question-answering\n---\n# Dolly, invented\n"
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    return {"README.md": card.encode(), "databricks-dolly-15k.jsonl": lines.encode()}
