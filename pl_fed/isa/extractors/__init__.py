"""From images to texts: a local model, an endpoint, texts that exist, or a description without any language model."""

from pl_fed.isa.extractor import ExtractionError, Extractor, PromptedExtractor, TransientExtractionError
from pl_fed.isa.extractors.endpoint import EndpointExtractor, Price
from pl_fed.isa.extractors.http import Patience
from pl_fed.isa.extractors.local import LocalExtractor, Placement
from pl_fed.isa.extractors.offline import OfflineDescriber
from pl_fed.isa.extractors.precomputed import PrecomputedExtractor

__all__ = [
    "EndpointExtractor",
    "ExtractionError",
    "Extractor",
    "LocalExtractor",
    "OfflineDescriber",
    "Patience",
    "Placement",
    "PrecomputedExtractor",
    "Price",
    "PromptedExtractor",
    "TransientExtractionError",
]
