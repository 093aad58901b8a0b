"""From how much work of a client's step on clients gain nothing from training together: the numbers behind `auto`.

Rounds of GPT-2 in several widths, with one to sixteen texts a client and step. All texts are of one length, so packing
saves no padding and gains by larger matrix products and fewer calls alone; with ``--ragged`` every second one has a
quarter of it to all of it, and tokens are those of the padded batch. Both engines in turn in one process on one
thread, CPU seconds of whole rounds. Few clients where steps are large, since a pass on a CPU has 1024 tokens anyway.

    python benchmarks/engine_choice.py [--widths 128 384 768] [--tokens 32 128 512 2048] [--ragged]
"""

import argparse
import itertools
import json
import logging
import platform
import statistics
import warnings
from datetime import date
from typing import Any

import lightning.pytorch as pl
import torch
from engines import Toy, one_round
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from pl_fed.loaders import RoundLoader

VOCAB, LONGEST = 1024, 128
TOKENS_IN_ROUND = 4096  # of all clients in a step


class Sized(Toy):
    """GPT-2 of a width, with LoRA of rank 8 on `c_attn`."""

    def __init__(self, width: int, layers: int) -> None:
        pl.LightningModule.__init__(self)
        torch.manual_seed(0)
        sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 32, "n_positions": LONGEST}
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(**sizes, **drops, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
        self.model = get_peft_model(GPT2LMHeadModel(config), lora).train()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    packed_losses = Toy.packed_losses  # or it would be that of another `training_step`


def texts(number: int, length: int, ragged: bool) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCAB, (number, length), generator=generator)
    if not ragged:
        return [{"input_ids": row, "labels": row} for row in ids]
    ends = torch.randint(length // 4, length + 1, (number, 1), generator=generator)
    ends[::2] = length  # so that a batch of several has the length that it is padded to
    mask = torch.arange(length) < ends
    labels = ids.masked_fill(~mask, -100)
    rows = zip(ids, mask.long(), labels, strict=True)
    return [{"input_ids": row, "attention_mask": seen, "labels": label} for row, seen, label in rows]


def measure(options: argparse.Namespace, width: int, tokens: int) -> dict[str, Any]:
    """Run both engines in turn."""
    length = min(tokens, LONGEST)
    batch_size = tokens // length
    clients = min(options.clients, max(4, TOKENS_IN_ROUND // tokens))
    per_client = options.steps * batch_size
    data, module = texts(clients * per_client, length, options.ragged), Sized(width, options.layers)
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(clients)]
    seconds: dict[str, list[float]] = {"sequential": [], "packed": []}
    for _ in range(options.repeats + 1):  # the first warms up
        for engine, times in seconds.items():
            times.append(one_round(module, RoundLoader(data, shards, batch_size=batch_size), engine, options.steps))
    ratios = [a / b for a, b in zip(seconds["sequential"][1:], seconds["packed"][1:], strict=True)]
    return {
        "width": width,
        "tokens": tokens,
        "clients": clients,
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "seconds_sequential": round(statistics.median(seconds["sequential"][1:]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 384, 768])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ragged", action="store_true", help="texts of unequal lengths")
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds of each engine, after one warm-up")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    print("| width | tokens of a client's step | clients | sequential / packed (min to max) |")
    print("|---|---|---|---|", flush=True)
    rows = []
    for width, tokens in itertools.product(options.widths, options.tokens):
        rows.append(row := measure(options, width, tokens))
        spread = f"{row['ratio_median']} ({row['ratio_min']} to {row['ratio_max']})"
        print(f"| {width} | {tokens} | {row['clients']} | {spread} |", flush=True)
    machine = platform.processor() or platform.machine()
    print(json.dumps({"rows": rows, "machine": machine, "date": date.today().isoformat()}, indent=1))


if __name__ == "__main__":
    main()
