"""What `FederatedStrategy` asks of a Trainer, a checkpoint and an engine."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer

from pl_fed.chunks import Packing
from pl_fed.engines import by_size, step_size, why_not_packed
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.federation import Federation
from pl_fed.federation_state import optimizer_kinds
from pl_fed.loaders import RoundLoader, RoundPlan


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the Trainer's own list of callbacks, which Lightning does not declare."""
    return cast(list[Callback], vars(trainer)["callbacks"])


def check_supported(trainer: Trainer, optimizers: Sequence[Optimizer]) -> None:
    """Refuse what rounds cannot be trained with.

    Raises:
        FederatedConfigError: For manual optimization, several optimizers, weight averaging over steps, or a schedule of
            accumulation.
    """
    if not trainer.lightning_module.automatic_optimization:
        raise FederatedConfigError(
            "Expected automatic optimization but `automatic_optimization` is False: clients are swapped at "
            "Lightning's optimizer steps. Use a plain strategy for this module."
        )
    if len(optimizers) != 1:
        raise FederatedConfigError(f"Expected one optimizer but got {len(optimizers)}.")
    check_callbacks(trainer)


def check_early(trainer: Trainer) -> None:
    """Refuse a rounds' Trainer for its callbacks before the sanity check, which these may break with other words.

    Only where there is something to refuse are the training loaders made once more than Lightning does.

    Raises:
        FederatedConfigError: As `check_callbacks`, if rounds are trained.
    """
    try:
        check_callbacks(trainer)
    except FederatedConfigError:
        if _trains_rounds(trainer):
            raise


def _trains_rounds(trainer: Trainer) -> bool:
    """Tell whether a training loader is one of rounds, before Lightning asks for it; ordinary ones may be anything."""
    source = trainer.fit_loop._data_source
    if not source.is_defined() or trainer.limit_train_batches == 0:
        return False
    with isolate_rng():
        loaders = CombinedLoader(source.dataloader()).flattened
    return any(isinstance(loader, RoundLoader) for loader in loaders)


def check_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks that rounds cannot be trained with.

    Raises:
        FederatedConfigError: For weight averaging over steps, or a schedule of accumulation.
    """
    for callback in callbacks_of(trainer):
        averages = any(parent.__name__ == "WeightAveraging" for parent in type(callback).__mro__)
        if isinstance(callback, StochasticWeightAveraging) or averages:
            raise FederatedConfigError(
                f"Expected no weight averaging over steps but got `{type(callback).__name__}`: it would average "
                "over the steps of different clients. Use `server_optimizer` (momentum) instead."
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise FederatedConfigError(
                f"Expected one `accumulate_grad_batches` for all rounds but got `{type(callback).__name__}`, which "
                "changes it after a round's batches are planned: set `trainer.accumulate_grad_batches` instead."
            )


def check_accumulation(trainer: Trainer, plan: RoundPlan) -> None:
    """Compare the Trainer's accumulation with that of the plan, whose windows end where clients end.

    Raises:
        FederatedConfigError: If it was changed in a round.
    """
    if trainer.accumulate_grad_batches != plan.accumulate:
        raise FederatedConfigError(
            f"Expected `accumulate_grad_batches`={plan.accumulate}, with which the round was planned, but got "
            f"{trainer.accumulate_grad_batches}: change it between rounds only, in `on_train_epoch_end`."
        )


def engine_for(
    wanted: Packing | Literal["sequential", "packed", "auto"],
    trainer: Trainer,
    federation: Federation,
    optimizers: Sequence[Optimizer],
    loader: RoundLoader,
) -> Literal["sequential", "packed"]:
    """Return the engine that a run gets, and say which and why if it was left to us.

    Args:
        wanted: As in `FederatedStrategy(engine=...)`.
        trainer: Runs the module.
        federation: The rounds.
        optimizers: Lightning's optimizers.
        loader: Of the rounds; `auto` reads a few of its batches on a CPU.

    Raises:
        FederatedConfigError: If packed clients were asked for but are not possible.
    """
    if wanted == "sequential":
        return "sequential"
    callbacks, local = callbacks_of(trainer), federation.config.local
    reason = why_not_packed(trainer.lightning_module, federation.adapter, optimizers, local, trainer, callbacks)
    if wanted == "auto":
        found, reason = _faster(trainer, loader) if reason is None else ("sequential", reason)
        rank_zero_info(f"Engine `{found}`, since {reason}.")
        return found
    if reason is not None:
        raise FederatedConfigError(
            f"Expected a run in which clients can train together with `engine: packed` but {reason}: set "
            "`engine: sequential`, or `auto`."
        )
    return "packed"


def _faster(trainer: Trainer, loader: RoundLoader) -> tuple[Literal["sequential", "packed"], str]:
    """Return the engine that is likely to be faster; the first process looks, so that all take the same."""
    device, size = trainer.strategy.root_device.type, None
    if device == "cpu":
        size = step_size(trainer.lightning_module, loader) if trainer.is_global_zero else None
        size = trainer.strategy.broadcast(size)
    return by_size(size, device)


def check_optimizers(optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]], kinds: Sequence[str]) -> None:
    """Compare optimizers with a checkpoint's.

    Args:
        optimizers: Those of this run.
        states: Their states in the checkpoint.
        kinds: Their classes there (`optimizer_kinds`); empty if the checkpoint does not say.

    Raises:
        CheckpointMismatchError: If the checkpoint is of another kind of optimizer.
    """
    here = optimizer_kinds(optimizers)
    if kinds and here != list(kinds):
        raise CheckpointMismatchError(
            f"Expected a checkpoint of clients that train with {' and '.join(here)} but got one of clients with "
            f"{' and '.join(kinds)}: resume with the checkpoint's, or start anew from the exported adapter."
        )
    for live, saved in zip(optimizers, states, strict=False):
        wanted, found = set(live.param_groups[0]), set(saved["param_groups"][0])
        if not wanted - {"initial_lr"} <= found:
            raise CheckpointMismatchError(
                f"Expected the state of {type(live).__name__} in the checkpoint but it has no "
                f"{sorted(wanted - found)}: resume with the optimizer that the run was started with."
            )


def check_shapes(module: LightningModule, saved: dict[str, Any]) -> None:
    """Compare the shapes of the module's parameters with a checkpoint's.

    Raises:
        CheckpointMismatchError: If one differs.
    """
    live = dict(module.named_parameters())
    for name, value in saved.items():
        if name in live and live[name].shape != value.shape:
            raise CheckpointMismatchError(
                f"Expected `{name}` of shape {tuple(live[name].shape)} but the checkpoint's is "
                f"{tuple(value.shape)}: use the rank (`lora.r`) and model that it was trained with."
            )
