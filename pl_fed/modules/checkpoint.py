"""What of a module goes into a checkpoint, and the checks when it comes back.

A checkpoint of a LoRA module holds the LoRA factors and whatever else was trained, never the frozen base model. Loading
is therefore not strict about the base model's tensors, and strict about all others. A network that is trained whole is
in its checkpoint whole.
"""

from collections.abc import Iterable, Mapping
from pydoc import locate
from typing import Any

from torch import Tensor

from pl_fed.errors import CheckpointMismatchError

DIAGONAL = ".diagonal"


def is_adapter(name: str) -> bool:
    """Tell whether a tensor belongs to the adapter by its name: peft's LoRA tensors and the copies that it trains."""
    return ".lora_" in name or ".modules_to_save." in name


def fold_diagonals(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply each learned diagonal into its B, since ``B diag(lam) A = (B diag(lam)) A``, and leave it out.

    Args:
        state: Tensors by name; a diagonal is ``<layer>.lora_A.<adapter>.diagonal``, of shape (rank,).

    Example:
        >>> import torch
        >>> state = {"q.lora_B.default.weight": torch.ones(1, 2), "q.lora_A.default.diagonal": torch.tensor([3.0, 0.0])}
        >>> fold_diagonals(state)
        {'q.lora_B.default.weight': tensor([[3., 0.]])}
    """
    folded = {name: value for name, value in state.items() if not _is_diagonal(name)}
    for name in filter(_is_diagonal, state):
        b = name.replace(".lora_A.", ".lora_B.").removesuffix(DIAGONAL) + ".weight"
        folded[b] = folded[b] * state[name]  # (d_out, rank) * (rank,)
    return folded


def check_class(checkpoint: Mapping[str, Any], module: type) -> None:
    """Check that a checkpoint was saved by this class of module, or by one that it inherits from or that inherits it.

    Args:
        checkpoint: What a Trainer saved; without a class in its hyperparameters it is not checked.
        module: Class of the module that is to load it.

    Raises:
        CheckpointMismatchError: If it belongs to another class.
    """
    saved = checkpoint.get("hyper_parameters", {}).get("_class_path")
    if saved is None or saved in (f"{base.__module__}.{base.__qualname__}" for base in module.__mro__):
        return
    found = locate(saved)
    if not (isinstance(found, type) and issubclass(found, module)):
        raise CheckpointMismatchError(
            f"Expected a checkpoint of `{module.__name__}` but got one of `{saved.rpartition('.')[2]}`: set "
            f"`model.class_path` to {saved} with the settings it was trained with, or give another `ckpt_path`."
        )


def matching_state(
    loaded: Mapping[str, Tensor], own: Mapping[str, Tensor], trained: Iterable[str]
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors as the module takes them.

    Args:
        loaded: The checkpoint's tensors.
        own: The module's tensors.
        trained: Names of the module's tensors that the checkpoint must have; diagonals need not be there.

    Raises:
        CheckpointMismatchError: If a tensor is missing, unknown or of another shape.
    """
    state = dict(loaded)
    if any(name not in own for name in filter(_is_diagonal, state)):  # trained by a rule that this run does not have
        state = fold_diagonals(state)
    missing = [name for name in trained if name not in state and not _is_diagonal(name)]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        raise CheckpointMismatchError(
            f"Expected a checkpoint of this adapter but {len(missing)} of its tensors are missing there {missing[:4]} "
            f"and {len(unknown)} are unknown here {unknown[:4]}: use the `model` and `lora` it was trained with."
        )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointMismatchError(
                f"Expected `{name}` of shape {tuple(own[name].shape)} but the checkpoint has {tuple(value.shape)}: use "
                "the `lora.r` (and number of labels) it was trained with."
            )
    return state


def check_whole(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has every tensor of a module that is trained in full, and no other.

    Raises:
        CheckpointMismatchError: If a tensor is missing, unknown or of another shape.
    """
    missing, unknown = ([n for n in first if n not in second] for first, second in ((own, loaded), (loaded, own)))
    if missing or unknown:
        raise CheckpointMismatchError(
            f"Expected a checkpoint of this network but {len(missing)} of its tensors are missing there {missing[:4]} "
            f"and {len(unknown)} are unknown here {unknown[:4]}: use the `architecture` and `network` it was trained "
            "with."
        )
    for name, value in loaded.items():
        if value.shape != own[name].shape:
            raise CheckpointMismatchError(
                f"Expected `{name}` of shape {tuple(own[name].shape)} but the checkpoint has {tuple(value.shape)}: use "
                "the `network` and `num_labels` it was trained with."
            )


def _is_diagonal(name: str) -> bool:
    return ".lora_A." in name and name.endswith(DIAGONAL)
