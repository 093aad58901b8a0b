"""`FederatedStrategy`: federated rounds in a Lightning Trainer, one epoch per round."""

import os
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn

from pl_fed import strategy_checks
from pl_fed.accounting import NetworkSize
from pl_fed.adapters import MERGED, Adapter
from pl_fed.checkpoint_io import AtomicCheckpointIO
from pl_fed.chunks import PackedBatch, Packing
from pl_fed.client_store import ClientStore
from pl_fed.clients import ClientsConfig
from pl_fed.engines import Engine, PackedEngine, SequentialEngine
from pl_fed.federation import Federation
from pl_fed.federation_config import FederationConfig
from pl_fed.federation_state import check_rule, take_state
from pl_fed.frozen import FrozenTensors
from pl_fed.loaders import ClientLoader, RoundLoader
from pl_fed.loop import FederatedLoop
from pl_fed.personalised import PersonalisedEvaluation
from pl_fed.process_group import ProcessGroupStrategy
from pl_fed.processes import Processes, check_rounds, check_trainer
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
        engine: How a cohort is trained. ``sequential``, the reference, trains one client after the other; ``packed``
            several at a time in one pass over the shared base model (`Packing` says how many), with the same result
            but for rounding and dropout's random numbers, or refuses with the reason; Lightning's steps are those of
            chunks. ``auto`` takes ``packed`` where that is possible and likely to be faster, and says why.
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
        engine: Packing | Literal["sequential", "packed", "auto"] = "sequential",
        seed: int | None = None,
        secure_aggregation: SecureAggregation | Literal["ideal", "pairwise"] | None = None,
    ) -> None:
        super().__init__(checkpoint_io=AtomicCheckpointIO())
        secure = SecureAggregation(secure_aggregation) if isinstance(secure_aggregation, str) else secure_aggregation
        self.config = FederationConfig(
            rule or AFLoRA(),
            cohort,
            local,
            clients,
            server_optimizer or ServerOptimizer(),
            codecs,
            secure_aggregation=secure,
        )
        self._wanted, self._chosen, self._seed = engine, False, seed
        self.engine: Engine = SequentialEngine()
        self._sequential = self.engine
        self._packed = PackedEngine(engine if isinstance(engine, Packing) else Packing())
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

    def _insert(self, own: Callback) -> None:
        """Put a callback of ours, when a loader wants it, before the loop and the first that writes checkpoints."""
        callbacks = strategy_checks.callbacks_of(self.trainer)
        if own not in callbacks:  # the loop comes last: it puts its client over the server's adapter
            later = (i for i, c in enumerate(callbacks) if isinstance(c, (Checkpoint, FederatedLoop)))
            callbacks.insert(next(later, len(callbacks)), own)

    def setup(self, trainer: Trainer) -> None:
        """Bind the adapter, if nothing is trained."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            self._bind_adapter()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Let the rule choose what clients train before the module makes its optimizer."""
        strategy_checks.check_early(trainer)
        self._bind_adapter()
        super().setup_optimizers(trainer)
        assert self.loop.federation is not None
        self._chosen = False
        if self.loop.mid_round:  # of a fit that failed; a checkpoint's comes later
            self.loop.federation.drop_round()
        for engine in (self._sequential, self._packed):  # now: a checkpoint's schedules are in the middle of a client
            engine.bind(self.loop.federation.adapter, self.optimizers, self.lr_scheduler_configs)

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
            known = Federation(self.config, self.engine, adapter, size, self.loop.fire, frozen, self._client_store())
        known.processes = Processes(self.world_size, self.gather, self.broadcast)
        self.loop.federation = self.personal.federation = known

    def _client_store(self) -> ClientStore:
        return ClientStore(self.config.clients.store, self.root_device, self.is_global_zero)

    def process_dataloader(self, dataloader: Any) -> Any:
        """Bind a training loader of rounds and note personalised ones; other loaders pass."""
        if isinstance(dataloader, ClientLoader):
            dataloader.divide(self.global_rank, self.world_size)
            if dataloader.personalised:
                self._insert(self.personal)
        if isinstance(dataloader, RoundLoader) and self.trainer.state.fn == TrainerFn.FITTING:
            strategy_checks.check_supported(self.trainer, self.optimizers)
            check_trainer(self.trainer, strategy_checks.callbacks_of(self.trainer), self.world_size)
            self._choose_engine(dataloader)
            self._insert(self.loop)
            # the length of an epoch is that of its round; Lightning otherwise computes it once
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
            dataloader.plan.process, dataloader.plan.num_processes = self.global_rank, self.world_size
            self.loop.bind(self.trainer, dataloader.plan)
        return dataloader

    def _choose_engine(self, loader: RoundLoader) -> None:
        """Settle on an engine, once per fit: the callbacks are complete only when the data are loaded."""
        federation = self.loop.federation
        if self._chosen or federation is None:
            return
        self._chosen = True
        packed = strategy_checks.engine_for(self._wanted, self.trainer, federation, self.optimizers, loader) == "packed"
        federation.engine = self.engine = self._packed if packed else self._sequential
        clip = {"clip_grad_by_norm": self._packed.clip_gradients} if packed else {}  # client by client
        vars(self.precision_plugin).pop("clip_grad_by_norm", None)
        vars(self.precision_plugin).update(clip)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Let the clients of a chunk train together; other batches are the module's."""
        if self.loop.active and self.loop.plan is not None:
            strategy_checks.check_accumulation(self.trainer, self.loop.plan)
        batch = args[0] if args else None
        if not isinstance(batch, PackedBatch):
            return super().training_step(*args, **kwargs)
        assert self.lightning_module is not None
        return self._packed.training_step(self.lightning_module, batch, self.precision_plugin.train_step_context)

    def teardown(self) -> None:
        """Leave the precision plugin as it was."""
        vars(self.precision_plugin).pop("clip_grad_by_norm", None)
        super().teardown()

    def on_train_start(self) -> None:
        """Refuse several processes without rounds; from here on clients' own adapters are those of this run."""
        check_rounds(self.loop.active, self.num_nodes * self.num_processes)
        self.personal.loaded = None if self.loop.active else self.personal.loaded

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
        state = take_state(checkpoint, self.loop.state_key)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_rule(self.config.rule, state)
            self.loop.load_state_dict(state)
        assert self.lightning_module is not None
        if any(name.endswith(f".{MERGED}") for name in checkpoint["state_dict"]):  # of a rule that changes the base
            Adapter(self.lightning_module).add_merged()
        strategy_checks.check_shapes(self.lightning_module, checkpoint["state_dict"])
        super().load_model_state_dict(checkpoint, strict=strict)
        self.personal.loaded = self._client_store()
        self.personal.loaded.load_state_dict(state or {"clients": {}, "past": []})

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load the optimizer, if the checkpoint is of the same kind."""
        saved = self.loop.saved_optimizers
        strategy_checks.check_optimizers(self.optimizers, checkpoint["optimizer_states"], saved)
        super().load_optimizer_state_dict(checkpoint)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Make ``strategy="federated"`` known to Lightning."""
        strategy_registry.register(cls.strategy_name, cls, description="Federated rounds", override=True)


FederatedStrategy.register_strategies(StrategyRegistry)
