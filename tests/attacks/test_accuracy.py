"""The share of labels that was named, by hand and within its limits."""

import torch

from pl_fed.attacks import exact_match, label_accuracy


def test_by_hand() -> None:
    """(4, 0) for (1, 1): 3 invented and 1 missed of 6; one of two labels right; all right; nothing named."""
    found, true = torch.tensor([[4, 0], [2, 0], [1, 1], [0, 0]]), torch.ones(4, 2, dtype=torch.long)
    assert torch.allclose(label_accuracy(found, true), torch.tensor([1 / 3, 0.5, 1.0, 0.0]).double())
    assert exact_match(found, true).tolist() == [False, False, True, False]


def test_it_is_a_share_whatever_the_totals() -> None:
    """Counts of ten classes in [0, 32] each, as noise leaves them, of clients with 32 labels."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 33, (500, 10), generator=generator)
    true = torch.zeros(500, 10, dtype=torch.long).scatter_(1, torch.randint(10, (500, 1), generator=generator), 32)
    assert bool(((label_accuracy(found, true) >= 0) & (label_accuracy(found, true) <= 1)).all())
