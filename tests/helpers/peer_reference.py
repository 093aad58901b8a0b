"""The peers of AFLoRA in plain torch: a loop over rounds and clients that changes base weights in place.

Nothing of pl_fed is used. What both sides must share is given from outside: the schedule with each client's seed, and
the factors that FLoRA draws. Products are dense, decompositions those of the dense matrices, penalties are part of the
loss. Slots beyond a client's rank are masked; ranks are kept by client and layer, for HetLoRA's pruning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.helpers.reference import Visit

SIDES = {"ffa": "b", "fedsvd": "b"}  # what clients train; the others train both
SVD = ("flex", "fedsvd")


@dataclass
class Peers:
    """A federation of one method; `run` leaves the network with the server's model.

    Args:
        model: A network with peft's LoRA layers, in float64.
        loss: Loss of a batch.
        method: Name of the method.
        make_optimizer: Makes the clients' optimizer.
        redraw: New factors A of all layers for a round, for ``flora``.
        options: Factors of the method.
    """

    model: nn.Module
    loss: Callable[[dict[str, Tensor]], Tensor]
    method: str
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    redraw: Callable[[int], list[Tensor]] | None = None
    options: dict[str, float] = field(default_factory=dict)
    ranks: dict[int, list[int]] = field(default_factory=dict)  # by client, then layer
    own: dict[int, list[Tensor]] = field(default_factory=dict)  # B that stays on the client
    variates: dict[int, list[Tensor]] = field(default_factory=dict)  # of SCAFFOLD's clients

    def __post_init__(self) -> None:
        self.layers = [m for m in self.model.modules() if "default" in getattr(m, "lora_A", {})]
        self.pairs = [(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in self.layers]
        self.trained = [p for pair in self.pairs for p in pair]
        self.variate = [torch.zeros_like(p) for p in self.trained]
        self.population = 4

    def sides(self, round_idx: int) -> str:
        if self.method == "rolora":
            return "a" if round_idx % 2 else "b"
        return SIDES.get(self.method, "ab")

    def run(self, rounds: Sequence[Sequence[Visit]]) -> None:
        for a, b in self.pairs:
            a.requires_grad_("a" in SIDES.get(self.method, "ab"))
            b.requires_grad_(True)
        optimizer = self.make_optimizer([p for p in self.trained if p.requires_grad])
        for round_idx, visits in enumerate(rounds):
            for a, b in self.pairs:
                a.requires_grad_("a" in self.sides(round_idx))
                b.requires_grad_("b" in self.sides(round_idx))
            server = [(a.detach().clone(), b.detach().clone()) for a, b in self.pairs]
            sent = []
            for visit in visits:
                start = self.load(server, visit)
                optimizer.state.clear()
                optimizer.zero_grad()
                torch.manual_seed(visit.seed)
                gradients = self.train(visit, optimizer, start)
                sent.append((visit, *self.collect(visit, server, start, gradients)))
            sent.sort(key=lambda item: item[0].client_id)
            with torch.no_grad():
                self.aggregate(server, sent, round_idx)

    @torch.no_grad()
    def load(self, server: list[tuple[Tensor, Tensor]], visit: Visit) -> list[Tensor]:
        held = self.ranks.setdefault(visit.client_id, [visit.rank] * len(self.pairs))
        for i, ((a, b), (a0, b0)) in enumerate(zip(self.pairs, server, strict=True)):
            a.copy_(a0)
            b.copy_(self.own[visit.client_id][i] if visit.client_id in self.own else b0)
            a[held[i] :], b[:, held[i] :] = 0.0, 0.0
        return [p.detach().clone() for p in self.trained]

    def train(self, visit: Visit, optimizer: torch.optim.Optimizer, start: list[Tensor]) -> list[Tensor]:
        """Train a client; return the sums of its plain gradients."""
        sums = [torch.zeros_like(p) for p in self.trained]
        mine = self.variates.get(visit.client_id, [torch.zeros_like(p) for p in self.trained])
        drift = [self.within(visit, i, c - k) for i, (c, k) in enumerate(zip(self.variate, mine, strict=True))]
        for batch in visit.batches:
            optimizer.zero_grad()
            loss = self.loss(batch)
            if self.method == "hetlora":
                loss = loss + self.penalty(visit)
            loss.backward()
            for p, w, total, c in zip(self.trained, start, sums, drift, strict=True):
                if p.grad is not None:
                    total += p.grad
                    p.grad += self.options.get("mu", 0.0) * (p.detach() - w)
                    p.grad += c if "scaffold" in self.options else 0.0
            optimizer.step()
        return [total / len(visit.batches) for total in sums]

    def within(self, visit: Visit, index: int, value: Tensor) -> Tensor:
        """Zero beyond the client's slots; `index` counts A, B of the first layer, A, B of the second."""
        rank, value = self.ranks[visit.client_id][index // 2], value.clone()
        (value if index % 2 == 0 else value.T)[rank:] = 0.0
        return value

    def tail(self, client_id: int, i: int, pair: Sequence[Tensor]) -> Tensor:
        """The product of the tail's norms, with a gradient."""
        rank = self.ranks[client_id][i]
        head = max(1, int(self.options["gamma"] * rank))
        return pair[0][head:rank].norm() * pair[1][:, head:rank].norm()

    def penalty(self, visit: Visit) -> Tensor:
        terms = [self.tail(visit.client_id, i, pair) for i, pair in enumerate(self.pairs)]
        return self.options["penalty"] * torch.stack(terms).sum()

    @torch.no_grad()
    def collect(
        self, visit: Visit, server: list[tuple[Tensor, Tensor]], start: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[int], list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Return the client's ranks, its whole factors, and the change of its variate."""
        own = [(a.detach().clone(), b.detach().clone()) for a, b in self.pairs]
        if self.method == "hetlora":
            for i, pair in enumerate(own):
                rank = self.ranks[visit.client_id][i]
                if self.tail(visit.client_id, i, pair) < self.tail(
                    visit.client_id, i, (start[2 * i], start[2 * i + 1])
                ):
                    self.ranks[visit.client_id][i] = rank = max(1, int(self.options["gamma"] * rank))
                pair[0][rank:], pair[1][:, rank:] = 0.0, 0.0
        if self.method == "fedsa":
            self.own[visit.client_id] = [b for _, b in own]
        change = []
        if "scaffold" in self.options:  # option II, from the client's way
            steps = len(visit.batches) * self.options["scaffold"]
            mine = self.variates.get(visit.client_id, [torch.zeros_like(p) for p in self.trained])
            for i, (p, w, c) in enumerate(zip(self.trained, start, self.variate, strict=True)):
                change.append(self.within(visit, i, (w - p) / steps - c))
            self.variates[visit.client_id] = [k + d for k, d in zip(mine, change, strict=True)]
        return list(self.ranks[visit.client_id]), own, change

    def aggregate(self, server: list[tuple[Tensor, Tensor]], sent: list, round_idx: int) -> None:
        examples = torch.tensor([visit.num_examples for visit, *_ in sent], dtype=torch.float64)
        drawn = self.redraw(round_idx) if self.redraw is not None else []
        for i, ((a, b), (a0, b0)) in enumerate(zip(self.pairs, server, strict=True)):
            shares = list(examples / examples.sum())
            own = [(ranks[i], *factors[i]) for _, ranks, factors, _ in sent]
            mean_a, mean_b = a0.clone(), b0.clone()
            dense = b0 @ a0
            for p, (rank, x, y) in zip(shares, own, strict=True):
                mean_a[:rank] += p * (x - a0)[:rank]
                mean_b[:, :rank] += p * (y - b0)[:, :rank]
                dense += p * (y @ x - b0[:, :rank] @ a0[:rank])
            if self.method == "fedsa":
                mean_b = b0
            if self.method == "hetlora":
                norms = torch.stack([(y @ x).norm() for _, x, y in own])
                weights = norms / norms.sum()
                mean_a = sum(w * x for w, (_, x, _) in zip(weights, own, strict=True))
                mean_b = sum(w * y for w, (_, _, y) in zip(weights, own, strict=True))
            if self.method == "flex":
                dense = sum(p * y @ x for p, (_, x, y) in zip(shares, own, strict=True))
            if self.method == "fair":
                gram = mean_a @ mean_a.T + self.options["lambda"] * torch.eye(a.shape[0], dtype=a.dtype)
                mean_b = mean_b + (dense - mean_b @ mean_a) @ mean_a.T @ torch.linalg.inv(gram)
            if self.method in SVD:
                u, s, vh = torch.linalg.svd(dense if self.method == "flex" else mean_b @ mean_a)
                mean_a, mean_b = vh[: a.shape[0]], (u[:, : s.shape[0]] * s)[:, : a.shape[0]]
            if self.method == "flora":
                self.add_to_base(i, dense)
                mean_a, mean_b = drawn[i], torch.zeros_like(b)
            if self.method == "fedex":
                self.add_to_base(i, dense - mean_b @ mean_a)
            a.copy_(mean_a)
            b.copy_(mean_b)
        if "scaffold" in self.options:
            for *_, change in sent:
                for c, d in zip(self.variate, change, strict=True):
                    c += d / self.population

    def add_to_base(self, i: int, change: Tensor) -> None:
        layer = self.layers[i]
        scaled = layer.scaling["default"] * change
        layer.get_base_layer().weight += scaled.T if layer.fan_in_fan_out else scaled
