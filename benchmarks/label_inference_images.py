"""Label inference on whole images of Fashion-MNIST and the networks that `ImageClassifier` ships, row by row.

    python benchmarks/label_inference_images.py [--seeds 3]

Label mixes from Dirichlet(0.5). Each cell: label accuracy and exact matches; the last column is what guessing gives.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the rounds are those of the tests

from pl_fed.attacks.accuracy import exact_match, label_accuracy
from pl_fed.attacks.baselines import guess
from pl_fed.attacks.cut_norm import Target, find_target
from pl_fed.attacks.fishing import FishingModels, choose_betas, make_models
from pl_fed.attacks.observation import LocalSteps
from pl_fed.attacks.quantise import FixedPointSum
from pl_fed.attacks.solve import Correction, recover
from pl_fed.modules.networks.build import build_network
from tests.helpers import audited
from tests.helpers.audited import Attacked, bn2d_pool, label_draws, play
from tests.helpers.fashion_mnist import fashion_mnist

Result = tuple[float, float, float]  # label accuracy, exact matches, what guessing gives
SHIPPED = ("small_cnn", "lenet", "vgg", "preact_resnet", "vit", "groupnorm_cnn")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    name: partial(build_network, name, 1, (28, 28), 10, {}) for name in SHIPPED
} | {"BatchNorm, pooling": bn2d_pool}


def attacked(played: Attacked, correction: Correction = "auto") -> Result:
    counts, true = recover(played.observation, correction).counts, played.true
    guessed = label_accuracy(guess(true.shape[1], true.sum(1)), true)
    accuracy, exact = label_accuracy(counts, true), exact_match(counts, true).double()
    return float(accuracy.mean()), float(exact.mean()), float(guessed.mean())


def several(steps: int, correction: Correction, momentum: float = 0.0) -> Callable[[nn.Module, int], Result]:
    """Several local steps, on all of a client's data; with momentum on a batch of its own each."""

    def case(net: nn.Module, seed: int) -> Result:
        fresh, head = momentum > 0, [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        labels = label_draws([32 * steps if fresh else 32] * 8, seed=seed)
        scale = 0.3 * min(1.0, (64 / head.in_features) ** 0.5)  # flattened channels: no longer than 64 features of .3
        local = LocalSteps(steps, 0.01, momentum)
        return attacked(play(net, labels, local, scale=scale, fresh_batches=fresh), correction)

    return case


def fixed(lr: float) -> Callable[[nn.Module, int], Result]:
    secure_sum = FixedPointSum(22, 8.0)
    return lambda net, seed: attacked(
        play(net, label_draws([32] * 8, seed=seed), LocalSteps(lr=lr), secure_sum=secure_sum)
    )


def sized(*sizes: int) -> Callable[[nn.Module, int], Result]:
    return lambda net, seed: attacked(play(net, label_draws(sizes, seed=seed)))


CASES: dict[str, Callable[[nn.Module, int], Result]] = {
    "N = 8, B = 32": sized(*[32] * 8),
    "N = 16, B = 256": sized(*[256] * 16),
    "B = 2 to 200": sized(2, 3, 17, 200, 64, 5, 32, 31),
    "one class each": lambda net, _: attacked(play(net, [torch.full((32,), k) for k in range(8)])),
    "22 bits, lr .01": fixed(0.01),
    "4 steps": several(4, "trajectory"),
    "20 steps": several(20, "trajectory"),
    "20 steps, naive": several(20, "naive"),
    "momentum .9": several(4, "auto", 0.9),
}


def models_for(
    net: nn.Module, num_models: int, scale: float = 1.0, moving: bool = False
) -> tuple[Target, FishingModels]:
    """As in the tests, with noise of the images' size."""
    noise = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    target = find_target(net, lambda: net(noise))
    return target, make_models(net, target, choose_betas(num_models, target.width, scale), lambda: net(noise), moving)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    audited.digits, audited.models_for = fashion_mnist, models_for
    torch.set_num_threads(1)
    print(f"| case | {' | '.join(NETWORKS)} | guess |\n" + "|---" * (len(NETWORKS) + 2) + "|")
    for name, case in CASES.items():
        cells, guesses = [], []
        for make in NETWORKS.values():
            rows = []
            for seed in seeds:
                torch.manual_seed(seed)
                rows.append(case(make(), seed))
            accuracy, exact, guessed = (statistics.mean(column) for column in zip(*rows, strict=True))
            cells.append(f"{accuracy:.3f} / {exact:.2f}")
            guesses.append(guessed)
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(guesses):.3f} |", flush=True)


if __name__ == "__main__":
    main()
