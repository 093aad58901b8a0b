"""The audit under each defence: what every attack still finds when the clients do something about it.

All clients are simulated on the owner's data. An attack sees a defended sum and nothing else; where nothing is sent, or
a client is not separated, the server can only guess, and so the guess is what counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pl_fed.attacks.audit import AuditSettings, Batch, SimulatedClients
from pl_fed.attacks.cut_norm import Forward
from pl_fed.attacks.defended import LARGEST_PROTOCOL, Defence, Sent, right_coordinates
from pl_fed.attacks.defended_attacks import FISHING, SAME, TRUE_MIX, Simulation

DEFENCES = (
    Defence("none", "none"),
    Defence("quantisation", "quantisation"),
    Defence("clipping", "clipping"),
    Defence("model binding", "binding"),
    Defence("DP 0.1", "dp", 0.1),
    Defence("DP 0.3", "dp", 0.3),
    Defence("DP 1", "dp", 1.0),
    Defence("local norm layers", "local_norms"),
    Defence("tripwire", "tripwire"),
    Defence("tripwire, evaded", "evaded"),
)
SCALES = (1.0, 0.3, 0.1)  # sizes of the embeddings that the server may choose from
NOISE_DRAWS = 5  # a figure under noise is the mean over as many
NOTES = {
    "none": "An exact sum.",
    "quantisation": "The federation's own fixed-point sum.",
    "clipping": "Every head update is clipped at the median norm; the server does not know the scale.",
    "dp": "As clipping, and Gaussian noise of {noise:g} times the clip on each round's sum; mean of {draws} draws.",
    "local_norms": "Clients keep their norm layers, so the server does not know the embeddings; the bias still tells.",
    "binding": "With one model for all (same model, and honest rounds) the hashes are equal: nothing is refused.",
    "tripwire": (
        "Clients whose tripwire rings send nothing; the server does not know of it. Clients that are no target of a "
        "round are sent a model that leaves nothing to judge, and do not ring."
    ),
    "evaded": "The server knows of the tripwire and crafts a norm weight that is small but not 0.",
}


@dataclass(frozen=True)
class DefenceRow:
    """What one attack finds under one defence.

    Args:
        attack: The attack.
        defence: The defence.
        label_accuracy: Mean label accuracy over clients.
        exact_match: Share of the clients whose counts are all right.
        guess: Label accuracy of guessing a uniform mix.
        rank: Rank of the linear system; None where the attack has none, or nothing was sent.
        condition: Its condition number; None as above, or if it is infinite.
        margin: Largest rounding margin; None as above.
        blocked: Share of the clients from which nothing reached the server.
        alarms: Share of the clients whose tripwire rang; None without one.
        noise_multiplier: Noise of the defence, 0 for clipping alone; None where the scale of updates is known.
        note: A sentence on what the figures rest on.
    """

    attack: str
    defence: str
    label_accuracy: float
    exact_match: float
    guess: float
    rank: int | None = None
    condition: float | None = None
    margin: float | None = None
    blocked: float = 0.0
    alarms: float | None = None
    noise_multiplier: float | None = None
    note: str = ""


def audit_defences(
    module: nn.Module,
    forward: Forward,
    clients: SimulatedClients[Batch],
    settings: AuditSettings,
    defences: Sequence[Defence] = DEFENCES,
) -> tuple[DefenceRow, ...]:
    """Run every attack under every defence.

    The attacks: a model for each client (fishing); one crafted model for all, solved over rounds with changing cohorts;
    LLG and iLRG on an honest round's sum; and what the true mix of all clients would give, which takes no update. Of
    crafted models the server chooses the size of the embeddings at which it finds most.

    Args:
        module: The module; parameters, buffers, flags and random states come back as they were.
        forward: Runs it on a batch of noise.
        clients: The clients with their data.
        settings: How they train and what sums their updates.
        defences: The defences.

    Raises:
        CannotAttackError: If the attack does not apply to the module or its loss.
    """
    scales = dict.fromkeys((settings.scale, *SCALES))
    simulations = [Simulation(module, forward, clients, settings, scale) for scale in scales]
    return tuple(_best(simulations, attack, defence) for attack in simulations[0].attacks for defence in defences)


def _best(simulations: Sequence[Simulation[Batch]], attack: str, defence: Defence) -> DefenceRow:
    """Return the row of the embeddings' size that the server would choose; the first of equals."""
    crafted = attack in (FISHING, SAME)
    rows = [_row(simulation, attack, defence) for simulation in (simulations if crafted else simulations[:1])]
    return max(rows, key=lambda row: row.label_accuracy)


def _row(simulation: Simulation[Batch], attack: str, defence: Defence) -> DefenceRow:
    draws = NOISE_DRAWS if defence.kind == "dp" and attack != TRUE_MIX else 1
    outcomes = [simulation.run(attack, defence, draw) for draw in range(draws)]
    scores = torch.stack([simulation.scores(outcome) for outcome in outcomes]).mean(0)
    accuracy, exact, guessed, blocked = scores.tolist()
    sent, recovery = simulation.sent(attack, defence), outcomes[0].recovery
    alarms = float(sent.alarms.double().mean()) if defence.watches else None
    note = _note(attack, defence, sent)
    noise = defence.noise_multiplier if defence.clips else None
    figures = {"blocked": blocked, "alarms": alarms, "noise_multiplier": noise}
    row = DefenceRow(attack, defence.name, accuracy, exact, guessed, **figures, note=note)
    if recovery is None:
        return row
    condition, margin = _finite(recovery.condition), _finite(recovery.margin)
    return replace(row, rank=recovery.rank, condition=condition, margin=margin)


def _note(attack: str, defence: Defence, sent: Sent) -> str:
    if attack == TRUE_MIX:
        return "What knowing the label mix of all clients together would give; it takes no update."
    if defence.kind == "binding" and len(set(sent.contexts)) > 1:
        right, num_clients = right_coordinates(sent), min(len(sent.updates), LARGEST_PROTOCOL)
        return (
            f"The clients compare hashes, name the round and send nothing; did they not, {right:.1%} of the "
            f"coordinates of a masked sum of {num_clients} clients would be right."
        )
    return NOTES[defence.kind].format(noise=defence.noise_multiplier, draws=NOISE_DRAWS)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
