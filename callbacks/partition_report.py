"""Leaves a table and a picture of who holds what in the run's folder."""

import csv
import warnings
from pathlib import Path
from typing import Any

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.callbacks._run_folder import run_folder, writes_files


class PartitionReport(Callback):
    """Writes ``partition.csv`` and ``partition.png`` when training starts, from what the datamodule says.

    Works with any datamodule that has ``partition_table()``, a list of one dict per client, and
    ``plot_partition(path)``.

    Args:
        table: Write the table.
        picture: Write the picture.

    Example:
        >>> callback = PartitionReport(picture=False)
    """

    def __init__(self, table: bool = True, picture: bool = True) -> None:
        self.table, self.picture = table, picture

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both, on one process."""
        if not writes_files(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set at run time
        if not hasattr(data, "partition_table") or not hasattr(data, "plot_partition"):
            warnings.warn(
                f"Expected a datamodule with `partition_table` and `plot_partition` but got {type(data).__name__}: "
                "`PartitionReport` writes nothing. Remove it, or use a datamodule of `pl_fed.datamodules`.",
                stacklevel=2,
            )
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        if self.table:
            write_table(data.partition_table(), folder / "partition.csv")
        if self.picture:
            data.plot_partition(folder / "partition.png")


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows with the same keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
