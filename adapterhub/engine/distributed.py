"""Several processes at one training, as torchrun and accelerate start them: data parallel, all weights in each.

Every process computes the gradients of its share of a step's rows, divided by the labelled tokens of the whole step;
their sum is what one process would have computed. It is made by one all-reduce a step, after the last batch, so that it
does not matter how many batches a process makes of its share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from adapterhub.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# The first process measures held-out rows while the others wait.
_PATIENCE = timedelta(hours=12)


def processes() -> int:
    """Return how many processes were started for one command; 1 where no launcher was."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number among them; 0 is the one that writes, prints and measures."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def local_device(name: str | None) -> str | None:
    """Return the device of this process, where several on one machine were told the same: `cuda` becomes `cuda:1`."""
    if processes() == 1 or name not in (None, "auto", "cuda"):
        return name
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number == 0:
        return name
    import torch

    if torch.cuda.is_available() and number < torch.cuda.device_count():
        return f"cuda:{number}"
    if name == "cuda" or torch.cuda.is_available():
        raise UsageError(
            f"process {number} of this machine finds no CUDA device of its own", hint="lower --nproc, or --device cpu"
        )
    return "cpu"


class Group:
    """The processes of one training; alone, every question is answered without asking anyone."""

    def __init__(self, device: torch.device) -> None:
        self.processes, self.rank, self._device, self._ours = processes(), rank(), device, False
        if self.processes == 1:
            return
        import torch.distributed as dist

        if device.type == "mps":
            raise UsageError("several processes cannot share an MPS device", hint="--device cpu")
        if not dist.is_initialized():
            if device.type == "cuda":
                import torch

                torch.cuda.set_device(device)
            # Rendezvous by the launcher's environment (MASTER_ADDR, RANK …).
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
            self._ours = True

    @property
    def first(self) -> bool:
        """True in the process that writes, prints and measures."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.processes == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; one that none of them has stays away."""
        if self.processes == 1:
            return
        import torch
        import torch.distributed as dist

        trained = list(parameters)
        there = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=self._device)
        flat = torch.cat([there, *(_gradient(p) for p in trained)])
        dist.all_reduce(flat)
        counts, start = flat[: len(trained)].tolist(), len(trained)
        for parameter, count in zip(trained, counts, strict=True):
            if count:
                parameter.grad = flat[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()

    def spread(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give all processes the first one's values."""
        if self.processes == 1:
            return
        import torch.distributed as dist

        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)

    def tell(self, value: T | None) -> T:
        """Return what the first process says; the others hand in nothing."""
        found: list[Any] = [value]
        if self.processes > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(found, src=0)
        return found[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's value in the first one, an empty list in the others."""
        if self.processes == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.processes if self.first else None
        dist.gather_object(value, found, dst=0)
        return found or []

    def close(self) -> None:
        """Leave the group when all have come this far."""
        if self._ours:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()
            self._ours = False


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    import torch

    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.reshape(-1).float()
