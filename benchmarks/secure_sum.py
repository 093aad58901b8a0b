"""What one secure sum costs: seconds and peak memory of each step, clients and server apart, in one process.

The vectors are made when a client masks one and thrown away afterwards, so the peak is that of the server, of the
messages on their way and of one client. Linux only (the peak is read from /proc and reset for every step).

    python benchmarks/secure_sum.py [--clients 100] [--params 1000000] [--dropouts 5] [--ring 32]
"""

import argparse
import json
import platform
import secrets
import time
from datetime import date
from pathlib import Path

import cryptography
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pl_fed.privacy import Ring
from pl_fed.privacy.pairwise import (
    PairwiseClient,
    PairwiseServer,
    Roster,
    Session,
    Step,
    default_threshold,
    public_key,
)


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def vector(client_id: int, num_values: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(client_id)
    return torch.randint(-(2**21), 2**21, (num_values,), generator=generator)


def measure(
    server: PairwiseServer,
    parties: dict[int, PairwiseClient],
    senders: list[int],
    inbox: dict[int, bytes],
    base_mb: float,
) -> tuple[dict[int, bytes], dict[str, float]]:
    """Run one step; return the server's messages, and seconds, memory and bytes."""
    reset_peak()
    clients_seconds = server_seconds = 0.0
    num_up = 0
    for who in senders:
        start = time.perf_counter()
        message = parties[who].receive(inbox.pop(who)) if inbox else parties[who].start()
        middle = time.perf_counter()
        server.receive(message)
        clients_seconds += middle - start
        server_seconds += time.perf_counter() - middle
        num_up += len(message)
    start = time.perf_counter()
    answers = server.advance()
    server_seconds += time.perf_counter() - start
    return answers, {
        "seconds_per_client": round(clients_seconds / len(senders), 4),
        "seconds_server": round(server_seconds, 3),
        "peak_mb_above_start": round(memory_mb("VmHWM") - base_mb, 1),
        "up_bytes_per_client": num_up // len(senders),
        "down_bytes_per_client": sum(map(len, answers.values())) // max(len(answers), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--dropouts", type=int, default=5, help="clients that fall silent before sending a vector")
    parser.add_argument("--ring", type=int, default=32, choices=(32, 64))
    options = parser.parse_args()
    torch.set_num_threads(1)
    identity = Ed25519PrivateKey.generate()
    identities = {who: Ed25519PrivateKey.generate() for who in range(options.clients)}
    roster = Roster(public_key(identity), {who: public_key(key) for who, key in identities.items()})
    threshold, ring = default_threshold(options.clients), Ring(options.ring)
    session = Session(secrets.token_bytes(32), roster, threshold, ring, options.params)
    server = PairwiseServer(identity, session)
    parties = {
        who: PairwiseClient(who, key, session, lambda who=who: vector(who, options.params))
        for who, key in identities.items()
    }
    base_mb = memory_mb("VmRSS")
    inbox: dict[int, bytes] = {}
    steps = {}
    for step in Step:
        senders = list(inbox) or list(parties)
        if step >= Step.MASKED_INPUT:
            senders = [who for who in senders if who >= options.dropouts]
        inbox, steps[step.name] = measure(server, parties, senders, inbox, base_mb)
    assert server.result is not None
    expected = sum((vector(who, options.params) for who in server.result.survivors), torch.tensor(0))
    result = {
        "right": torch.equal(server.result.total, ring.wrap(expected)),
        "survivors": len(server.result.survivors),
        "threshold": threshold,
        "all_vectors_would_be_mb": round(options.clients * options.params * ring.word_bytes / 2**20, 1),
        "steps": steps,
        "settings": vars(options),
        "cryptography": cryptography.__version__,
        "machine": platform.processor() or platform.machine(),
        "date": date.today().isoformat(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
