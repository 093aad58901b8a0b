"""Images of several clients in one pass: tokens, sizes, attention with dropout, and what still trains alone."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification, ViltConfig, ViltModel

from pl_fed.chunks import Packing
from pl_fed.engines.passes import Passes
from pl_fed.loaders import RoundLoader
from pl_fed.modules import LoraSettings, ViltScorer, ViTScorer
from pl_fed.packing import ImageRows, Pass, Segments
from pl_fed.packing.attention import PASS, packed_attention
from pl_fed.packing.inputs import Images
from pl_fed.packing.layers import add_low_rank
from pl_fed.rules import FedIT
from tests.helpers.packed import SHARDS, federation, in_float64, largest_difference, loader, module_of, randomise, run
from tests.modules.rated_rows import collate_rated, rated_rows
from tests.modules.tiny_models import VOCAB, save

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Folder = Callable[..., str]


def pictures(number: int, height: int = 16, width: int = 16) -> dict[str, Tensor]:
    return {"images": torch.zeros(number, 3, height, width)}


class Counting(ViTScorer):
    """Notes how many clients each pass has."""

    sizes: list[int]

    def packed_losses(self, rows: ImageRows) -> Tensor:
        self.sizes.append(rows.segments.num_clients)
        return super().packed_losses(rows)


def counting(folder: Folder) -> Counting:
    module = Counting(folder("vit"), LoraSettings(r=3), lambda p: torch.optim.AdamW(p, lr=5e-2))
    module.sizes = []
    return module


def test_tokens_bound_a_pass() -> None:
    """A picture of 16 x 16 pixels in patches of 8 x 4 has 2 x 4 of them and a class token."""
    inputs, passes = Images((8, 4)), Passes()
    batches = [pictures(2), pictures(1), pictures(3)]
    assert [inputs.num_tokens(batch) for batch in batches] == [18, 9, 27]
    for tokens, end in ((1, 1), (27, 2), (53, 2), (54, 3)):
        passes.tokens = tokens
        assert passes._end(inputs, batches, 0) == end


def test_pictures_of_another_size_are_another_pass() -> None:
    passes = Passes()
    passes.tokens = 10_000
    batches = [pictures(2), pictures(1), pictures(1, 16, 24), pictures(1)]
    assert [passes._end(Images((8, 8)), batches, first) for first in range(4)] == [2, 2, 3, 4]


def test_clients_with_pictures_of_unequal_sizes(folder: Folder) -> None:
    """Those of the third client are larger, and get interpolated positions with either engine."""
    rows = rated_rows(17)
    for i in SHARDS[2]:
        rows[i]["images"] = rows[i]["images"].repeat(1, 2, 1)
    found = []
    for engine in ("sequential", "packed"):
        module, data = counting(folder), RoundLoader(rows, SHARDS, batch_size=2, collate_fn=collate_rated)
        found.append(run(in_float64(module), federation(FedIT(), engine), data, randomise, precision="64-true"))
    assert largest_difference(*found) < 1e-9
    assert module.sizes[:3] == [1, 3, 1]  # the client of the large ones has most batches, so it is the chunk's first


def test_a_pass_has_whole_clients(folder: Folder) -> None:
    """Two pictures have ten tokens: alone with 8, all together with many; the result is the same."""
    found = []
    for tokens in (8, 10_000):
        module = counting(folder)
        packing = federation(FedIT(), Packing(16, tokens))
        found.append(run(in_float64(module), packing, loader("vit"), randomise, precision="64-true"))
        assert set(module.sizes) == ({1} if tokens == 8 else {1, 2, 3, 4})
    assert largest_difference(*found) < 1e-12


def test_low_rank_by_hand() -> None:
    """Two pictures of the first client and one of the second, of two tokens: 2 * 5 * x and 1 * 7 * x."""
    a, b = torch.tensor([[[5.0]], [[7.0]]]), torch.tensor([[[2.0]], [[1.0]]])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[..., None]
    found = add_low_rank(torch.ones_like(x), x, a, b, None, 1.0, Segments([2, 2, 2], [2, 1]))
    assert found[..., 0].tolist() == [[11.0, 21.0], [31.0, 41.0], [36.0, 43.0]]


def test_attention_with_dropout_is_that_of_the_masks() -> None:
    """Each picture's softmax, times the mask that its client's generator draws, times the values."""
    segments, module = Segments([4, 4, 4], [2, 1]), nn.Module()
    query, key, value = torch.randn(3, 3, 2, 4, 6, dtype=torch.float64)
    vars(module)[PASS] = Pass(segments, [1, 2])
    found, _ = packed_attention(module, query, key, value, None, dropout=0.3)
    again = Pass(segments, [1, 2])
    for i, client in enumerate(segments.owners):
        mask = again.keep_mask(client, (1, 2, 4, 4), 0.3, query)[0]
        expected = ((query[i] @ key[i].mT * 6**-0.5).softmax(-1) * mask) @ value[i]
        torch.testing.assert_close(found[i].transpose(0, 1), expected)


def test_batches_may_say_pixel_values() -> None:
    assert ImageRows.of([{"pixel_values": torch.zeros(2, 3, 16, 16)}], (8, 8)).images.shape == (2, 3, 16, 16)
    with pytest.raises(KeyError, match="`images` or `pixel_values` in the batch but got targets"):
        Images((8, 8)).num_tokens({"targets": torch.zeros(2, 2)})


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def vilt(folder: Path) -> Any:
    config = ViltConfig(vocab_size=VOCAB, pad_token_id=0, **SIZES, image_size=16, patch_size=8)
    return ViltScorer(save(ViltModel(config), folder), LoraSettings(r=3, target_modules=["query", "value"]))


def swin(folder: Path) -> Any:
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2)
    SwinForImageClassification(config).save_pretrained(folder)
    return ViTScorer(str(folder), LoraSettings(r=3, target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (vilt, "ViltScorer changes `forward` but not `packed_losses`"),
        (swin, "SwinForImageClassification has no packed forward"),
    ],
)
def test_what_trains_alone_says_why(make: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A network that reads texts with images, and one whose windows are more sequences than pictures."""
    strategy = federation(FedIT(), "auto")
    with caplog.at_level(logging.INFO):
        run(make(tmp_path), strategy, loader("vit"), max_epochs=1)
    assert strategy.engine.name == "sequential" and f"Engine `sequential`, since {reason}" in caplog.text


def test_the_network_is_as_before(folder: Folder) -> None:
    module = module_of("vit", folder("vit"))
    run(module, federation(FedIT(), "packed"), loader("vit"), max_epochs=1)
    assert not [m for m in module.modules() if "forward" in vars(m) or PASS in vars(m)]
    assert module.model.config._attn_implementation == "sdpa"
