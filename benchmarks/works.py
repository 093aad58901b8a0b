"""The works that the engines are measured on: a module and its clients' batches."""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
import torch
from flwr_datasets.partitioner import IidPartitioner
from overhead import LENGTH, Module, Tokens
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from pl_fed.callbacks import keep_freed_memory
from pl_fed.chunks import Packing
from pl_fed.datamodules import InstructionData, TextClassificationData
from pl_fed.loaders import RoundLoader
from pl_fed.modules import LoraCausalLM, LoraSequenceClassifier, LoraSettings, ViTScorer
from pl_fed.packing import TokenRows

QUIET: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
Loader = Callable[[], RoundLoader]
Work = tuple[pl.LightningModule, Loader]


class Toy(Module):
    """The network of `overhead.py`, whose clients may train together."""

    def packed_losses(self, rows: TokenRows) -> torch.Tensor:
        logits = self.model(input_ids=rows.pick("input_ids"), position_ids=rows.positions).logits[0]
        targets = rows.next_tokens()
        chosen = (targets != -100).nonzero().flatten()
        losses = nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="none")
        return rows.token_means(losses, chosen)


class Llama1B(Toy):
    """The shape of Llama 3.2 1B with random weights, and an adapter on queries and values."""

    def __init__(self, rank: int = 8) -> None:
        pl.LightningModule.__init__(self)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        )
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(LlamaForCausalLM(config), lora).train()  # type: ignore[assignment]


class LabelledTokens(Tokens):
    """The examples of `overhead.py` with their labels, which packed rows shift by themselves."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "labels": self.ids[index]}


def uniform(make: Callable[[], pl.LightningModule], options: argparse.Namespace, batch_size: int) -> Work:
    """Random tokens, 32 in each example."""
    per_client = options.steps * batch_size
    data = LabelledTokens(options.clients * per_client)
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(options.clients)]
    return make(), lambda: RoundLoader(data, shards, batch_size=batch_size)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def minilm(options: argparse.Namespace, batch_size: int) -> Work:
    """all-MiniLM-L6-v2 on 20 Newsgroups, as `configs/classify_newsgroups.yaml` has them."""
    lora = LoraSettings(r=options.rank, target_modules=["query", "value"])
    module = LoraSequenceClassifier("sentence-transformers/all-MiniLM-L6-v2", lora, adamw, num_labels=20)
    partitioner = IidPartitioner(options.clients)
    name, length = "SetFit/20_newsgroups", options.max_length
    data = TextClassificationData(name, partitioner=partitioner, max_length=length, batch_size=batch_size)
    return loaded(module, data)


def smollm2(options: argparse.Namespace, batch_size: int) -> Work:
    """SmolLM2-135M-Instruct on short instruction pairs, as `configs/quickstart.yaml` has them."""
    lora = LoraSettings(r=options.rank, target_modules=["q_proj", "v_proj"])
    module = LoraCausalLM("HuggingFaceTB/SmolLM2-135M-Instruct", lora, adamw)
    partitioner = IidPartitioner(options.clients)
    length = options.max_length
    data = InstructionData("chatterbot-corpus", partitioner=partitioner, max_length=length, batch_size=batch_size)
    return loaded(module, data)


def vit(options: argparse.Namespace, batch_size: int) -> Work:
    """A small vision transformer with random weights on random images."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    with tempfile.TemporaryDirectory() as folder:
        ViTModel(ViTConfig(**sizes, image_size=32, patch_size=4), add_pooling_layer=False).save_pretrained(folder)
        module = ViTScorer(folder, LoraSettings(r=options.rank, target_modules=["q_proj", "v_proj"]), adamw)
        module.configure_model()
    per_client = options.steps * batch_size
    number = options.clients * per_client
    data: Any = [{"images": torch.randn(3, 32, 32), "targets": torch.rand(2)} for _ in range(number)]
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(options.clients)]
    return module, lambda: RoundLoader(data, shards, batch_size=batch_size)


def loaded(module: Any, data: Any) -> Work:
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.strategy._lightning_module = module
    module.trainer, data.trainer = trainer, trainer
    data.prepare_data()
    data.setup("fit")
    module.configure_model()
    return module, cast(Loader, data.train_dataloader)


WORKS: dict[str, Callable[[argparse.Namespace, int], Work]] = {
    "toy": lambda options, batch_size: uniform(lambda: Toy(options.rank), options, batch_size),
    "minilm": minilm,
    "smollm2": smollm2,
    "vit": vit,
    "llama1b": lambda options, batch_size: uniform(lambda: Llama1B(options.rank), options, batch_size),
}
ABOUT = f"""toy: GPT-2 of four layers of width 128, {LENGTH} tokens each; minilm: all-MiniLM-L6-v2 on 20 Newsgroups,
ragged; smollm2: SmolLM2-135M-Instruct on short instruction pairs, ragged; vit: a vision transformer of four layers of
width 192, 65 tokens an image; llama1b: the shape of Llama 3.2 1B with random weights, {LENGTH} tokens each. minilm and
smollm2 are downloaded once."""


def without_dropout(module: nn.Module) -> None:
    """Switch dropout off, so that engines can be compared number by number."""
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0


def parser_of(about: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options of the works and of the engines.

    Args:
        about: The script's docstring; ``ABOUT`` in it becomes the list of works.
        repeats: How many rounds are counted unless the user says otherwise.
    """
    parser = argparse.ArgumentParser(
        description=(about or "").replace("ABOUT", ABOUT), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", default=["toy", "minilm", "vit"], choices=list(WORKS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--keep-memory", action="store_true", help="call `pl_fed.callbacks.keep_freed_memory` first")
    parser.add_argument("--engines", nargs="+", default=["sequential", "packed"], choices=["sequential", "packed"])
    parser.add_argument("--clients-per-chunk", type=int, default=Packing().clients)
    parser.add_argument("--tokens", type=int, default=None, help="most of a packed pass")
    parser.add_argument("--repeats", type=int, default=repeats, help="counted rounds, after one warm-up")
    return parser


def settled(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, with one thread, the memory that they ask for, and nothing printed but results."""
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    if options.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory needs glibc")
    return options
