"""A step in several passes, and memory that does not suffice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_fed.chunks import Packing
from pl_fed.engines.passes import out_of_memory, with_gradients
from pl_fed.errors import FederatedConfigError
from pl_fed.modules import LoraCausalLM, LoraSettings
from pl_fed.packing import TokenRows
from pl_fed.rules import FedIT
from tests.helpers.packed import federation, in_float64, largest_difference, loader, module_of, randomise, run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Small(LoraCausalLM):
    """Has memory for so many sequences at once; with `late` it runs out in the backward pass."""

    most, late = 4, False
    sizes: list[int]

    def packed_losses(self, rows: TokenRows) -> Tensor:
        losses = super().packed_losses(rows)
        self.sizes.append(rows.segments.num_clients)
        if len(rows.segments.lengths) <= self.most:
            return losses
        if self.late:
            losses.register_hook(_fail)
            return losses
        raise torch.OutOfMemoryError("no memory")


def _fail(_: Tensor) -> None:
    raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
def test_passes_are_halved_without_changing_the_result(late: bool, folder: Callable[..., str]) -> None:
    """Four clients with two sequences each: 4 do not fit, 2 do; dropout is the same."""
    expected = run(
        in_float64(module_of("gpt2", folder("gpt2", 0.1))), federation(FedIT(), "packed"), loader("gpt2"), randomise
    )
    module = Small(folder("gpt2", 0.1), LoraSettings(r=3), lambda p: torch.optim.AdamW(p, lr=5e-2))
    module.sizes, module.late = [], late
    found = run(in_float64(module), federation(FedIT(), "packed"), loader("gpt2"), randomise)
    assert module.sizes[:3] == [4, 2, 2] and max(module.sizes[1:]) == 2
    assert largest_difference(expected, found) < 1e-9


def test_a_client_that_does_not_fit_alone(folder: Callable[..., str]) -> None:
    module = Small(folder("gpt2"), LoraSettings(r=3))
    module.sizes, module.most = [], 1
    with pytest.raises(FederatedConfigError, match="memory for one client's batch .* lower the data's `batch_size`"):
        run(module, federation(FedIT(), "packed"), loader("gpt2"))


def test_other_errors_pass(folder: Callable[..., str]) -> None:
    class Broken(LoraCausalLM):
        def packed_losses(self, rows: TokenRows) -> Tensor:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run(Broken(folder("gpt2"), LoraSettings(r=3)), federation(FedIT(), "packed"), loader("gpt2"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))


def test_tokens_bound_a_pass(folder: Callable[..., str]) -> None:
    """Each pass has one client, since every client has more than eight tokens; the result is the same."""
    found: list[Any] = []
    for tokens in (8, 10_000):
        module = Small(folder("gpt2"), LoraSettings(r=3), lambda p: torch.optim.SGD(p, lr=5e-2))
        module.sizes, module.most = [], 100
        found.append(run(in_float64(module), federation(FedIT(), Packing(16, tokens)), loader("gpt2"), randomise))
        assert set(module.sizes) == ({1} if tokens == 8 else {1, 2, 3, 4})
    assert largest_difference(*found) < 1e-12


def test_ready_gradients_are_scaled_and_summed() -> None:
    """A window of two batches: each is halved by Lightning and added; a tensor without a gradient keeps none."""
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 1, 1)]
    parameters[2].requires_grad_(False)
    for _ in range(2):
        value = with_gradients(torch.tensor(3.0), parameters, [torch.tensor([1.0, 2.0]), None, None])
        assert value.item() == 3.0
        (value / 2).backward()
    assert torch.equal(parameters[0].grad, torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    assert parameters[1].grad is None and parameters[2].grad is None
