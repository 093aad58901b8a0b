"""`FederatedStrategy`: federated rounds in a Lightning Trainer, one epoch per round."""

import os
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn

from pl_fed.accounting import NetworkSize
from pl_fed.adapters import MERGED, Adapter
from pl_fed.checkpoint_io import AtomicCheckpointIO
from pl_fed.clients import ClientsConfig
from pl_fed.engines import SequentialEngine
from pl_fed.errors import CheckpointMismatchError, FederatedConfigError
from pl_fed.federation import Federation
from pl_fed.federation_config import FederationConfig
from pl_fed.federation_state import check_rule
from pl_fed.frozen import FrozenTensors
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.loop import FederatedLoop
from pl_fed.personalised import PersonalisedEvaluation
from pl_fed.process_group import ProcessGroupStrategy
from pl_fed.processes import check_rounds, check_trainer
from pl_fed.round_sharing import Processes
from pl_fed.rounds import CohortConfig, LocalTraining, derive_seed
from pl_fed.rules import AFLoRA, Rule
from pl_fed.secure_round import SecureAggregation
from pl_fed.server_optimizer import ServerOptimizer
from pl_fed.wire import Codecs


class FederatedStrategy(ProcessGroupStrategy):
    """Trains clients round by round; ``max_epochs`` counts rounds, ``devices`` and ``num_nodes`` processes.

    With a `RoundLoader` as the training loader, every epoch is a round: a cohort is chosen, each of its clients starts
    from the server's adapter and trains on its own shard, and a rule aggregates their updates. With ordinary loaders it
    is Lightning's single-device strategy.

    Args:
        rule: How updates become the server's next adapter.
        cohort: Who takes part in a round.
        local: What a client does in a round.
        clients: What clients can afford.
        server_optimizer: Optimizer on the aggregated update; plain by default.
        codecs: Formats on the wire.
        engine: How a cohort is trained; ``sequential`` is the reference.
        seed: Seed of cohorts, batches and dropout; None takes that of `seed_everything`, or 0.
        secure_aggregation: Let the server see nothing but the sum of the updates; ``ideal`` and ``pairwise`` take the
            defaults of `SecureAggregation`.

    Example:
        >>> strategy = FederatedStrategy(cohort=CohortConfig(clients=4), local=LocalTraining(epochs=1))
        >>> strategy.strategy_name
        'federated'
    """

    strategy_name = "federated"

    def __init__(
        self,
        rule: Rule | None = None,
        cohort: CohortConfig = CohortConfig(),  # noqa: B008  # frozen
        local: LocalTraining = LocalTraining(),  # noqa: B008  # frozen
        clients: ClientsConfig = ClientsConfig(),  # noqa: B008  # frozen
        server_optimizer: ServerOptimizer | None = None,
        codecs: Codecs = Codecs(),  # noqa: B008  # frozen
        engine: Literal["sequential"] = "sequential",
        seed: int | None = None,
        secure_aggregation: SecureAggregation | Literal["ideal", "pairwise"] | None = None,
    ) -> None:
        super().__init__(checkpoint_io=AtomicCheckpointIO())
        self._seed = seed
        self.config = FederationConfig(
            rule or AFLoRA(),
            cohort,
            local,
            clients,
            server_optimizer or ServerOptimizer(),
            codecs,
            secure_aggregation=SecureAggregation(secure_aggregation)
            if isinstance(secure_aggregation, str)
            else secure_aggregation,
        )
        self.engine = SequentialEngine()
        self.loop, self.personal = FederatedLoop(), PersonalisedEvaluation()

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this strategy."""
        assert self.lightning_module is not None
        return self.lightning_module.trainer

    # ------------------------------------------------------------------ set-up

    def connect(self, model: LightningModule) -> None:
        """Forget the data of another run."""
        super().connect(model)
        if getattr(model, "_trainer", None) is not None:  # Lightning also connects without a Trainer
            self.loop.trainer, self.loop.plan = model.trainer, None
            self.loop.load_state_dict({})

    def _insert(self, *own: Callback) -> None:
        """Put callbacks of ours before the first that writes checkpoints, when a loader wants them."""
        callbacks = _callbacks(self.trainer)
        for callback in own:
            if callback not in callbacks:
                place = next((i for i, c in enumerate(callbacks) if isinstance(c, Checkpoint)), len(callbacks))
                callbacks.insert(place, callback)

    def setup(self, trainer: Trainer) -> None:
        """Bind the adapter, if nothing is trained."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            self._bind_adapter()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Let the rule choose what clients train before the module makes its optimizer."""
        self._bind_adapter()
        super().setup_optimizers(trainer)
        assert self.loop.federation is not None
        self.engine.bind(self.loop.federation.adapter, self.optimizers, self.lr_scheduler_configs)

    def _bind_adapter(self) -> None:
        assert self.lightning_module is not None
        module, rule = self.lightning_module, self.config.rule
        self.config.seed = self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        adapter, size = Adapter(module), NetworkSize.of(module)
        if adapter.layers:
            adapter.check_scale()
            if "diagonal" in rule.optimizer_sides():
                adapter.add_diagonals()
            if rule.merges:
                adapter.add_merged()
            adapter.set_trainable(rule.optimizer_sides())
            if not any(bool(layer.b.any()) for layer in adapter.layers.values()):
                generator = torch.Generator().manual_seed(derive_seed(self.config.seed, 0x1A))
                adapter.write(rule.init(adapter.read(), generator))
        known = self.loop.federation
        if known is None or not known.adapter.same_parameters(adapter):
            self.config.server_optimizer.reset()  # its moments may be another network's
            frozen = FrozenTensors.of(module, adapter.dense)
            known = Federation(self.config, self.engine, adapter, size, self.loop.fire, frozen)
        known.processes = Processes(self.world_size, self.gather, self.broadcast)
        self.loop.federation = self.personal.federation = known

    def process_dataloader(self, dataloader: Any) -> Any:
        """Bind a training loader of rounds and note personalised ones; other loaders pass."""
        if isinstance(dataloader, ClientLoader):
            dataloader.divide(self.global_rank, self.world_size)
            if dataloader.personalised:
                self._insert(self.personal)
        if isinstance(dataloader, RoundLoader) and self.trainer.state.fn == TrainerFn.FITTING:
            self._check_supported()
            self._insert(self.personal, self.loop)  # in this order: the loop puts its client over the server's adapter
            # the length of an epoch is that of its round; Lightning otherwise computes it once
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
            dataloader.plan.process, dataloader.plan.num_processes = self.global_rank, self.world_size
            self.loop.bind(self.trainer, dataloader.plan)
        return dataloader

    def _check_supported(self) -> None:
        if not self.lightning_module.automatic_optimization:  # type: ignore[union-attr]
            raise FederatedConfigError(
                "Expected automatic optimization but `automatic_optimization` is False: clients are swapped at "
                "Lightning's optimizer steps. Use a plain strategy for this module."
            )
        check_trainer(self.trainer, _callbacks(self.trainer), self.world_size)
        if len(self.optimizers) != 1:
            raise FederatedConfigError(f"Expected one optimizer but got {len(self.optimizers)}.")
        for callback in _callbacks(self.trainer):
            averages = type(callback).__name__ in ("WeightAveraging", "EMAWeightAveraging")
            if isinstance(callback, StochasticWeightAveraging) or averages:
                raise FederatedConfigError(
                    f"Expected no weight averaging over steps but got `{type(callback).__name__}`: it would average "
                    "over the steps of different clients. Use `server_optimizer` (momentum) instead."
                )

    def on_train_start(self) -> None:
        """Refuse several processes without rounds."""
        check_rounds(self.loop.active, self.world_size)

    # ------------------------------------------------------------------ checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the server's adapter, also while a client is in training; adapters only for a LoRA module."""
        state: dict[str, Any] = super().lightning_module_state_dict()
        federation = self.loop.federation
        if not self.loop.active or federation is None:
            return state
        server = federation.adapter.named_tensors(federation.server)
        if not federation.adapter.layers:
            return state | federation.frozen.own | server
        return {name: value.detach().cpu().clone() for name, value in server.items() if name in state}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Load the module; clients' own adapters are kept for personalised evaluation."""
        # out of it: Lightning would miss the callback, which is not there before the loaders are
        state = checkpoint.get("callbacks", {}).pop(self.loop.state_key, {})
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_rule(self.config.rule, state)
            self.loop.load_state_dict(state)
        if any(name.endswith(f".{MERGED}") for name in checkpoint["state_dict"]):  # of a rule that changes the base
            assert self.lightning_module is not None
            Adapter(self.lightning_module).add_merged()
        self._check_shapes(checkpoint["state_dict"])
        super().load_model_state_dict(checkpoint, strict=strict)
        clients = state.get("clients", {})
        self.personal.loaded = {k: c["adapter"] for k, c in clients.items() if c["adapter"]}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load the optimizer.

        Raises:
            CheckpointMismatchError: If the checkpoint is of another kind of optimizer.
        """
        for live, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            wanted, found = set(live.param_groups[0]), set(saved["param_groups"][0])
            if not wanted - {"initial_lr"} <= found:
                raise CheckpointMismatchError(
                    f"Expected the state of {type(live).__name__} in the checkpoint but it has no "
                    f"{sorted(wanted - found)}: resume with the optimizer that the run was started with."
                )
        super().load_optimizer_state_dict(checkpoint)

    def _check_shapes(self, saved: dict[str, Any]) -> None:
        assert self.lightning_module is not None
        live = dict(self.lightning_module.named_parameters())
        for name, value in saved.items():
            if name in live and live[name].shape != value.shape:
                raise CheckpointMismatchError(
                    f"Expected `{name}` of shape {tuple(live[name].shape)} but the checkpoint's is "
                    f"{tuple(value.shape)}: use the rank (`lora.r`) and model that it was trained with."
                )

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Make ``strategy="federated"`` known to Lightning."""
        strategy_registry.register(cls.strategy_name, cls, description="Federated rounds", override=True)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return cast(list[Callback], vars(trainer)["callbacks"])  # Lightning does not declare it


FederatedStrategy.register_strategies(StrategyRegistry)
