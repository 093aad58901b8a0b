"""Rank pruning: a client drops the slots that carry little of its update, layer by layer, as training goes.

The importance of slot i is by default the energy of its rank-1 term, ``|lam_i| * ||b_i|| * ||a_i||``: |lam_i| alone is
not identifiable, since ``(b_i, lam_i) -> (c b_i, lam_i / c)`` leaves the model as it is. The energy rule is derived;
``sensitivity`` and the cubic schedule are those of Qingru Zhang et al., "AdaLoRA", ICLR 2023, arXiv 2303.10512,
eqs. 8-12, here with a budget for each layer and client instead of one for the network.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.adapters import Adapter, AdapterLayer
from pl_fed.callbacks._slot_importance import cubic_budget, slot_energy, slots_to_keep, smooth
from pl_fed.context import ClientContext, RoundContext
from pl_fed.errors import FederatedConfigError
from pl_fed.updates import AdapterState, Slots

Importance = Literal["energy", "lambda", "sensitivity"]
Schedule = Literal["energy", "cubic"]


class RankPruning(Callback):
    """Prunes each client's slots after its local training; without federation, the module's after each epoch.

    Args:
        eta: Share of the squared importance that the kept slots hold.
        min_rank: Fewest slots of a layer.
        max_share: Largest share of a layer's slots that one round may drop; ``cubic`` may always drop one.
        warmup_rounds: First rounds without pruning.
        final_share: Last share of the rounds without pruning, so that training settles.
        importance: ``energy``, ``lambda`` (the diagonal alone) or ``sensitivity`` (smoothed ``|p * grad|``).
        schedule: ``energy`` prunes by `eta`; ``cubic`` follows AdaLoRA's budget down to `min_rank`.
        regrow: Give a client back, at each broadcast, the strongest slots of the server that it does not hold, at
            most `max_share` of its cap, until the cap is reached, or the round's budget of `schedule: cubic`.
    """

    def __init__(
        self,
        eta: float = 0.99,
        min_rank: int = 1,
        max_share: float = 0.25,
        warmup_rounds: int = 2,
        final_share: float = 0.1,
        importance: Importance = "energy",
        schedule: Schedule = "energy",
        regrow: bool = False,
    ) -> None:
        for name, value in (("eta", eta), ("max_share", max_share), ("final_share", final_share)):
            if not 0.0 <= value <= 1.0:
                raise FederatedConfigError(f"Expected `{name}` of RankPruning in [0, 1] but got {value}.")
        if min_rank < 1 or warmup_rounds < 0:
            raise FederatedConfigError(
                f"Expected `min_rank` >= 1 and `warmup_rounds` >= 0 but got {min_rank} and {warmup_rounds}."
            )
        for name, choice, choices in (("importance", importance, Importance), ("schedule", schedule, Schedule)):
            if choice not in get_args(choices):
                raise FederatedConfigError(f"Expected `{name}` out of {get_args(choices)} but got `{choice}`.")
        self.eta, self.min_rank, self.max_share = eta, min_rank, max_share
        self.warmup_rounds, self.final_share = warmup_rounds, final_share
        self.importance, self.schedule, self.regrow = importance, schedule, regrow
        self.watches_steps = importance == "sensitivity"  # then clients cannot train together
        self._reset()

    def _reset(self) -> None:
        self._federated = False
        self._layers: dict[str, AdapterLayer] = {}
        self._smoothed: dict[str, tuple[Tensor, Tensor]] = {}  # of every entry, by layer and side
        self._plain_slots: Slots = {}  # without federation: what the module still has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget another run."""
        if stage == "fit":
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; what is zero in the module was pruned before."""
        if self.schedule == "cubic" and self._last(trainer.max_epochs) == math.inf:
            raise FederatedConfigError(
                "Expected a last round for `schedule: cubic` of RankPruning but the run has none: set `max_epochs`."
            )
        self._layers = Adapter(pl_module).layers
        found = {name: layer.a.any(1) | layer.b.any(0) for name, layer in self._layers.items()}
        self._plain_slots = {name: active.nonzero().flatten() for name, active in found.items()}

    def on_client_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Forget the last client's sensitivity; regrow if asked to."""
        assert context.client is not None
        self._federated, self._smoothed = True, {}
        if self.regrow and self._prunes(context.round_idx, context.num_rounds):
            budget = self._budget(context.client.rank_cap, context.round_idx, context.num_rounds)
            self._regrow(context.client, context.server, context.client.rank_cap if budget is None else budget)

    def on_client_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Drop slots from what the client uploads and holds from now on."""
        client = context.client
        assert client is not None and client.after is not None
        self._federated = True  # also in a round that was resumed in the middle
        if not self._prunes(context.round_idx, context.num_rounds):
            return
        pruned = dict(client.slots)
        for name, ids in client.slots.items():
            layer = client.after.layers[name]
            scores = self._scores(name, layer.a, layer.b, client.diagonals.get(name))[ids]
            pruned[name] = ids[self._keep(scores, client.rank_cap, context.round_idx, context.num_rounds)]
        client.slots = pruned

    def _last(self, num_rounds: int | None) -> float:
        """Return the first round of the final share; Lightning says -1 where epochs have no limit."""
        rounds = -1 if num_rounds is None else num_rounds
        return math.inf if rounds < 0 else rounds - math.ceil(self.final_share * rounds - 1e-9)

    def _prunes(self, round_idx: int, num_rounds: int | None) -> bool:
        return self.warmup_rounds <= round_idx < self._last(num_rounds)

    def _budget(self, cap: int, round_idx: int, num_rounds: int | None) -> int | None:
        if self.schedule != "cubic":
            return None
        progress = (round_idx + 1 - self.warmup_rounds) / (self._last(num_rounds) - self.warmup_rounds)
        return cubic_budget(cap, self.min_rank, progress)

    def _keep(self, scores: Tensor, cap: int, round_idx: int, num_rounds: int | None) -> Tensor:
        budget = self._budget(cap, round_idx, num_rounds)
        return slots_to_keep(scores, self.eta, self.min_rank, self.max_share, budget)

    def _scores(self, name: str, a: Tensor, b: Tensor, diagonal: Tensor | None) -> Tensor:
        if self.importance == "energy":
            return slot_energy(a, b, diagonal)
        if self.importance == "lambda":
            if diagonal is None:
                raise FederatedConfigError(
                    "Expected a rule with a learnable diagonal for `importance: lambda` but this one has none: use "
                    "`energy`, or AFLoRA with `train_diagonal: true`."
                )
            return diagonal.abs()
        total = torch.zeros_like(b[0], dtype=torch.float32)
        for side in ("a", "b", "diagonal"):
            if f"{name}/{side}" in self._smoothed:
                mean, uncertainty = self._smoothed[f"{name}/{side}"]
                entries = mean * uncertainty
                total = total + (entries if entries.dim() == 1 else entries.mean(1 if side == "a" else 0))
        return total

    def _regrow(self, client: ClientContext, server: AdapterState, budget: int) -> None:
        for name, ids in client.slots.items():
            most = min(budget, server.layers[name].a.shape[0])
            room = min(most - len(ids), max(1, math.floor(self.max_share * client.rank_cap)))
            energy = slot_energy(server.layers[name].a, server.layers[name].b)
            energy[ids] = -1.0
            new = torch.argsort(energy, descending=True, stable=True)[: max(0, room)]
            client.slots[name] = torch.sort(torch.cat([ids, new])).values

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Smooth ``|p * grad|`` of every entry (AdaLoRA, eq. 8, with its 0.85 for both averages)."""
        if self.importance != "sensitivity":
            return
        for name, layer in self._layers.items():
            for side, p in (("a", layer.a), ("b", layer.b), ("diagonal", layer.diagonal)):
                if p is not None and p.grad is not None:
                    score = (p.detach() * p.grad).abs().float()
                    self._smoothed[f"{name}/{side}"] = smooth(self._smoothed.get(f"{name}/{side}"), score)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Under a plain Trainer, zero the weak slots of the module itself; they stay zero."""
        if self._federated or not self._prunes(trainer.current_epoch, trainer.max_epochs):
            return
        for name, layer in self._layers.items():
            ids = self._plain_slots[name]
            scores = self._scores(name, layer.a, layer.b, layer.diagonal).detach()[ids]
            kept = ids[self._keep(scores, layer.a.shape[0], trainer.current_epoch, trainer.max_epochs)]
            _zero_others(layer, kept)
            self._plain_slots[name] = kept

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Undo what the optimizer's momentum did to pruned slots."""
        if not self._federated:
            for name, kept in self._plain_slots.items():
                if len(kept) < self._layers[name].a.shape[0]:
                    _zero_others(self._layers[name], kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the running sensitivity and whether rounds are run."""
        return {"smoothed": {key: list(pair) for key, pair in self._smoothed.items()}, "federated": self._federated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._smoothed = {key: (pair[0], pair[1]) for key, pair in state_dict["smoothed"].items()}
        self._federated = state_dict["federated"]


@torch.no_grad()
def _zero_others(layer: AdapterLayer, kept: Tensor) -> None:
    others = torch.ones_like(layer.b[0], dtype=torch.bool).index_fill_(0, kept, False)
    layer.a[others] = 0.0
    layer.b[:, others] = 0.0
    if layer.diagonal is not None:
        layer.diagonal[others] = 0.0
