"""Federated LoRA fine-tuning as a plugin suite for PyTorch Lightning."""

__version__ = "0.1.0"
