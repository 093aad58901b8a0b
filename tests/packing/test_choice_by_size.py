"""`auto` takes the engine that is likely to be faster: by the tokens of a client's step, the width, and the padding."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pl_fed.engines import PackedEngine, StepSize, by_size, step_size
from pl_fed.loaders import RoundLoader
from pl_fed.rules import FedIT
from tests.helpers.packed import federation, in_float64, largest_difference, loader, module_of, run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Folder = Callable[..., str]


@pytest.mark.parametrize(
    ("size", "device", "engine"),
    [
        (StepSize(32, 128), "cpu", "packed"),
        (StepSize(511, 128), "cpu", "packed"),  # 511 * 128 = 65408
        (StepSize(512, 128), "cpu", "sequential"),  # 65536
        (StepSize(255, 384), "cpu", "packed"),
        (StepSize(256, 384), "cpu", "sequential"),
        (StepSize(255, 4096), "cpu", "packed"),
        (StepSize(256, 4096), "cpu", "sequential"),
        (StepSize(512, 128, padding=0.09), "cpu", "sequential"),
        (StepSize(512, 128, padding=0.11), "cpu", "packed"),
        (StepSize(32, 128, padding=0.5), "cpu", "packed"),
        (StepSize(100_000, 4096), "cuda", "packed"),
        (None, "cpu", "packed"),
        (None, "mps", "packed"),
    ],
)
def test_the_rule_by_hand(size: StepSize | None, device: str, engine: str) -> None:
    """From 256 tokens on, and at least 65536 numbers; a tenth of padding is worth leaving out."""
    assert by_size(size, device)[0] == engine


def test_the_reason_has_the_numbers() -> None:
    assert by_size(StepSize(512, 128), "cpu")[1] == (
        "a client's step has about 512 tokens at width 128, and a CPU is busy with one client from 512 on"
    )
    assert by_size(StepSize(600, 128, 0.25), "cpu")[1].endswith("25% of them padding, which packing leaves out")
    assert by_size(None, "cuda")[1].endswith("slower on `cuda`")


def texts(lengths: list[int]) -> list[dict[str, Any]]:
    return [{"length": length} for length in lengths]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([row["length"] for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return {"input_ids": mask.long(), "attention_mask": mask.long(), "labels": mask.long()}


def size_of(folder: Folder, kind: str, data: RoundLoader) -> StepSize | None:
    module = module_of(kind, folder(kind))
    module.configure_model()
    return step_size(module, data)


def test_texts_by_hand(folder: Folder) -> None:
    """Two clients with a batch of two texts each: 2 * 6 = 12 tokens, 4 of them padding, and 2 * 4 without any."""
    data = RoundLoader(texts([6, 2, 4, 4]), [[0, 1], [2, 3]], batch_size=2, collate_fn=collate)
    assert size_of(folder, "gpt2", data) == StepSize(tokens=10, width=8, padding=1 - 16 / 20)


def test_small_shards_have_small_batches(folder: Folder) -> None:
    """Batch size 8, but three texts of 5 tokens; a client without examples is not asked."""
    data = RoundLoader(texts([5] * 3), [[0, 1, 2], []], batch_size=8, collate_fn=collate)
    assert size_of(folder, "gpt2", data) == StepSize(tokens=15, width=8)
    assert size_of(folder, "gpt2", RoundLoader(texts([5]), [[], []], batch_size=8, collate_fn=collate)) is None


def test_pictures_by_hand(folder: Folder) -> None:
    """Two pictures of 16 x 16 pixels in patches of 8 x 8: 2 * (4 + 1) tokens."""
    assert size_of(folder, "vit", loader("vit", [[0, 1], [2, 3]])) == StepSize(tokens=10, width=16)


class Shards:
    """A population of a million whose shards are made when they are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, client_id: int) -> list[int]:
        self.asked.append(client_id)
        return [0, 1]


def test_four_clients_are_asked(folder: Folder) -> None:
    shards = Shards()
    data = RoundLoader(texts([3, 3]), shards, batch_size=2, collate_fn=collate)
    assert size_of(folder, "gpt2", data) == StepSize(tokens=6, width=8)
    assert shards.asked == [0, 250_000, 500_000, 750_000]


class Noisy:
    """Examples that draw random numbers when they are read, as augmentations do."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"length": 3 + int(torch.rand(()) > 2)}


def test_random_numbers_are_left_alone(folder: Folder) -> None:
    module = module_of("gpt2", folder("gpt2"))
    module.configure_model()
    before = torch.get_rng_state()
    assert step_size(module, RoundLoader(Noisy(), [[0, 1], [2, 3]], batch_size=2, collate_fn=collate)) is not None
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_step_is_sequential(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny network's step is as large as it gets on a smaller CPU; `packed` is `packed` whatever the size."""
    monkeypatch.setattr("pl_fed.engines.choice.BUSY_TOKENS", 16)
    monkeypatch.setattr("pl_fed.engines.choice.BUSY_NUMBERS", 80)
    monkeypatch.setattr("pl_fed.engines.choice.PADDED", 0.9)
    for wanted, name in (("auto", "sequential"), ("packed", "packed")):
        strategy = federation(FedIT(), wanted)
        with caplog.at_level(logging.INFO):
            run(module_of("gpt2", folder("gpt2")), strategy, loader("gpt2"), max_epochs=1)
        assert strategy.engine.name == name
        assert isinstance(strategy.engine, PackedEngine) == (name == "packed")
    assert "Engine `sequential`, since a client's step has about 18 tokens at width 8, and a CPU" in caplog.text
    assert caplog.text.count("Engine `") == 1, "said when it is chosen, once"


def test_all_processes_take_the_engine_of_the_first(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another process has seen large steps, by data that differ in size from one reading to the next."""
    strategy = federation(FedIT(), "auto")
    told = strategy.broadcast
    monkeypatch.setattr(strategy, "broadcast", lambda x, src=0: told(StepSize(512, 128) if type(x) is StepSize else x))
    run(module_of("gpt2", folder("gpt2")), strategy, loader("gpt2"), max_epochs=1)
    assert strategy.engine.name == "sequential"


def test_auto_trains_as_the_engine_that_it_takes(folder: Folder) -> None:
    """Looking at batches beforehand changes nothing, to the last bit, dropout included."""
    found = []
    for engine in ("auto", "packed"):
        module = in_float64(module_of("gpt2", folder("gpt2", 0.2)))
        found.append(run(module, federation(FedIT(), engine), loader("gpt2"), max_epochs=1))
    assert largest_difference(*found) == 0.0
