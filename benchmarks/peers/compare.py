"""The same federated work on pl_fed and on other frameworks, in turn: seconds of a round, memory, and one adapter.

Each peer gets a virtual environment of its own, made once (about 1 GB each). Every runner has one thread a process,
starts from the same adapter, trains on the same batches and must end with the same adapter; one that does not is an
error, and the exit status says so. What the work is stands in `workload.py`.

    python benchmarks/peers/compare.py [--runners plain pfl packed] [--batch-sizes 1 4] [--rounds 6] [--repeats 3]
"""

import argparse
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from environments import NoEnvironmentError, environment
from processes import RunFailedError, run
from report import plot, summaries, table
from runners import RUNNERS, Runner
from workload import CLIENTS, LENGTH, STEPS, VOCAB, network, trained

from pl_fed.loaders import RoundPlan
from pl_fed.rounds import CohortConfig, LocalTraining

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pl_fed-peers"


def write_work(path: Path, rounds: int, batch_size: int) -> None:
    """Write the first adapter, and every batch in the order in which pl_fed draws them."""
    per_client = STEPS * batch_size
    examples = torch.randint(0, VOCAB, (CLIENTS * per_client, LENGTH), generator=torch.Generator().manual_seed(2))
    plan = RoundPlan([list(range(k * per_client, (k + 1) * per_client)) for k in range(CLIENTS)], batch_size)
    plan.bind(CohortConfig(), LocalTraining(steps=STEPS), seed=0)
    batches = torch.empty(rounds, CLIENTS, STEPS, batch_size, LENGTH, dtype=torch.long)
    for round_idx in range(rounds):
        for client in plan.schedule(round_idx).work:
            batches[round_idx, client.client_id] = examples[torch.tensor(client.batches)]
    adapter = {name: parameter.detach() for name, parameter in trained(network()).items()}
    torch.save({"adapter": adapter, "batches": batches, "examples": examples}, path)


def variables(runner: Runner) -> dict[str, str]:
    """Return a runner's environment: what is set here for threads, distribution or imports must not reach a peer."""
    dropped = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    here = Path(__file__).parent
    paths = [str(here)] if runner.peer else [str(here), str(here.parents[1])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **threads, **offline, **dict(runner.variables), "PYTHONPATH": os.pathsep.join(paths)}


def run_once(runner: Runner, python: Path, work: Path, folder: Path, timeout: float) -> dict[str, Any]:
    """Return what one start of a runner measured, with its adapter; or an ``error``."""
    adapter = folder / "adapter.pt"
    adapter.unlink(missing_ok=True)
    command = [str(python), *runner.launcher, str(Path(__file__).with_name(runner.script))]
    try:
        found = run([*command, str(work), str(adapter), *runner.arguments], variables(runner), timeout)
    except RunFailedError as error:
        return {"error": str(error)}
    return {**found, "adapter": torch.load(adapter)}


def pythons(names: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the Python of each runner, and why some have none."""
    found, missing = {}, {}
    for name in names:
        peer = RUNNERS[name].peer
        try:
            found[name] = environment(peer, folder) if peer else Path(sys.executable)
        except NoEnvironmentError as error:
            missing[name] = f"its environment cannot be made: {error}"
    return found, missing


def measure(options: argparse.Namespace, batch_size: int, found: dict[str, Path]) -> list[dict[str, Any]]:
    """Start every runner in turn, again and again; an interrupt leaves what has been measured."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "work.pt"
        write_work(work, options.rounds, batch_size)
        start = torch.load(work)["adapter"]
        try:
            for repeat, runner in itertools.product(range(options.repeats), found):
                result = run_once(RUNNERS[runner], found[runner], work, Path(name), options.timeout)
                runs.append({"runner": runner, "batch_size": batch_size, "repeat": repeat, "start": start, **result})
                seconds = [round(value, 3) for value in result.get("seconds", [])]
                print(f"batch {batch_size}, {runner}: {result.get('error') or seconds}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("Interrupted: the rest is left out", file=sys.stderr)
    return runs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = ", ".join(f"{name} ({runner.title})" for name, runner in RUNNERS.items())
    parser.add_argument("--runners", nargs="+", default=list(RUNNERS), choices=RUNNERS, help=about, metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=6, help="of each start; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3, help="starts of each runner, in turn")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one start")
    parser.add_argument("--environments", type=Path, default=CACHE, help="folder of the peers' environments")
    parser.add_argument("--output", type=Path, default=Path("runs/peers.json"), help="also the picture's name (.png)")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("expected `--rounds` of at least 3: the first is not counted, and one peer cannot time its last")
    return options


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # runners must not outlive this process
    found, missing = pythons(options.runners, options.environments)
    rows = []
    for batch_size in options.batch_sizes:
        failed = [{"runner": name, "batch_size": batch_size, "error": why} for name, why in missing.items()]
        rows += summaries([*measure(options, batch_size, found), *failed])
        print(table([row for row in rows if row["batch_size"] == batch_size]), flush=True)
    settings = {"rounds": options.rounds, "repeats": options.repeats, "clients": CLIENTS, "steps": STEPS}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    everything = {"rows": rows, **settings, **machine, **versions, "date": date.today().isoformat()}
    options.output.write_text(json.dumps(everything, indent=1) + "\n")
    plot(rows, options.output.with_suffix(".png"))
    wrong = sorted({row["runner"] for row in rows if row.get("differs")})
    if wrong:
        print(f"ERROR: the adapters of these differ from the first runner's: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
