"""The one place that chooses between the two copies of Lightning.

``lightning.pytorch`` and ``pytorch_lightning`` are separate packages whose classes do not know each other. Callbacks of
this project must work under either Trainer, so they follow the copy that the user has imported already.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningModule as LightningModule
    from lightning.pytorch import Trainer as Trainer
else:

    def _namespace() -> str:
        chosen = os.environ.get("PL_FED_LIGHTNING")
        if chosen:
            return chosen
        only_old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
        return "pytorch_lightning" if only_old else "lightning.pytorch"

    _pytorch = importlib.import_module(_namespace())
    Callback, LightningModule, Trainer = _pytorch.Callback, _pytorch.LightningModule, _pytorch.Trainer
