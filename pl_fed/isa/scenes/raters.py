"""Simulated raters: the levels of scenes as people with habits and moods would give them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from pl_fed.errors import FederatedConfigError


@dataclass(frozen=True)
class RaterConfig:
    """Who rates, and how.

    Args:
        num_raters: Raters; each rates every image.
        noise: Standard deviation of a single rating, in levels.
        habit: Standard deviation of what a rater adds to all ratings, in levels.
        site_bias: Standard deviation of what the raters add at one site, in levels.
        num_sites: Sites that hold the images.
    """

    num_raters: int = 3
    noise: float = 0.5
    habit: float = 0.2
    site_bias: float = 0.0
    num_sites: int = 3

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("num_raters", "num_sites"):
            if getattr(self, name) < 1:
                raise FederatedConfigError(f"Expected `{name}` to be at least 1 but got {getattr(self, name)}.")
        for name in ("noise", "habit", "site_bias"):
            if getattr(self, name) < 0:
                raise FederatedConfigError(f"Expected `{name}` to be at least 0 but got {getattr(self, name)}.")


def rate(
    levels: Int[np.ndarray, "images 2"], sites: Int[np.ndarray, " images"], config: RaterConfig, seed: int
) -> Int[np.ndarray, "images raters 2"]:
    """Return ratings from 1 to 5.

    An image's ratings do not depend on how many images there are.

    Args:
        levels: Entity and semantic level of every image.
        sites: Site of every image.
        config: Who rates.
        seed: Seed of habits and noise.
    """
    rng = np.random.default_rng([seed, 0x4A])
    habits = rng.normal(0.0, config.habit, (config.num_raters, 2))
    biases = rng.normal(0.0, config.site_bias, (config.num_sites, 2))
    draws = [np.random.default_rng([seed, 0x4B, i]).normal(size=habits.shape) for i in range(len(levels))]
    noise = config.noise * np.stack(draws)  # (images, raters, 2)
    felt = levels[:, None] + habits + biases[sites][:, None] + noise
    ratings: np.ndarray = np.clip(np.rint(felt), 1, 5).astype(np.int64)
    return ratings
