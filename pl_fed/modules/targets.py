"""Which layers of a network get an adapter: checked before PEFT sees them, so that an error names the setting."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers.pytorch_utils import Conv1D

from pl_fed.errors import FederatedConfigError, shortened


def check_targets(network: nn.Module, targets: Sequence[str] | str) -> None:
    """Check `lora.target_modules`: names (or their ends), an expression over whole names, or ``all-linear``.

    Raises:
        FederatedConfigError: If one matches nothing, an embedding, or is no expression.
    """
    if targets == "all-linear":
        return
    if isinstance(targets, str):
        matched = {targets: _matching(network, targets)}
    else:
        matched = {target: _ending(network, target) for target in targets}
    _refuse_unmatched(network, matched, "lora.target_modules")
    for names in matched.values():
        for name in names:
            if isinstance(network.get_submodule(name), nn.Embedding):
                raise FederatedConfigError(
                    f"Expected `lora.target_modules` to match linear layers but it matches the embedding '{name}': "
                    "take it out, or train it in full with `lora.modules_to_save`."
                )


def check_modules_to_save(network: nn.Module, names: Sequence[str]) -> None:
    """Check `lora.modules_to_save`.

    Raises:
        FederatedConfigError: If a name matches nothing.
    """
    _refuse_unmatched(network, {name: _ending(network, name) for name in names}, "lora.modules_to_save")


def linear_in_full(network: nn.Module, in_full: Sequence[str]) -> list[str]:
    """Return the linear layers that are trained in full, which ``all-linear`` has to leave out.

    Args:
        network: Without an adapter.
        in_full: Names of modules; PEFT trains every module whose name ends so, "pre_classifier" as a "classifier" too.
    """
    roots = [name for name, _ in network.named_modules() if name.endswith(tuple(in_full))]
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return [name for name in linear if any(f"{name}.".startswith(f"{root}.") for root in roots)]


@contextmanager
def accepted_by_peft() -> Iterator[None]:
    """Turn what PEFT says of its arguments, often with a printed module in it, into one sentence."""
    try:
        yield
    except FederatedConfigError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = shortened(error)
        raise FederatedConfigError(
            f"Expected settings in `lora` that PEFT accepts but it says: {reason}: correct `lora`."
        ) from error


def _matching(network: nn.Module, expression: str) -> list[str]:
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise FederatedConfigError(
            f"Expected `lora.target_modules` to be a list of names or one regular expression but '{expression}' is "
            f"none ({error}): correct it."
        ) from error
    return [name for name, _ in network.named_modules() if compiled.fullmatch(name)]


def _ending(network: nn.Module, target: str) -> list[str]:
    return [name for name, _ in network.named_modules() if name == target or name.endswith(f".{target}")]


def _refuse_unmatched(network: nn.Module, matched: dict[str, list[str]], argument: str) -> None:
    if unmatched := [target for target, names in matched.items() if not names]:
        layers = (name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D))
        there = sorted({name.rpartition(".")[2] for name in layers})
        raise FederatedConfigError(
            f"Expected `{argument}` to match layers of {type(network).__name__} but {unmatched} match nothing: its "
            f"linear layers are {', '.join(there)}."
        )
