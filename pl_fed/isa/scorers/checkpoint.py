"""Scores with a LightningModule from its checkpoint, which names the class if Lightning's command line wrote it."""

from collections.abc import Sequence
from pydoc import ErrorDuringImport, locate

import torch
from PIL import Image

from pl_fed._lightning import LightningModule
from pl_fed.errors import FederatedConfigError, first_line
from pl_fed.isa.scorers.base import Score, Scorer

_CLASS = "_class_path"  # where Lightning's command line keeps it among the hyperparameters


class CheckpointScorer:
    """A trained module that has a method `score`, as `Scorer` says.

    Args:
        path: The checkpoint.
        class_path: Class of the module; None means the one that the checkpoint names.
        device: Where it runs.
    """

    def __init__(self, path: str, class_path: str | None = None, device: str = "cpu") -> None:
        self._path, self._class_path, self._device = path, class_path, device
        self._module: Scorer | None = None

    @torch.no_grad()
    def score(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Sequence[Score]:
        """Return the module's scores."""
        if self._module is None:
            self._module = self._load()
        return self._module.score(texts, images)

    def _load(self) -> Scorer:
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and pickle have many ways to say it
            raise FederatedConfigError(
                f"Expected `scorer.path` to be a checkpoint but '{self._path}' cannot be read "
                f"({first_line(error)}): give the path of one."
            ) from error
        if not isinstance(content, dict):
            raise FederatedConfigError(
                f"Expected `scorer.path` to be a checkpoint but '{self._path}' holds a {type(content).__name__}: give "
                "the path of one."
            )
        name = self._class_path or (content.get("hyper_parameters") or {}).get(_CLASS)
        try:
            found = locate(name) if name else None
        except ErrorDuringImport as error:
            raise FederatedConfigError(
                f"Expected the module's class '{name}' to be importable but got: {error}. Install what it needs."
            ) from error
        if not (isinstance(found, type) and issubclass(found, LightningModule) and issubclass(found, Scorer)):
            raise FederatedConfigError(
                f"Expected the checkpoint '{self._path}' of a LightningModule with a method `score` but got one of "
                f"'{name}': set `scorer.class_path`, or take another checkpoint."
            )
        module = found.load_from_checkpoint(self._path, map_location=self._device, weights_only=True)
        return module.eval()
