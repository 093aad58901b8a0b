"""The parts of a packed pass by themselves: rows, dropout masks, attention, stacks."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pl_fed.engines.stacks import Stacks
from pl_fed.errors import FederatedConfigError
from pl_fed.packing import Pass, Segments, TokenRows
from pl_fed.packing.attention import PASS, packed_attention
from pl_fed.packing.gelu import tanh_gelu
from pl_fed.packing.layers import add_low_rank, dense_forward


def batch(ids: list[list[int]], mask: list[list[int]]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor(ids)
    return {"input_ids": tokens, "attention_mask": torch.tensor(mask), "labels": tokens}


def test_rows_leave_padding_out() -> None:
    """Two clients: sequences 5 6 | 7 8 9 and 4; each token's label is the next of its own sequence."""
    rows = TokenRows.of([batch([[5, 6, 0], [7, 8, 9]], [[1, 1, 0], [1, 1, 1]]), batch([[4]], [[1]])])
    rows.batches[0]["labels"][0, 2] = -100
    assert rows.pick("input_ids").tolist() == [[5, 6, 7, 8, 9, 4]]
    assert rows.positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert rows.next_tokens().tolist() == [6, -100, 8, 9, -100, -100]
    assert rows.segments == Segments([2, 3, 1], [2, 1])
    means = rows.token_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 3]))
    assert means.tolist() == [3.0, 0.0]


def test_labels_after_padding_are_refused() -> None:
    rows = TokenRows.of([batch([[0, 6, 7]], [[0, 1, 1]])])
    with pytest.raises(FederatedConfigError, match="no label right after padding"):
        rows.next_tokens()


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(FederatedConfigError, match="at least one token in every sequence"):
        TokenRows.of([batch([[1, 2], [0, 0]], [[1, 1], [0, 0]])])


def test_rows_of_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 tokens or 2 sequences in a packed pass but got the shape \(3, 4\)"):
        Segments([3, 2], [1, 1]).sizes(torch.zeros(3, 4))


