"""Lets every client look at the model it was sent: a warning when it seems crafted to reveal the client's labels."""

import warnings
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pl_fed._lightning import Callback, LightningModule, Trainer
from pl_fed.attacks.tripwire import THRESHOLD, Reading, read_tripwire
from pl_fed.context import RoundContext
from pl_fed.errors import ClientFailureError, FederatedConfigError, FishedModelError

Action = Literal["warn", "drop", "stop"]
ALARM = "tripwire_alarm"  # among a client's figures


class FishingTripwire(Callback):
    """Looks at the input of the final layer in each client's first training batch of a round.

    A fishing model (docs/label_inference.md) makes that input the same for all samples. The number of alarms of a round
    is ``server/tripwire_alarms``. It is a warning and no guarantee: a server that knows of it crafts a norm weight that
    is small but not 0, passes, and reads next to as much; the guarantee is model binding
    (`SecureAggregation.binding`). Under a plain Trainer it looks at the first batch of each epoch and only warns.

    Args:
        threshold: Standard deviation over absolute mean, within the batch, below which a feature counts as constant.
        action: ``warn`` warns; ``drop`` lets the client send nothing in this round; ``stop`` ends the run.
        head: Name of the final layer in the module; None takes the last `nn.Linear` that runs.

    Example:
        >>> callback = FishingTripwire(action="drop")
    """

    def __init__(self, threshold: float = THRESHOLD, action: Action = "warn", head: str | None = None) -> None:
        if not 0 < threshold < 1:
            raise FederatedConfigError(
                f"Expected `threshold` of FishingTripwire in (0, 1) but got {threshold}: what honest "
                "features vary by is .01 and more, so choose less."
            )
        if action not in get_args(Action):
            raise FederatedConfigError(f"Expected `action` out of {get_args(Action)} but got `{action}`.")
        self.threshold, self.action, self.head = threshold, action, head
        self.alarms: list[int] = []  # clients of the round in progress
        self._client: tuple[int, int] | None = None  # round and client in training
        self._armed = self._said = False
        self._seen: Tensor | None = None  # input of the layer that ran last
        self._handles: list[RemovableHandle] = []

    # ------------------------------------------------------------------ when to look

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a run before, which may have ended inside a round."""
        if stage == "fit":
            self.alarms, self._client, self._armed = [], None, False

    def on_round_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Count anew."""
        self.alarms = []

    def on_client_start(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Look at this client's first batch."""
        assert context.client is not None
        self._client, self._armed = (context.round_idx, context.client.client_id), True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without rounds, look at the first batch of the epoch."""
        self._armed = self._armed or self._client is None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the layers that may be the last."""
        if self._armed:
            self._release()
            self._handles = [layer.register_forward_pre_hook(self._watch) for layer in self._candidates(pl_module)]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Judge what was seen, before anything is learned from the batch."""
        if self._armed:
            seen = self._seen
            self._release()
            self._judge(seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the hooks off also after a batch without a backward pass."""
        self._release()

    def on_client_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Let a client that raised the alarm send nothing.

        Raises:
            ClientFailureError: With the action ``drop``, after an alarm.
        """
        assert context.client is not None
        client_id, self._client, self._armed = context.client.client_id, None, False
        context.client.figures[ALARM] = float(client_id in self.alarms)
        if self.action == "drop" and client_id in self.alarms:
            raise ClientFailureError(client_id, "fished", "its model looks crafted to reveal its labels")

    def on_round_end(self, trainer: Trainer, pl_module: LightningModule, context: RoundContext) -> None:
        """Report the alarms of the round."""
        context.metrics["server/tripwire_alarms"] = sum(client.figures.get(ALARM, 0.0) for client in context.finished)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no hook behind."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind; who was in training stays known for a checkpoint that is written now."""
        self._release()

    # ------------------------------------------------------------------ looking

    def _candidates(self, module: nn.Module) -> list[nn.Module]:
        linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        if self.head is None:  # a LoRA factor runs after the layer that it belongs to, and is no head
            return [part for name, part in linear.items() if "lora_" not in name]
        found = dict(module.named_modules()).get(self.head)
        if found is None:
            raise FederatedConfigError(
                f"Expected `head` of FishingTripwire to be a layer of the module, such as one of {list(linear)[-3:]}, "
                f"but got `{self.head}`: correct the name."
            )
        return [found]

    def _watch(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if layer.training and args and isinstance(args[0], Tensor):
            self._seen = args[0].detach()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], None

    def _judge(self, seen: Tensor | None) -> None:
        if seen is None or seen.dim() < 2:
            self._armed = False
            self._say_once("found no linear layer in the forward pass that it could look at: set `head`")
            return
        reading = read_tripwire(seen.flatten(0, -2), self.threshold)
        if not reading.judged:  # the next batch may say more
            self._say_once(f"cannot judge a batch of {reading.num_rows} row(s), or one of zeros: use larger batches")
            return
        self._armed = False
        if reading.fished:
            self._alarm(reading)

    def _say_once(self, what: str) -> None:
        if not self._said:
            self._said = True
            warnings.warn(f"FishingTripwire {what}; such clients are not watched.", stacklevel=2)

    def _alarm(self, reading: Reading) -> None:
        where = "The model" if self._client is None else "Round {}: the model of client {}".format(*self._client)
        text = (
            f"{where} looks crafted to reveal labels: {reading.flagged_share:.0%} of the final layer's inputs are "
            f"constant over the batch, and {reading.variance_share:.2g} of their energy varies."
        )
        if self._client is not None:
            self.alarms.append(self._client[1])
            if self.action == "stop":
                raise FishedModelError(f"{text} Nothing was sent; ask who runs the server.")
            text += " More of this round are only counted (`server/tripwire_alarms`)."
        if len(self.alarms) <= 1:
            warnings.warn(text, stacklevel=2)

    # ------------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the alarms of the round in progress, and whose first batch is still to come."""
        return {"alarms": list(self.alarms), "client": self._client, "armed": self._armed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the middle of a round."""
        self.alarms, self._armed = list(state_dict["alarms"]), bool(state_dict["armed"])
        client = state_dict["client"]
        self._client = None if client is None else (int(client[0]), int(client[1]))
