"""Data sets split over clients; each is an ordinary LightningDataModule."""

if __name__ == "datamodules":  # a second copy of every class would make `isinstance` lie
    raise ImportError("Expected `pl_fed.datamodules` but got `datamodules`: import it as `pl_fed.datamodules`.")

from pl_fed.datamodules.config import (
    ImageColumns,
    ImageTransform,
    InstructionColumns,
    LoadingConfig,
    SplitConfig,
    TextColumns,
)
from pl_fed.datamodules.image_data import ImageData
from pl_fed.datamodules.instruction import InstructionData
from pl_fed.datamodules.rated_images import RatedImages
from pl_fed.datamodules.rated_source import RatedSource
from pl_fed.datamodules.text_classification import TextClassificationData

__all__ = [
    "ImageColumns",
    "ImageData",
    "ImageTransform",
    "InstructionColumns",
    "InstructionData",
    "LoadingConfig",
    "RatedImages",
    "RatedSource",
    "SplitConfig",
    "TextClassificationData",
    "TextColumns",
]