def test_masks_are_the_clients_own() -> None:
    """A client's masks do not depend on who else is there; a tenth is dropped, the rest keeps the mean."""
    like = torch.zeros(1)
    alone, together = Pass(Segments([4], [1]), [9]), Pass(Segments([4, 4], [1, 1]), [3, 9])
    together.keep_mask(0, (5,), 0.5, like)
    first, second = (run.keep_mask(i, (40_000,), 0.1, like) for i, run in ((0, alone), (1, together)))
    assert torch.equal(first, second)
    assert float((first == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(first.mean()) == pytest.approx(1.0, abs=0.01)
    assert not Pass(Segments([4], [1]), [9]).keep_mask(0, (5,), 1.0, like).any()


@pytest.mark.parametrize("lengths", [[3, 3, 3], [2, 4, 3]], ids=["uniform", "ragged"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_dropout_is_that_of_the_masks(lengths: list[int], causal: bool) -> None:
    """Softmax, times the mask that the client's generator draws sequence by sequence, times the values."""
    segments, module = Segments(lengths, [2, 1]), nn.Module()
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 4, dtype=torch.float64)
    vars(module)[PASS] = Pass(segments, [1, 2])
    found, _ = packed_attention(module, query, key, value, None, dropout=0.3, is_causal=causal)
    again, start = Pass(segments, [1, 2]), 0
    for client, length in zip(segments.owners, lengths, strict=True):
        part = slice(start, start + length)
        scores = query[0, :, part] @ key[0, :, part].mT / 2
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        mask = again.keep_mask(client, (1, 2, length, length), 0.3, query)[0]
        expected = (scores.softmax(-1) * mask) @ value[0, :, part]
        torch.testing.assert_close(found[0, part].transpose(0, 1), expected)
        start += length


@pytest.mark.parametrize("causal", [False, True])
def test_padded_attention(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sequence by sequence, gradients included; fewer key heads than heads."""
    segments, module, found = Segments([2, 5, 1, 3], [2, 1, 1]), nn.Module(), []
    vars(module)[PASS] = Pass(segments, [1, 2, 3])
    shapes = ((1, heads, 11, 4) for heads in (4, 2, 2))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn(1, 11, 4, 4, dtype=torch.float64)
    for loops_on in (("cpu",), ()):
        monkeypatch.setattr("pl_fed.packing.padding.LOOPS_ON", loops_on)
        out, _ = packed_attention(module, *inputs, None, is_causal=causal)
        found.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [7, 2**17])
def test_tanh_gelu(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's, gradients included; far out, where the tanh is 1, and nothing at all."""
    monkeypatch.setattr("pl_fed.packing.gelu.BLOCK", block)
    x = (
        torch.cat([torch.linspace(-20, 20, 1001), torch.tensor([0.0, -1e4, 1e4])])
        .to(dtype)
        .view(4, -1)
        .requires_grad_()
    )
    outer = torch.randn(x.shape, dtype=dtype)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    results = [y for f in (tanh_gelu, partial(F.gelu, approximate="tanh")) for y in (f(x), f(x.T), f(x[:0]))]
    for found, expected in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    slopes = [torch.autograd.grad(y, x, outer)[0] for y in (results[0], results[3])]
    torch.testing.assert_close(*slopes, **tolerance)


def test_low_rank_by_hand() -> None:
    """B_k diag(lam_k) A_k x in numbers: 2 * 3 * 5 * x and 1 * 1 * 7 * x."""
    a, b = torch.tensor([[[5.0]], [[7.0]]]), torch.tensor([[[2.0]], [[1.0]]])
    x = torch.tensor([[[1.0], [2.0], [10.0]]])
    diagonal, segments = torch.tensor([[3.0], [1.0]]), Segments([2, 1], [1, 1])
    found = add_low_rank(torch.ones_like(x), x, a, b, diagonal, 2.0, segments)
    assert found.tolist() == [[[61.0], [121.0], [141.0]]]


def test_norms_trained_in_full() -> None:
    """Each client's own weight; the bias that is frozen is shared."""
    norm, x = nn.LayerNorm(3), torch.randn(1, 5, 3)
    run = Pass(Segments([2, 3], [1, 1]), [0, 0])
    found = dense_forward(norm, torch.tensor([[1.0] * 3, [2.0] * 3]), None, run)(x)
    plain = norm(x)
    torch.testing.assert_close(found, torch.cat([plain[:, :2], 2 * plain[:, 2:]], 1))


def test_each_client_is_clipped_by_its_own_norm() -> None:
    """As `clip_grad_norm_` clips one client."""
    live = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    stacks = Stacks.empty({"a": live[0], "b": live[1]}, 3)
    optimizer = torch.optim.SGD(live, lr=1.0)
    stacks.enter(optimizer)
    grads = [
        torch.randn_like(p) * torch.tensor([0.01, 1.0, 5.0]).view(-1, *[1] * (p.dim() - 1)) for p in stacks.parameters
    ]
    for parameter, gradient in zip(stacks.parameters, grads, strict=True):
        parameter.grad = gradient.clone()
    stacks.clip(optimizer, 1.0)
    for k in range(3):
        alone = [nn.Parameter(torch.zeros_like(p)) for p in live]
        for parameter, gradient in zip(alone, grads, strict=True):
            parameter.grad = gradient[k].clone()
        nn.utils.clip_grad_norm_(alone, 1.0)
        for parameter, view in zip(alone, stacks.views(k).values(), strict=True):
            torch.testing.assert_close(parameter.grad, view.grad)


def test_clients_without_batches_are_frozen() -> None:
    """Neither numbers nor moments of the others move; the network gets its own optimizer parameters back."""
    live = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([live], lr=0.1, weight_decay=0.1)
    stacks = Stacks.empty({"a": live}, 2)
    stacks.take(0)
    stacks.take(1)
    stacks.enter(optimizer)
    for active in (2, 1):
        if active < 2:
            stacks.narrow(active, optimizer)
        stacks.parameters[0].grad = torch.ones_like(stacks.parameters[0])
        optimizer.step()
    first, second = stacks.values[0]
    assert float(first[0]) == pytest.approx(0.8, abs=1e-3) and float(second[0]) == pytest.approx(0.9, abs=1e-3)
    assert optimizer.state[stacks.parameters[0]]["exp_avg"].shape == (1, 2)
    stacks.leave(optimizer)
    assert optimizer.param_groups[0]["params"][0] is live and not optimizer.state
