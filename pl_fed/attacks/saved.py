"""Keeps what the server of a round saw, so that an aggregate of any federation can be audited later."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pl_fed.attacks.fishing import FishingModels
from pl_fed.attacks.losses import LossSpec
from pl_fed.attacks.observation import HeadUpdate, LocalSteps, Observation, PublicRound
from pl_fed.errors import FederatedConfigError


def save_observation(observation: Observation, path: Path) -> None:
    """Write an observation as plain tensors and numbers; `load_observation` reads it.

    Args:
        observation: The server's view of a round.
        path: The file; its folder is made if there is none.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(asdict(observation), path)


def load_observation(path: Path) -> Observation:
    """Read an observation; no code in the file is run.

    Args:
        path: What `save_observation` wrote.

    Raises:
        FederatedConfigError: If the file is something else.
    """
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        public: dict[str, Any] = dict(found["round"])
        settings: dict[str, Any] = {"local": LocalSteps(**public.pop("local")), "loss": LossSpec(**public.pop("loss"))}
        models = FishingModels(**found["models"])
        return Observation(HeadUpdate(**found["aggregate"]), models, PublicRound(**public, **settings))
    except FileNotFoundError as error:
        raise FederatedConfigError(f"Expected an observation in '{path}' but there is no such file.") from error
    except Exception as error:  # whatever pickle, zip and the fields may say
        names = [field.name for field in fields(Observation)]
        reason = str(error).strip().split("\n")[0]
        raise FederatedConfigError(
            f"Expected {names} in '{path}' but got something else ({type(error).__name__}: {reason}): write it with "
            "`save_observation`."
        ) from error
