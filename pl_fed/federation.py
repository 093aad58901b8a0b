"""The four verbs of a round - broadcast, train, aggregate, apply - on one network, without Lightning.

`Federation` holds the server's adapter, what clients keep, and the round in progress. `FederatedLoop` calls it at
Lightning's seams; the engine does the local training in between.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pl_fed.accounting import NetworkSize, plan_cost, training_flops
from pl_fed.adapters import Adapter
from pl_fed.clients import ClientCost, ClientState
from pl_fed.context import ClientContext, RoundContext
from pl_fed.engines.base import Engine
from pl_fed.errors import CheckpointMismatchError, ClientFailureError
from pl_fed.exchange import fault_of, folded, like, restricted, view_of
from pl_fed.federation_config import FederationConfig
from pl_fed.loaders import RoundPlan
from pl_fed.rounds import ClientWork, RoundSchedule, Shards, derive_seed
from pl_fed.updates import AdapterState, Broadcast, Update, prefix_slots
from pl_fed.wire import Wire


@dataclass
class Federation:
    """Server state, client states and the round in progress.

    Args:
        config: What a round is.
        engine: Runs the local training.
        adapter: The network's federated tensors.
        size: The network without them.
        fire: Calls a federated hook of every callback.
    """

    config: FederationConfig
    engine: Engine
    adapter: Adapter
    size: NetworkSize
    fire: Callable[[str, RoundContext], None]
    states: dict[int, ClientState] = field(default_factory=dict)
    a_version: int = 0
    context: RoundContext | None = None
    schedule: RoundSchedule | None = None
    step: int = 0  # batches of the current client that were trained
    before: AdapterState | None = None  # what the current client started from
    cost: ClientCost | None = None
    server: AdapterState = field(default_factory=AdapterState)
    population: int | None = None
    shards: str | None = None  # fingerprint of the population's shards
    source: Shards | None = None  # the shards that were compared with it

    def sync_server(self) -> None:
        """Take over what the network holds; the server's full precision stays where the network only rounds it."""
        live, kept = self.adapter.read().tensors(), self.server.tensors()
        for name, value in live.items():
            known = kept.get(name)
            if known is None or not torch.equal(known.to(value.dtype), value):
                kept[name] = value.detach().clone().to(torch.promote_types(value.dtype, torch.float32))
        self.server = AdapterState.from_tensors({name: kept[name] for name in live})

    def set_plan(self, plan: RoundPlan) -> None:
        """Bind the data's population: check its size and what clients can afford."""
        config = self.config
        config.clients.check_population(len(plan.shards))
        if plan.shards is not self.source:
            self._check_population(plan)
        config.clients.check_ranks(self.adapter.rank)
        plan.bind(config.cohort, config.local, config.seed, plan.accumulate)
        if self.cost is None:  # once, from the first round, so that caps are the same in every round and after a resume
            self.cost = plan_cost(self.size, self.adapter, config.rule, plan, config.codecs.up)

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
        if client_id not in self.states:
            assert self.cost is not None
            cap = self.config.clients.rank_cap(client_id, self.adapter.rank, self.cost)
            self.states[client_id] = ClientState(prefix_slots(self.server, cap))
        return self.states[client_id]

    def start_round(self, schedule: RoundSchedule, num_rounds: int | None) -> None:
        """Begin a round and load its first client."""
        self.sync_server()
        self.schedule, self.step = schedule, 0
        self.context = RoundContext(
            schedule.round_idx,
            num_rounds,
            self.config.seed,
            schedule.cohort,
            self.server,
            self.config.clients.round_seconds,
            failures=dict(schedule.failures),
        )
        self.adapter.set_trainable(self.config.rule.sides(schedule.round_idx))
        self.fire("on_round_start", self.context)
        self.start_client(0)

    @property
    def work(self) -> ClientWork:
        """The current client's work."""
        assert self.context is not None and self.context.client is not None and self.schedule is not None
        return self.schedule.work[self.context.client.position]

    def _generator(self, client_id: int, purpose: int) -> torch.Generator:
        assert self.context is not None
        seed = derive_seed(self.config.seed, self.context.round_idx, client_id, purpose)
        return torch.Generator().manual_seed(seed)

    def start_client(self, position: int) -> None:
        """Broadcast to a client and load it into the network."""
        assert self.context is not None and self.schedule is not None and self.cost is not None
        config, context, work = self.config, self.context, self.schedule.work[position]
        state = self.client_state(work.client_id)
        cap = config.clients.rank_cap(work.client_id, self.adapter.rank, self.cost)
        client = ClientContext(
            work.client_id, position, len(self.schedule.work), work.num_examples, cap, dict(state.slots)
        )
        context.client, self.step = client, 0
        self._fire_client("on_client_start")
        self._broadcast(client, state)
        self._fire_client("on_broadcast")
        view = view_of(self.server, client.broadcast)
        seed = derive_seed(config.seed, context.round_idx, work.client_id, 0x5E)
        self.engine.begin(view, client.slots, state, seed, config.local.optimizer == "kept")
        self.before = like(self.adapter.read().clone(), self.server)

    def _broadcast(self, client: ClientContext, state: ClientState) -> None:
        rule = self.config.rule
        trains_a = "a" in rule.optimizer_sides()
        grown = any(not torch.equal(ids, state.slots[name]) for name, ids in client.slots.items())
        send_a = trains_a or grown or state.a_version != self.a_version
        generator = self._generator(client.client_id, 0xD1)
        wire = Wire(self.config.codecs.down, generator, rule.sends_slots, exact_a=not trains_a)
        client.broadcast = wire.broadcast(rule.broadcast(self.server, client.slots, send_a))
        client.download_bytes = wire.num_bytes
        state.a_version, state.slots = self.a_version, dict(client.slots)

    def _fire_client(self, hook: str) -> None:
        """Call a hook; a `ClientFailureError` in it leaves the client out."""
        assert self.context is not None and self.context.client is not None
        try:
            self.fire(hook, self.context)
        except ClientFailureError as failure:
            self.context.failures[failure.client_id] = failure.reason

    def finish_client(self) -> None:
        """Turn the current client's training into an update, or leave the client out."""
        assert self.context is not None and self.context.client is not None
        context, client = self.context, self.context.client
        state = self.states[client.client_id]
        client.after, client.diagonals = (
            like(self.adapter.read().clone(), self.server),
            {name: value.clone() for name, value in self.adapter.diagonals().items()},
        )
        if client.client_id not in context.failures:
            self._fire_client("on_client_end")
        if client.client_id not in context.failures:
            self._upload(client)
        self._clock(client)
        if client.client_id not in context.failures:
            self._fire_client("on_upload")
        reason = context.failures.get(client.client_id) or self._fault(client)
        if reason:
            context.failures[client.client_id] = reason
        else:
            assert client.update is not None
            self.engine.finish(state, self.config.local.optimizer == "kept")
            state.slots = client.slots
            if self.config.clients.keep_adapters:
                assert client.after is not None
                own = restricted(folded(client.after, client.diagonals), client.slots)
                state.adapter = {name: value.cpu() for name, value in own.tensors().items()}
            context.updates.append(client.update)
        client.broadcast, client.after, client.diagonals, client.update = Broadcast(), None, {}, None
        context.finished.append(client)
        context.client, self.before = None, None

    def _upload(self, client: ClientContext) -> None:
        assert self.context is not None and self.before is not None and client.after is not None
        rule = self.config.rule
        sides = rule.sides(self.context.round_idx)
        layers = rule.update(self.before, client.after, client.diagonals, client.slots, sides)
        dense = {name: value - self.before.dense[name] for name, value in client.after.dense.items()}
        update = Update(client.client_id, client.num_examples, layers, dense)
        wire = Wire(self.config.codecs.up, self._generator(client.client_id, 0x0B), rule.sends_slots, exact_a=False)
        client.update, client.upload_bytes = wire.update(update), wire.num_bytes

    def _clock(self, client: ClientContext) -> None:
        """Count the client's operations and, with a device, its simulated seconds."""
        assert self.context is not None
        sides = self.config.rule.sides(self.context.round_idx)
        trained = self.states[client.client_id].slots
        client.flops = training_flops(self.size, self.adapter, trained, sides, client.num_tokens)
        device = self.config.clients.device(client.client_id)
        if device is not None:
            noise = float(torch.randn((), generator=self._generator(client.client_id, 0x7C)))
            steady = device.seconds(client.flops, client.download_bytes, client.upload_bytes)
            client.seconds = steady * math.exp(device.jitter * noise)

    def _fault(self, client: ClientContext) -> str:
        budget = self.config.clients.round_seconds
        if budget is not None and client.seconds > budget:
            return "timeout"
        return fault_of(client.update, self.server)

    def finish_round(self) -> RoundContext:
        """Aggregate, apply, and leave the network with the server's next adapter.

        Raises:
            TooFewClientsError: If fewer clients than `cohort.min_survivors` gave a usable update; the server's adapter
                is then as it was before the round.
        """
        assert self.context is not None
        context, config = self.context, self.config
        self.context, self.schedule = None, None
        self.engine.drop()
        self.adapter.write(self.server)
        config.cohort.check_survivors(context.round_idx, len(context.updates), context.failures)
        updates = sorted(context.updates, key=lambda update: update.client_id)  # the order of arrival changes nothing
        aggregate = config.rule.aggregate(self.server, updates)
        context.previous = self.server
        self.server = context.server = config.server_optimizer.apply(self.server, aggregate)
        self.adapter.write(self.server)
        self.fire("on_aggregate", context)
        self.sync_server()
        context.server = self.server
        old = context.previous.layers
        if any(not torch.equal(old[name].a, layer.a) for name, layer in self.server.layers.items()):
            self.a_version += 1
        self.fire("on_round_end", context)
        return context

    def drop_round(self) -> None:
        """Give up the round in progress; the server keeps its adapter."""
        self.context, self.schedule, self.before = None, None, None
        self.engine.drop()
        self.adapter.write(self.server)
