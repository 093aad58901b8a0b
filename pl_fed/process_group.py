"""Several processes: one device each, and what they tell one another between rounds.

Every process trains its own clients of the cohort; nothing is exchanged while they train. At the end of a round all
processes gather what each of them has (`gather`), so that every one of them aggregates the same updates in the same
order: the server's state is the same everywhere, and the same as that of one process.
"""

import pickle
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import (
    _distributed_is_initialized,
    _get_default_process_group_backend_for_device,
    _init_dist_connection,
    _sync_ddp_if_available,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric_rank_zero_only
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from pl_fed.fast_pickle import dumps
from pl_fed.processes import Processes

T = TypeVar("T")


class ProcessGroupStrategy(SingleDeviceStrategy):
    """Lightning's single-device strategy, in as many processes as the Trainer has devices and nodes.

    Processes are started by Lightning's launcher (the script again, once for each device), by torchrun, or by SLURM.
    With one device it is `SingleDeviceStrategy` and starts nothing.

    Args:
        timeout: Longest wait for another process.
        kwargs: See `SingleDeviceStrategy`.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30), **kwargs: Any) -> None:
        super().__init__("cpu", **kwargs)
        self.parallel_devices: list[torch.device] | None = None  # filled in by the Trainer, as are the next two
        self.cluster_environment: ClusterEnvironment | None = None
        self.num_nodes = 1
        self._timeout = timeout
        self._objects: dist.ProcessGroup | None = None  # for objects, which lie in the host's memory

    @property
    def num_processes(self) -> int:
        """Processes on this machine."""
        return len(self.parallel_devices or (None,))

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world_size > 1

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes files."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        """This process's device."""
        return self.parallel_devices[self.local_rank] if self.parallel_devices else self._root_device

    def set_world_ranks(self) -> None:
        """Number the processes; called by the Trainer before anything is started."""
        environment = self.cluster_environment
        if environment is None or self.num_nodes * self.num_processes == 1:
            return
        self.local_rank, self.world_size = environment.local_rank(), self.num_nodes * self.num_processes
        self.global_rank = environment.node_rank() * self.num_processes + self.local_rank
        environment.set_global_rank(self.global_rank)
        environment.set_world_size(self.world_size)
        for function in (rank_zero_only, fabric_rank_zero_only):
            vars(function)["rank"] = self.global_rank

    def _configure_launcher(self) -> None:
        if self.is_distributed:
            assert self.cluster_environment is not None
            if not self.cluster_environment.creates_processes_externally:
                self._launcher = _SubprocessScriptLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Connect the processes."""
        super().setup_environment()
        if not self.is_distributed:
            return
        assert self.cluster_environment is not None and self.lightning_module is not None
        reset_seed()
        if not _distributed_is_initialized():
            backend = _get_default_process_group_backend_for_device(self.root_device)
            _init_dist_connection(self.cluster_environment, backend, timeout=self._timeout)
        if self._objects is None:
            self._objects = dist.new_group(backend="gloo", timeout=self._timeout)
        trainer = self.lightning_module.trainer
        trainer._accelerator_connector.use_distributed_sampler = False  # loaders of ours know their process
        # Lightning broadcasts a flag before every batch; processes here have unlike numbers of batches
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._end_on_sigterm  # type: ignore[method-assign]

    def _end_on_sigterm(self) -> None:
        assert self.lightning_module is not None
        if getattr(self.lightning_module.trainer, "received_sigterm", False):
            raise SIGTERMException

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; tensors in them have to lie in the host's memory."""
        if not self.is_distributed:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, dumps(value), group=self._objects)
        return [pickle.loads(data) for data in found]

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other processes."""
        if self.is_distributed and self._objects is not None:
            dist.barrier(group=self._objects)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Return the object of process `src`."""
        if not self.is_distributed or self._objects is None:
            return obj
        box = [obj]
        dist.broadcast_object_list(box, src, group=self._objects)
        return box[0]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean", *args: Any, **kwargs: Any) -> Any:
        """Return the mean (or sum, ...) over all processes."""
        if self.is_distributed and isinstance(tensor, Tensor):
            return _sync_ddp_if_available(tensor, group, reduce_op=reduce_op)
        return tensor

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all processes, stacked; without several processes the tensor."""
        if not self.is_distributed:
            return tensor
        return torch.stack([value.to(tensor.device) for value in self.gather(tensor.detach().cpu())])

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all (or any) of the processes say yes."""
        decisions = self.gather(bool(decision))
        return min(decisions) if all else max(decisions)

    def teardown(self) -> None:
        """Leave the processes' environment."""
        if self.is_distributed and self.cluster_environment is not None:
            self.cluster_environment.teardown()
        super().teardown()


def count_others(trainer: Trainer, processes: Processes, own: tuple[int, int], num_clients: int) -> None:
    """Count what other processes trained too, so that steps mean the same for any number of processes.

    Args:
        trainer: Its counters are raised.
        processes: All of them.
        own: Optimizer steps and batches of this process in the round.
        num_clients: Clients of the round; with fewer than processes, the last ones train no new one.
    """
    if processes.number == 1:
        return
    epoch_loop = trainer.fit_loop.epoch_loop
    counts = processes.gather(own)[:num_clients]
    steps, batches = (sum(column) for column in zip(*counts, strict=True))
    optimizer = epoch_loop.automatic_optimization.optim_progress.optimizer
    for progress, others in (
        (optimizer.step.total, steps - own[0]),
        (epoch_loop.batch_progress.total, batches - own[1]),
    ):
        for name in vars(progress):
            setattr(progress, name, getattr(progress, name) + others)
    epoch_loop._batches_that_stepped += steps - own[0]
