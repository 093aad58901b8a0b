"""Every value that needs no data is checked where it is given."""

import pytest

from pl_fed.datamodules.config import InstructionColumns, LoadingConfig, SplitConfig
from pl_fed.errors import FederatedConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_fraction": 1.0}, r"`splits.validation_fraction` in \[0, 1\) but got 1.0"),
        ({"test_fraction": -0.1}, r"`splits.test_fraction` in \[0, 1\) but got -0.1"),
        ({"public_fraction": 1.5}, r"`splits.public_fraction` in \[0, 1\) but got 1.5"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, r"below 1 but got 0.5 \+ 0.5"),
        ({"public_fraction": 0.1, "public_examples": 5}, "but got both"),
        ({"public_examples": -1}, "`splits.public_examples` >= 0 but got -1"),
        ({"limit_train": 0}, "`splits.limit_train` to be at least 1 but got 0"),
        ({"limit_test": -2}, "`splits.limit_test` to be at least 1 but got -2"),
    ],
)
def test_bad_splits(values: dict[str, float], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        SplitConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_batch_size": 0}, "`loading.eval_batch_size` to be at least 1 but got 0"),
        ({"pad_to_multiple_of": 0}, "`loading.pad_to_multiple_of` to be at least 1 but got 0"),
        ({"num_workers": -1}, "`loading.num_workers` >= 0 but got -1"),
    ],
)
def test_bad_loading(values: dict[str, int], message: str) -> None:
    with pytest.raises(FederatedConfigError, match=message):
        LoadingConfig(**values)  # type: ignore[arg-type]


def test_bad_template() -> None:
    with pytest.raises(FederatedConfigError, match="to contain '{instruction}' but got 'Q: '"):
        InstructionColumns(template="Q: ")
    with pytest.raises(FederatedConfigError, match="with a chat template only"):
        InstructionColumns(template="{instruction}", system="Be kind.")


def test_public_size() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point; the share is 29."""
    assert SplitConfig(public_fraction=0.29).public_size(100) == 29
    assert SplitConfig(public_examples=7).public_size(8) == 7
    assert SplitConfig().public_size(8) == 0
    with pytest.raises(FederatedConfigError, match="smaller than the 8 training examples but got 8"):
        SplitConfig(public_examples=8).public_size(8)
