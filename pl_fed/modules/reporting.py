"""Names of the figures of several loaders, and tables of the clients' figures."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def loader_prefixes(stage: str, loaders: Any) -> list[str]:
    """Return the prefix of each loader's figures: the stage, with the loader's name or, from the second on, its index.

    Args:
        stage: ``val`` or ``test``.
        loaders: What the Trainer has: a loader or several.

    Example:
        >>> loader_prefixes("test", [range(2), range(3)])
        ['test', 'test_1']
    """
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    prefixes: list[str] = []
    for i, loader in enumerate(loaders if isinstance(loaders, list | tuple) else [loaders]):
        name = getattr(loader, "name", None)
        prefix = f"{stage}_{name}" if name else stage
        prefixes.append(f"{prefix}_{i}" if prefix in prefixes else prefix)
    return prefixes


def log_client_table(loggers: Iterable[Any], prefix: str, figure: str, table: dict[int, float]) -> None:
    """Write the clients' figures where each logger keeps tables: as one table, or as a file in the run's folder."""
    columns, rows = ["client_id", figure], [[client_id, value] for client_id, value in table.items()]
    for logger in loggers:
        folder = getattr(logger, "log_dir", None)
        if hasattr(logger, "log_table"):
            logger.log_table(key=f"{prefix}/clients", columns=columns, data=rows)
        elif folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with (Path(folder) / f"clients_{prefix}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([columns, *rows])
