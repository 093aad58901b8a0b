"""The command line's Trainer: `export`, and what `predict` and `test` leave."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from pl_fed.callbacks._summary_table import print_figures
from pl_fed.errors import CheckpointError, FederatedConfigError
from pl_fed.modules.base import LoraModule
from pl_fed.modules.export import export_adapter
from pl_fed.precision import device_of, fast_precision, has_bf16

log = logging.getLogger(__name__)


class FederatedTrainer(Trainer):
    """Lightning's Trainer with the `export` command and ``precision="auto"``.

    Args:
        args: See Lightning's Trainer.
        precision: As in Lightning's Trainer; ``auto`` is ``bf16-mixed`` where the device multiplies in bfloat16 itself,
            else ``32-true``.
        kwargs: See Lightning's Trainer.
    """

    def __init__(self, *args: Any, precision: Literal["auto"] | _PRECISION_INPUT | None = None, **kwargs: Any) -> None:
        accelerator = kwargs.get("accelerator", "auto")
        chosen: Any = fast_precision(accelerator) if precision == "auto" else precision
        if precision == "auto":
            rank_zero_info(f"Precision: {chosen}")
        elif str(chosen).startswith("bf16") and not has_bf16(device_of(accelerator)):
            log.warning("`precision: %s` is emulated on this machine, and slower than `32-true`.", chosen)
        check_callbacks(kwargs.get("callbacks"))
        super().__init__(*args, precision=chosen, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, and write the results to ``predictions.jsonl`` in the run folder, one line each."""
        batches = super().predict(*args, **kwargs)
        home = self.log_dir if self.loggers else None  # every process has to ask
        if batches and home and self.is_global_zero:
            path = Path(home) / "predictions.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [row for batch in batches for row in _rows(batch)]
            path.write_text("".join(json.dumps({"prediction": row}, ensure_ascii=False) + "\n" for row in rows))
            rank_zero_info(f"Predictions: {path}")
        return batches

    def validate(self, *args: Any, verbose: bool = True, **kwargs: Any) -> Any:
        """Validate, and print every figure once.

        Args:
            args: See Lightning's Trainer.
            verbose: Whether to print the figures.
            kwargs: See Lightning's Trainer.
        """
        results = super().validate(*args, verbose=False, **kwargs)  # type: ignore[misc]  # `verbose` comes by name
        if verbose and self.is_global_zero:
            print_figures("Validation", _figures(results))
        return results

    def test(self, *args: Any, verbose: bool = True, **kwargs: Any) -> Any:
        """Test, and print every figure once.

        Args:
            args: See Lightning's Trainer.
            verbose: Whether to print the figures.
            kwargs: See Lightning's Trainer.
        """
        results = super().test(*args, verbose=False, **kwargs)  # type: ignore[misc]  # `verbose` comes by name
        if verbose and self.is_global_zero:
            print_figures("Test", _figures(results))
        return results

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        folder: str = "adapter",
        merge: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Write a checkpoint's adapter as a PEFT folder.

        Args:
            model: The module.
            datamodule: Not used; the checkpoint knows the number of classes.
            ckpt_path: Checkpoint to export.
            folder: Where to.
            merge: Also write the base model with the adapter merged into it.
            overwrite: Replace what is in the folder.
        """
        if ckpt_path is None:
            raise FederatedConfigError("Expected `--ckpt_path` with the checkpoint to export but got none.")
        if not isinstance(model, LoraModule):
            raise FederatedConfigError(f"Expected a LoRA module to export but got `{type(model).__name__}`.")
        checkpoint = self.strategy.checkpoint_io.load_checkpoint(ckpt_path, weights_only=True)
        if "state_dict" not in checkpoint:
            raise CheckpointError(f"Expected a checkpoint of a run but '{ckpt_path}' holds no `state_dict`.")
        loaded = type(model).load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True)
        target = export_adapter(loaded, folder, merge=merge, overwrite=overwrite)
        rank_zero_info(f"The adapter is in {target}; load it with peft.PeftModel.from_pretrained(base, '{target}').")
        return target


def check_callbacks(callbacks: Callback | Iterable[Callback] | None) -> None:
    """Compare the names under which callbacks keep their state in a checkpoint.

    Raises:
        FederatedConfigError: If two have the same; Lightning's own error would be a traceback of the command line.
    """
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
    keys = [callback.state_key for callback in given if is_overridden("state_dict", callback, Callback)]
    double = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if double is not None:
        name = double.partition("{")[0]
        raise FederatedConfigError(
            f"Expected one `{name}` with the same settings among the Trainer's callbacks but got {keys.count(double)}: "
            "remove all but one."
        )


def _figures(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Join the loaders' figures; Lightning repeats those of the whole evaluation for every loader."""
    return {name: value for figures in results for name, value in figures.items()}


def _rows(batch: Any) -> list[Any]:
    """Return a batch's predictions one by one, as plain Python values."""
    if isinstance(batch, dict):
        columns = {name: _rows(value) for name, value in batch.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return batch.tolist() if isinstance(batch, Tensor) else list(batch)
