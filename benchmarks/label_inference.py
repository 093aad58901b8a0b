"""What the label inference audit recovers, case by case: the tables of docs/label_inference.md.

Eight clients of 32 of scikit-learn's digits (without it, of noise) or of Fashion-MNIST's test images, averaged to
8 x 8; label mixes from Dirichlet(0.5); means over seeds.

    python benchmarks/label_inference.py [--seeds 3] [--part cases|tripwire|evasion|defences] [--images fashion-mnist]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the small networks are those of the tests

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.audit import AuditSettings, SimulatedClients
from pl_fed.attacks.baselines import guess, ilrg, llg, mean_gradient, spread_mix
from pl_fed.attacks.defences import DefenceRow, audit_defences
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.quantise import FixedPointSum
from pl_fed.attacks.report import mix_of
from pl_fed.attacks.simulate import aggregate, client_update
from pl_fed.attacks.solve import Correction, recover
from pl_fed.attacks.tripwire import Reading
from tests.helpers import audited
from tests.helpers.audited import (
    NETS,
    Attacked,
    evade,
    images_of,
    label_draws,
    mlp,
    models_for,
    play,
    reading_of,
    small_cnn,
    train_a_little,
)
from tests.helpers.fashion_mnist import fashion_mnist
from tests.helpers.plain_inverse import plain_counts, under_noise

Result = tuple[float, float, float]  # label accuracy, exact matches, what guessing gives
Case = Callable[[int], Result]
NOISE = (0.1, 0.3, 1.0)


def compared(counts: Tensor, true: Tensor) -> Result:
    guessed = label_accuracy(guess(true.shape[1], true.sum(1)), true)
    return (
        float(label_accuracy(counts, true).mean()),
        float(exact_match(counts, true).double().mean()),
        float(guessed.mean()),
    )


def attacked(played: Attacked, correction: Correction = "auto") -> Result:
    return compared(recover(played.observation, correction).counts, played.true)


def plain(played: Attacked) -> Result:
    return compared(plain_counts(played.observation), played.true)


def noised(noise_multiplier: float, solve: Callable[[Attacked], Result], clips: bool = False) -> Case:
    """Client-level DP: the clip is the largest norm; with `clips`, on another network, the median: an unknown scale."""

    def case(seed: int) -> Result:
        net, alpha = (mlp(), 0.5) if clips else (small_cnn(), 1.2)
        played = play(net, label_draws([32] * 8, alpha=alpha, seed=seed), scale=0.3, scale_known=not clips)
        clip = statistics.median(float(update.flat().norm()) for update in played.updates)
        return solve(under_noise(played, noise_multiplier, seed, clip if clips else None))

    return case


def baseline(name: str) -> Case:
    """An honest round of the same clients; every client is given the estimated mix."""

    def case(seed: int) -> Result:
        net, labels = small_cnn(), label_draws([32] * 8, seed=seed)
        played = play(net, labels)
        models = played.observation.models
        updates = [
            client_update(
                net,
                played.target,
                None,
                [(images_of(own, k), own)],
                lambda b: nn.functional.cross_entropy(net(b[0]), b[1]),
                LocalSteps(),
            )
            for k, own in enumerate(labels)
        ]
        gradient = mean_gradient(aggregate(updates, torch.ones(8, dtype=torch.float64)), 1.0, 8.0)
        assert models.head_bias is not None
        mix = {
            "LLG": lambda: llg(gradient, 256),
            "iLRG": lambda: ilrg(gradient, models.head_weight, models.head_bias, 256),
            "true aggregate mix": lambda: mix_of(played.true),
        }[name]()
        return compared(spread_mix(mix, played.true.sum(1)), played.true)

    return case


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name, make in NETS.items():
        found[f"{name}, N = 8, B = 32"] = lambda s, m=make: attacked(play(m(), label_draws([32] * 8, seed=s)))
        if name != "bn2d_flatten":
            found[f"{name}, N = 16, B = 256"] = lambda s, m=make: attacked(play(m(), label_draws([256] * 16, seed=s)))
    for lr in (1.0, 0.1, 0.01):
        for bits in (22, 20, 16, 12, 8):
            found[f"{bits} bits, clip 8, lr {lr:g}"] = lambda s, lr=lr, bits=bits: attacked(
                play(small_cnn(), label_draws([32] * 8, seed=s), LocalSteps(lr=lr), secure_sum=FixedPointSum(bits))
            )
    found |= {f"{which}, {case}": local for which in ("trajectory", "naive") for case, local in steps(which).items()}
    for width in (64, 512):
        for scale in (1.0, 0.1):
            found[f"dropout .5, d = {width}, s = {scale:g}"] = lambda s, w=width, scale=scale: attacked(
                play(mlp(w, dropout=0.5), label_draws([32] * 8, seed=s), scale=scale)
            )
    found |= {name: baseline(name) for name in ("LLG", "iLRG", "true aggregate mix")}
    for name, solve in (("ours", attacked), ("plain inverse", plain)):
        found |= {
            f"client-level DP, Dirichlet(1.2), noise multiplier {nm:g}, {name}": noised(nm, solve) for nm in NOISE
        }
    return found | {
        f"the same on a BN1d-ReLU-FC network, clipped, Dirichlet(.5), {nm:g}": noised(nm, attacked, True)
        for nm in NOISE
    }


def steps(correction: Correction) -> dict[str, Case]:
    def case(local: LocalSteps, fresh: bool) -> Case:
        return lambda s: attacked(small_steps(local, fresh, s), correction)

    found = {f"{n} steps, all data each": case(LocalSteps(n, 0.01), False) for n in (4, 20)}
    found |= {f"{n} steps, a batch each": case(LocalSteps(n, 0.01), True) for n in (4, 20)}
    found["4 steps, a batch each, momentum .9"] = case(LocalSteps(4, 0.01, 0.9), True)
    if correction == "naive":
        adam = LocalSteps(4, 0.01, optimizer="adam")
        found["4 steps, a batch each, Adam"] = case(adam, True)
        found["4 steps, a batch each, Adam, plain inverse"] = lambda s: plain(small_steps(adam, True, s))
    return found


def small_steps(local: LocalSteps, fresh: bool, seed: int) -> Attacked:
    sizes = [32 * local.steps if fresh else 32] * 8
    return play(small_cnn(), label_draws(sizes, seed=seed), local, scale=0.3, fresh_batches=fresh)


def print_cases(seeds: range) -> None:
    print("| case | label accuracy | exact matches | guess |\n|---|---|---|---|")
    for name, case in cases().items():
        rows = []
        for seed in seeds:
            torch.manual_seed(seed)
            rows.append(case(seed))
        print(f"| {name} | {' | '.join(means(rows))} |", flush=True)


def means(rows: list[Result]) -> list[str]:
    return [f"{statistics.mean(column):.3f}" for column in zip(*rows, strict=True)]


def print_tripwire(seeds: range) -> None:
    """Honest models: the worst over seeds and eight batches of 32, which is the margin to a false alarm."""
    print(
        "| network | trained | smallest std/mean | most flagged | least variance/energy | alarms |\n" + "|---" * 6 + "|"
    )
    for name, make in NETS.items():
        found: dict[int, list[Reading]] = {0: [], 200: []}
        for seed in seeds:
            torch.manual_seed(seed)
            net = make()
            target, _ = models_for(net, 1)
            for steps, readings in found.items():
                train_a_little(net, steps)
                for own in label_draws([32] * 8, seed=seed):
                    readings.append(reading_of(net, target, images_of(own, seed)))
        for steps, readings in found.items():
            least, flagged = min(r.smallest_spread for r in readings), max(r.flagged_share for r in readings)
            energy, alarms = min(r.variance_share for r in readings), sum(r.fished for r in readings)
            print(
                f"| {name} | {steps} steps | {least:.2g} | {flagged:.3f} | {energy:.2g} | {alarms} of {len(readings)} |"
            )


def print_evasion(seeds: range) -> None:
    """Crafted models whose norm weight is not quite 0."""
    print("| network, norm weight | alarms | label accuracy | exact matches | guess |\n|---|---|---|---|---|")
    for name in ("small_cnn", "bn2d_pool", "vit", "bert"):
        for norm_weight in (0.0, 1e-3, 1e-2, 1e-1):
            rows, alarms = [], []
            for seed in seeds:
                torch.manual_seed(seed)
                played, rang = evade(NETS[name](), label_draws([32] * 8, seed=seed), norm_weight)
                rows.append(attacked(played))
                alarms.append(rang)
            print(
                f"| {name}, {norm_weight:g} | {statistics.mean(alarms):.2f} | {' | '.join(means(rows))} |", flush=True
            )


def print_defences(seeds: range) -> None:
    """Every attack under every defence on the small CNN."""
    found: dict[tuple[str, str], list[DefenceRow]] = {}
    for seed in seeds:
        torch.manual_seed(seed)
        net, labels = small_cnn(), label_draws([32] * 8, seed=seed)
        true = torch.stack([torch.bincount(own, minlength=10) for own in labels])
        batches = [[(images_of(own, k), own)] for k, own in enumerate(labels)]
        loss, noise = (lambda b, n=net: nn.functional.cross_entropy(n(b[0]), b[1])), torch.randn(4, 1, 8, 8)
        clients = SimulatedClients(batches, loss, true, true[0].double() / 32, true.sum(1), seed)
        for row in audit_defences(net, lambda n=net, x=noise: n(x), clients, AuditSettings()):
            found.setdefault((row.defence, row.attack), []).append(row)
    attacks = list(dict.fromkeys(attack for _, attack in found))
    print(f"| defence | {' | '.join(attacks)} |\n" + "|---" * (len(attacks) + 1) + "|")
    for defence in dict.fromkeys(defence for defence, _ in found):
        cells = [statistics.mean(row.label_accuracy for row in found[defence, attack]) for attack in attacks]
        print(f"| {defence} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print(f"Guess: {statistics.mean(row.guess for rows in found.values() for row in rows):.3f}")


PARTS = {"cases": print_cases, "tripwire": print_tripwire, "evasion": print_evasion, "defences": print_defences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, default=None)
    parser.add_argument("--images", choices=["digits", "fashion-mnist"], default="digits")
    given = parser.parse_args()
    if given.images == "fashion-mnist":
        audited.digits = partial(fashion_mnist, 8)
    torch.set_num_threads(1)
    for name, part in PARTS.items():
        if given.part in (None, name):
            part(range(given.seeds))


if __name__ == "__main__":
    main()
