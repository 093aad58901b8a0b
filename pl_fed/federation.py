"""The four verbs of a round - broadcast, train, aggregate, apply - on one network, without Lightning.

`Federation` holds the server's adapter, what clients keep, and the round in progress. `FederatedLoop` calls it at
Lightning's seams; the engine does the local training in between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pl_fed import chunk_round
from pl_fed.accounting import NetworkSize, plan_cost
from pl_fed.adapters import Adapter
from pl_fed.client_store import ClientStore
from pl_fed.clients import ClientCost, ClientState
from pl_fed.context import RoundContext
from pl_fed.controls import Controls
from pl_fed.engines.base import Engine
from pl_fed.errors import CheckpointMismatchError, TooFewClientsError
from pl_fed.exchange import like
from pl_fed.federation_config import FederationConfig
from pl_fed.frozen import FrozenTensors
from pl_fed.loaders import RoundPlan
from pl_fed.privacy.pairwise.errors import TooFewSurvivorsError
from pl_fed.processes import Processes
from pl_fed.progress import ClientInProgress
from pl_fed.round_sharing import share_round, share_server
from pl_fed.rounds import RoundSchedule, Shards, derive_seed
from pl_fed.secure_round import published, secure_aggregate
from pl_fed.updates import AdapterState, Update, prefix_slots


@dataclass
class Federation:
    """Server state, client states and the round in progress.

    Args:
        config: What a round is.
        engine: Runs the local training.
        adapter: The network's federated tensors.
        size: The network without them.
        fire: Calls a federated hook of every callback.
        frozen: The network's frozen parameters.
    """

    config: FederationConfig
    engine: Engine
    adapter: Adapter
    size: NetworkSize
    fire: Callable[[str, RoundContext], None]
    frozen: FrozenTensors = field(default_factory=FrozenTensors)
    states: ClientStore = field(default_factory=ClientStore)
    versions: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})  # of the server's factors
    merge_bytes: list[int] = field(default_factory=list)  # of each change to the base model, as it is broadcast
    controls: Controls | None = None
    sealed: list[Update] = field(default_factory=list)  # with secure aggregation: what only the sum is known of
    context: RoundContext | None = None
    schedule: RoundSchedule | None = None
    chunk_idx: int = 0  # which chunk of the schedule is in training
    chunk: list[ClientInProgress] = field(default_factory=list)  # its clients, those with more batches first
    current: ClientInProgress | None = None  # the one whose hooks are called
    cost: ClientCost | None = None
    server: AdapterState = field(default_factory=AdapterState)
    rounded: bool = False  # whether the network holds less precise numbers than the server
    published: dict[str, str] = field(default_factory=dict)  # hashes of what is broadcast, with secure aggregation
    population: int | None = None
    shards: str | None = None  # fingerprint of the population's shards
    source: Shards | None = None  # the shards that were compared with it
    processes: Processes = field(default_factory=Processes)

    @property
    def norms(self) -> frozenset[str]:
        """Names of the tensors that stay on the clients as parts of their normalisation layers."""
        return self.frozen.norms if self.config.clients.local_norms else frozenset()

    def sync_server(self) -> None:
        """Take over what the network holds; the server's full precision stays where the network only rounds it."""
        live, kept = self.adapter.read().tensors(), self.server.tensors()
        for name, value in live.items():
            known = kept.get(name)
            if known is None or not torch.equal(known.to(value.dtype), value):
                kept[name] = value.detach().clone().to(torch.promote_types(value.dtype, torch.float32))
        self.server = AdapterState.from_tensors({name: kept[name] for name in live})
        self.rounded = any(kept[name].dtype != value.dtype for name, value in live.items())

    def set_plan(self, plan: RoundPlan) -> None:
        """Bind the data's population: check its size and what clients can afford."""
        config = self.config
        config.clients.check_population(len(plan.shards))
        if plan.shards is not self.source:
            self._check_population(plan)
        config.clients.check_ranks(self.adapter.rank)
        plan.bind(config.cohort, config.local, config.seed, plan.accumulate, self.engine.clients_per_chunk)
        if self.cost is None:  # once, from the first round, so that caps are the same in every round and after a resume
            correction = config.local.correction
            controls = correction is not None and correction.has_controls
            self.cost = plan_cost(self.size, self.adapter, config.rule, plan, config.codecs, controls)

    def _check_population(self, plan: RoundPlan) -> None:
        found, self.source = plan.fingerprint(), plan.shards
        if self.shards not in (None, found):
            raise CheckpointMismatchError(
                f"Expected the checkpoint's population of {self.population} clients but the data has "
                f"{len(plan.shards)} clients, or other examples for them: resume with the same data, splits and "
                "partitioner, or start anew from the exported adapter."
            )
        self.population, self.shards = len(plan.shards), found

    def client_state(self, client_id: int) -> ClientState:
        """Return what a client keeps, made on first use."""
        known = self.states.get(client_id)
        if known is None:
            assert self.cost is not None
            cap = self.config.clients.rank_cap(client_id, self.adapter.rank, self.cost)
            known = ClientState(prefix_slots(self.server, cap), num_merges=0)
            if self.config.rule.reinitialises:  # drawn from the seed, by the client as by the server
                known.versions = {"a": 0, "b": 0}
            self.states[client_id] = known
        return known

    def missed_bytes(self, state: ClientState) -> int:
        """Return the bytes of the changes to the base model that a client lacks: the changes, or the whole if less."""
        whole = sum(4 * layer.a.shape[1] * layer.b.shape[0] for layer in self.server.layers.values())
        return min(whole, sum(self.merge_bytes[state.num_merges :]))

    def start_round(self, schedule: RoundSchedule, num_rounds: int | None) -> None:
        """Begin a round and load its first clients."""
        self.sync_server()
        self.schedule = schedule
        self.context = RoundContext(
            schedule.round_idx,
            num_rounds,
            self.config.seed,
            schedule.cohort,
            self.server,
            self.config.clients.round_seconds,
            self.population or 0,
            failures=dict(schedule.failures),
        )
        self.adapter.set_trainable(self.config.rule.sides(schedule.round_idx))
        secure, correction = self.config.secure_aggregation, self.config.local.correction
        self.published = published(self.server) if secure is not None and secure.binding else {}
        if correction is not None and correction.has_controls and self.controls is None:
            self.controls = Controls.zero(self.server)
        self.fire("on_round_start", self.context)
        chunk_round.start_chunk(self, 0)

    @property
    def progress(self) -> ClientInProgress:
        """The current client."""
        assert self.current is not None
        return self.current

    def select(self, client: ClientInProgress | None) -> None:
        """Make a client the current one, or none."""
        assert self.context is not None
        self.current, self.context.client = client, None if client is None else client.client

    def finish_round(self) -> RoundContext:
        """Aggregate, apply, and leave the network with the server's next adapter.

        Raises:
            TooFewClientsError: If fewer clients than `cohort.min_survivors` gave a usable update; the server's adapter
                is then as it was before the round.
        """
        share_round(self)
        context, config = self.context, self.config
        assert context is not None
        self.context, self.schedule = None, None
        self._drop_clients()
        received, self.sealed = [*context.updates, *self.sealed], []
        updates = sorted(received, key=lambda update: update.client_id)  # the order of arrival changes nothing
        try:
            config.cohort.check_survivors(context.round_idx, len(received), context.failures)
            context.aggregate = self._aggregate(updates, context)
        except (TooFewClientsError, TooFewSurvivorsError):
            self.fire("on_round_failed", context)
            raise
        applied = config.server_optimizer.apply(self.server, context.aggregate)
        if self.controls is not None:
            assert self.population is not None
            self.controls.apply(updates, self.population)
        seed = derive_seed(config.seed, context.round_idx, 0x5D)
        context.previous = self.server
        self.server = context.server = renewed = config.rule.renew(applied, torch.Generator().manual_seed(seed))
        self.adapter.write(self.server)
        self.fire("on_aggregate", context)
        self.sync_server()
        context.server = share_server(self)
        self._count_changes(context.previous, renewed, updates)
        self.fire("on_round_end", context)
        self.states.end_round(context.round_idx, self.processes)
        return context

    def _aggregate(self, updates: list[Update], context: RoundContext) -> AdapterState:
        config, secure = self.config, self.config.secure_aggregation
        if secure is None:
            return config.rule.aggregate(self.server, updates)
        state, figures = secure_aggregate(
            config.rule, self.server, updates, secure, context.round_idx, config.seed, context.cohort
        )
        context.metrics.update(figures)
        return like(state, self.server)

    def _count_changes(self, previous: AdapterState, renewed: AdapterState, updates: list[Update]) -> None:
        """Note what clients lack from now on: factors that moved, and what was merged into the base model.

        What is merged has the rank of all updates together; it travels as such a stack of factors, or dense if smaller.
        """
        known = renewed if self.config.rule.reinitialises else previous
        for side in self.versions:
            pairs = ((getattr(known.layers[n], side), getattr(layer, side)) for n, layer in self.server.layers.items())
            if any(not torch.equal(old, new) for old, new in pairs):
                self.versions[side] += 1
        if self.config.rule.merges:
            sizes = []
            for name, layer in self.server.layers.items():
                rank = sum(update.layers[name].rank for update in updates)
                d_in, d_out = layer.a.shape[1], layer.b.shape[0]
                sizes.append(4 * min(rank * (d_in + d_out), d_in * d_out))
            self.merge_bytes.append(sum(sizes))

    def drop_round(self) -> None:
        """Give up the round in progress; the server keeps its adapter."""
        self.context, self.schedule, self.sealed = None, None, []
        self.states.drop_round()
        self._drop_clients()

    def _drop_clients(self) -> None:
        self.chunk, self.current = [], None
        self.engine.drop()
        self.frozen.restore()
        self.adapter.write(self.server)

    def suspend(self) -> None:
        """Put the server's model in the place of the clients in training; twice is once."""
        self.engine.suspend(self.server)
        self.frozen.suspend()

    def resume(self) -> None:
        """Go on with the clients."""
        self.frozen.resume()
        self.engine.resume()
