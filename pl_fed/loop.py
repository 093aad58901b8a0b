"""The federated loop: a driver at Lightning's public seams that makes every epoch a round.

No loop of Lightning is replaced. The round plan orders the batches, Lightning trains them, and this callback swaps
clients at their borders and aggregates at the end of the round, before validation and checkpoints. `FederatedStrategy`
inserts it before the first `Checkpoint` callback when the training loader is one of rounds.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from pl_fed import chunk_round
from pl_fed.context import RoundContext
from pl_fed.errors import TooFewClientsError
from pl_fed.federation import Federation
from pl_fed.federation_state import load_federation, resume_round, save_federation
from pl_fed.loaders import RoundPlan
from pl_fed.privacy.pairwise.errors import TooFewSurvivorsError
from pl_fed.process_group import count_others
from pl_fed.resumption import Borders, begin_epoch_anew, check_whole, tokens_by_client, trained_uncounted


class FederatedLoop(Callback):
    """Runs the rounds of a `Federation` inside Lightning's training epochs; `FederatedStrategy` makes and feeds it."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None  # set by the strategy
        self.federation: Federation | None = None
        self.plan: RoundPlan | None = None
        self._loaded: dict[str, Any] | None = None  # a checkpoint's state until training starts
        self._steps_before = 0  # optimizer steps before the round
        self._tokens: list[int] | None = None  # of the batch in training, by client
        self._borders = Borders()

    @property
    def state_key(self) -> str:
        """A fixed name, so that checkpoints find their state whatever class holds it."""
        return "FederatedLoop"

    @property
    def active(self) -> bool:
        """Whether this run trains rounds; with ordinary loaders the driver does nothing."""
        return self.plan is not None and self.federation is not None

    @property
    def saved_optimizers(self) -> list[str]:
        """Classes of the clients' optimizers in the checkpoint that is being loaded; empty if it does not say."""
        return list((self._loaded or {}).get("optimizers", []))

    @property
    def mid_round(self) -> bool:
        """Whether a client is in training."""
        return self.federation is not None and self.federation.context is not None

    def fire(self, hook: str, context: RoundContext) -> None:
        """Call a federated hook of every callback that defines it."""
        trainer = self.trainer
        assert trainer is not None
        for callback in list(vars(trainer)["callbacks"]):  # Lightning does not declare the attribute
            function = getattr(callback, hook, None)
            if function is not None:
                function(trainer, trainer.lightning_module, context)

    def bind(self, trainer: Trainer, plan: RoundPlan) -> None:
        """Take the data's round plan; called whenever Lightning (re)loads the training loader."""
        assert self.federation is not None
        self._borders.broken = ""
        if self._loaded is not None:
            check_whole(self._loaded)
            load_federation(self.federation, self._loaded, trainer.strategy.root_device)
        self.federation.sync_server()
        self.plan, plan.accumulate = plan, trainer.accumulate_grad_batches
        plan.set_epoch(trainer.current_epoch)  # before Lightning asks for the round's length
        self.federation.set_plan(plan)
        schedule = plan.schedule(plan.round_idx)
        try:
            self.federation.config.cohort.check_survivors(
                schedule.round_idx, len(schedule.work), dict(schedule.failures)
            )
        except TooFewClientsError as error:
            self._save_failed(trainer, schedule.round_idx, error, "")
            raise

    def _save_failed(
        self, trainer: Trainer, round_idx: int, error: TooFewClientsError | TooFewSurvivorsError, then: str
    ) -> None:
        path = f"{trainer.log_dir or trainer.default_root_dir}/too-few-clients-round-{round_idx}.ckpt"
        trainer.save_checkpoint(path)
        error.args = (f"{error} A checkpoint is at '{path}'{then}.",)

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the checkpoint's client back in: parameters, optimizer and loops are restored by now."""
        if not self.active or self._loaded is None:
            return
        assert self.federation is not None and self.plan is not None
        loaded, self._loaded = self._loaded, None
        if "round" in loaded:
            schedule = self.plan.schedule(loaded["round"]["round_idx"])
            resume_round(self.federation, loaded["round"], schedule, self._num_rounds(trainer))
        if "uncounted" in loaded:
            self.federation.engine.start_batch()  # random numbers go on from where they were
            self._count(trainer, pl_module, *loaded["uncounted"])
            self.plan.skip = self.plan.committed
        if not self.mid_round or not self.plan.committed:
            begin_epoch_anew(trainer)

    def _num_rounds(self, trainer: Trainer) -> int | None:
        return trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the round."""
        if self.active and not self.mid_round:
            assert self.federation is not None and self.plan is not None
            self.plan.committed, self.plan.ended = 0, False
            self._steps_before = trainer.global_step
            schedule = self.plan.own_schedule(trainer.current_epoch)
            with self._borders.crossing(f"at the start of round {schedule.round_idx}"):
                self.federation.start_round(schedule, self._num_rounds(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the engine begin, and note what the batch has."""
        if self.active:
            assert self.federation is not None
            self.federation.engine.start_batch()
            self._tokens = tokens_by_client(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the rule's penalty and a correction to the gradients, before they are clipped."""
        if self.mid_round:
            assert self.federation is not None
            chunk_round.before_step(self.federation)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; at the end of a chunk take its clients' updates, at the end of the round aggregate."""
        if self.active:
            self._count(trainer, pl_module, self._tokens or [], trainer.is_last_batch)

    def _count(self, trainer: Trainer, pl_module: LightningModule, tokens: list[int], last: bool) -> None:
        """Count a batch; `last` is that of the round, also where `limit_train_batches` cuts it."""
        federation, plan = self.federation, self.plan
        assert federation is not None and federation.context is not None and plan is not None
        self._tokens = None
        chunk_round.count(federation, tokens)
        plan.committed += 1
        active = chunk_round.num_active(federation)
        if active and not last:
            federation.engine.stepped(self._window_done(federation.chunk[0].step), active)
            return
        with self._borders.crossing(f"between two clients of round {federation.context.round_idx}"):
            self._end_chunk(trainer, pl_module, last)

    def _end_chunk(self, trainer: Trainer, pl_module: LightningModule, last: bool) -> None:
        federation = self.federation
        assert federation is not None and federation.context is not None and federation.schedule is not None
        chunk_round.finish_chunk(federation)
        following = federation.chunk_idx + 1
        if following < len(federation.schedule.chunks) and not last:
            chunk_round.start_chunk(federation, following)
            return
        for position in (p for chunk in federation.schedule.chunks[following:] for p in chunk):
            # `limit_train_batches` left them no batch
            federation.context.failures[federation.schedule.work[position].client_id] = "limited"
        self._finish_round(trainer, pl_module)

    def _finish_round(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.federation is not None and self.federation.context is not None and self.plan is not None
        round_idx = self.federation.context.round_idx
        own = trainer.global_step - self._steps_before, self.plan.committed
        count_others(trainer, self.federation.processes, own, len(self.plan.schedule(self.plan.round_idx).work))
        self.plan.ended = True
        try:
            context = self.federation.finish_round()
        except (TooFewClientsError, TooFewSurvivorsError) as error:
            self._save_failed(trainer, round_idx, error, "; resumed, it goes on with the next round")
            raise
        metrics = {"round": float(round_idx), **self._figures(context), **context.metrics}
        pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)

    def _window_done(self, step: int) -> bool:
        assert self.plan is not None
        return step % self.plan.accumulate == 0

    def _figures(self, context: RoundContext) -> dict[str, float]:
        reasons = list(context.failures.values())
        figures = {"server/clients": float(context.num_updates), "server/failed_clients": float(len(reasons))}
        return figures | {f"server/failed_{why}": float(reasons.count(why)) for why in sorted(set(reasons))}

    # ------------------------------------------------------------------ interruptions

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the server's model, also inside a round."""
        self._suspend()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the client."""
        if self.mid_round and self._loaded is None:
            assert self.federation is not None
            self.federation.resume()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop a round that `max_steps` or `should_stop` ended early: the server keeps its adapter."""
        if self.mid_round:
            assert self.federation is not None
            self.federation.drop_round()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand out the server's model."""
        self._suspend()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the server's model in memory; a checkpoint that is written now still holds the client."""
        self._suspend()

    def _suspend(self) -> None:
        if self.mid_round:
            assert self.federation is not None
            self.federation.suspend()

    # ------------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the federation's state; empty for runs without rounds."""
        if not self.active or self.federation is None or self.trainer is None:
            return {}
        more: dict[str, Any] = {"broken": self._borders.broken} if self._borders.broken else {}
        if self.mid_round and self._tokens is not None and trained_uncounted(self.trainer):
            # a callback saves before it is our turn
            self.federation.engine.note(self._window_done(self.federation.chunk[0].step + 1))
            more["uncounted"] = (self._tokens, self.trainer.is_last_batch)
        return save_federation(self.federation, self.trainer.optimizers) | more

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the network is ready."""
        self._loaded = dict(state_dict) or None
