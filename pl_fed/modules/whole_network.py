"""A network for images that is trained in full, for modules that differ in what its outputs are."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from pl_fed.modules.checkpoint import check_class, check_whole
from pl_fed.modules.evaluated import Batch, EvaluatedModule, LRSchedulerCallable, OptimizerCallable
from pl_fed.modules.networks import build_network
from pl_fed.modules.settings import NetworkSettings


class WholeNetwork(EvaluatedModule):
    """A module whose network is made in `configure_model`, with the shape of the data.

    Args:
        architecture: As in `build_network`.
        network: More arguments of the network, and the shape of the images where the datamodule does not say it.
        optimizer: Makes the optimizer from the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate from the optimizer; None keeps it constant.
        schedule_interval: ``step`` steps the schedule within a client's local training, ``epoch`` once a round.
    """

    network: nn.Module

    def __init__(
        self,
        architecture: str,
        network: NetworkSettings,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        schedule_interval: Literal["step", "epoch"],
    ) -> None:
        super().__init__(optimizer, lr_scheduler, schedule_interval)
        self.architecture, self.settings = architecture, network
        self.remember(architecture=architecture, network=network, schedule_interval=schedule_interval)

    @abstractmethod
    def num_outputs(self) -> int:
        """Return the number of the network's outputs."""

    def configure_model(self) -> None:
        """Make the network, once; a checkpoint keeps the shapes, since it loads without the data."""
        if hasattr(self, "network"):
            return
        num_outputs = self.num_outputs()
        channels, size = self.settings.in_channels, self.settings.size
        if channels is None:
            channels = int(self.of_datamodule("num_channels", "network.in_channels"))
        if size is None:
            size = tuple(self.of_datamodule("image_size", "network.image_size"))
        self.settings = replace(self.settings, in_channels=channels, image_size=list(size))
        self.remember(network=self.settings)
        shape = cast(tuple[int, int], size)
        self.network = build_network(self.architecture, channels, shape, num_outputs, self.settings.options)

    def forward(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return the network's outputs for `images`."""
        return self.network(batch["images"])  # type: ignore[no-any-return]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this class and has the whole network, in these shapes."""
        check_class(checkpoint, type(self))
        check_whole(checkpoint["state_dict"], self.state_dict())
