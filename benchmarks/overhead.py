"""What Lightning and the round driver add to a plain loop over the same clients: a ratio, measured in one process.

Both sides train the same adapters on the same batches and end with the same tensors; they take turns, round by round.
Lightning's side is everything between two turns of the plain loop, also what it does between epochs.

    python benchmarks/overhead.py [--clients 20] [--steps 4] [--batch-size 4] [--repeats 9]
"""

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from datetime import date
from typing import Any

import lightning.pytorch as pl
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset, default_collate
from transformers import GPT2Config, GPT2LMHeadModel

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig, LocalTraining, derive_seed
from pl_fed.rules import FedIT
from pl_fed.strategy import FederatedStrategy

LENGTH, VOCAB = 32, 1024


class Module(pl.LightningModule):
    """GPT-2 with four layers of width 128, LoRA on `c_attn`."""

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=4, n_head=4, n_embd=128, vocab_size=VOCAB, n_positions=LENGTH, bos_token_id=0, eos_token_id=0
        )
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["c_attn"], fan_in_fan_out=True)
        self.model = get_peft_model(GPT2LMHeadModel(config), lora).train()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class Tokens(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, num_examples: int) -> None:
        self.ids = torch.randint(0, VOCAB, (num_examples, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index]}


class PlainLoop:
    """FedAvg of LoRA factors, as one would write it in torch."""

    def __init__(self, loader: RoundLoader, data: Tokens) -> None:
        self.loader, self.data, self.module = loader, data, Module()
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = self.module.configure_optimizers()
        self.server = [p.detach().clone() for p in self.parameters]

    def __call__(self, round_idx: int) -> None:
        work = self.loader.plan.schedule(round_idx).work
        total = sum(client.num_examples for client in work)
        updates = {client.client_id: (client.num_examples / total, self.train(client, round_idx)) for client in work}
        with torch.no_grad():
            for _, (weight, update) in sorted(updates.items()):
                torch._foreach_add_(self.server, update, alpha=weight)

    def train(self, client: Any, round_idx: int) -> list[torch.Tensor]:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.server)
        self.optimizer.state.clear()
        torch.manual_seed(derive_seed(0, round_idx, client.client_id, 0x5E))
        for indices in client.batches:
            batch = default_collate([self.data[i] for i in indices])
            self.optimizer.zero_grad()
            self.module.training_step(batch, 0).backward()
            self.optimizer.step()
        return [p.detach() - q for p, q in zip(self.parameters, self.server, strict=True)]


class TimedModule(Module):
    """Lets the plain loop run a round whenever Lightning has finished one; CPU seconds of one thread.

    A hook of the module, since Lightning calls these anyway: a callback would cost it another six calls a step.
    """

    def __init__(self, plain: PlainLoop) -> None:
        super().__init__()
        self.plain, self.start = plain, 0.0
        self.lightning: list[float] = []
        self.other: list[float] = []

    def on_train_epoch_end(self) -> None:
        end = time.process_time()
        self.lightning.append(end - self.start)
        self.plain(self.current_epoch)
        self.start = time.process_time()
        self.other.append(self.start - end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9, help="counted rounds, after one warm-up")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    per_client = options.steps * options.batch_size
    shards = [list(range(k * per_client, (k + 1) * per_client)) for k in range(options.clients)]
    data = Tokens(options.clients * per_client)
    loader = RoundLoader(data, shards, batch_size=options.batch_size)
    module = TimedModule(PlainLoop(loader, data))
    strategy = FederatedStrategy(FedIT(), CohortConfig(), LocalTraining(), ClientsConfig(), seed=0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    pl.Trainer(strategy=strategy, accelerator="cpu", max_epochs=options.repeats + 1, **quiet).fit(module, loader)
    trained = [p for p in module.parameters() if p.requires_grad]
    largest = max(float((p - q).abs().max()) for p, q in zip(trained, module.plain.server, strict=True))
    lightning, plain = module.lightning[1:], module.other[1:]
    ratios = [a / b for a, b in zip(lightning, plain, strict=True)]
    result = {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "cpu_seconds_per_round_lightning": round(statistics.median(lightning), 4),
        "cpu_seconds_per_round_plain": round(statistics.median(plain), 4),
        "largest_difference_of_the_adapters": largest,
        "settings": vars(options),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
