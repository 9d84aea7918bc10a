"""What several processes that hold parts of one model tell each other, over ``torch.distributed`` on the CPU.

Every method of :class:`Processes` is called by all of them, in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from recbole_llmd.errors import ModelError

Result = TypeVar("Result")


class Processes:
    """The processes of a group, or this process alone where ``torch.distributed`` was not initialised.

    Args:
        group: of a backend that exchanges arrays of the CPU, such as gloo; None for all processes.

    Raises:
        ModelError: if the backend is NCCL, or this process is not one of the group.

    >>> alone = Processes()
    >>> alone.rank, alone.size, alone.largest(0.5), alone.agree_on(b"the request")
    (0, 1, 0.5, True)
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        initialised = dist.is_available() and dist.is_initialized()
        self.group = group
        self.size: int = dist.get_world_size(group) if initialised else 1
        self.rank: int = dist.get_rank(group) if initialised else 0
        if self.rank < 0:
            raise ModelError("group: this process is not one of it. Build the model in the group's processes alone.")
        if self.size > 1 and dist.get_backend(group) == "nccl":
            raise ModelError(
                'group: its backend is nccl, which has no arrays of the CPU. Give dist.new_group(backend="gloo").'
            )

    def broadcast(self, array: NDArray[Any], source: int) -> None:
        """Let all have the ``array`` that the process ``source`` has, in place."""
        if self.size > 1:
            number = source if self.group is None else dist.get_global_rank(self.group, source)
            dist.broadcast(torch.from_numpy(array), number, self.group)

    def add(self, array: NDArray[Any]) -> None:
        """Let all have the sum of their arrays, in place."""
        if self.size > 1:
            dist.all_reduce(torch.from_numpy(array), dist.ReduceOp.SUM, self.group)

    def largest(self, value: float) -> float:
        """The largest of their values; NaN counts as infinity. What follows from it is the same in all."""
        values = torch.tensor([value], dtype=torch.float64).nan_to_num(nan=np.inf, posinf=np.inf)
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return float(values)

    def agree_on(self, content: bytes) -> bool:
        """Whether all have the same content."""
        digests = np.zeros((self.size, 4), np.int64)
        digests[self.rank] = np.frombuffer(hashlib.sha256(content).digest(), np.int64)
        self.add(digests)
        return bool((digests == digests[0]).all())

    def together(self, call: Callable[[], Result]) -> Result:
        """What ``call`` returns here, if it fails nowhere: where it does, none is left waiting for another.

        ``call`` itself does not communicate.

        Raises:
            Exception: what ``call`` raised here.
            ModelError: if it failed in another process alone.
        """
        result, error = None, None
        try:
            result = call()
        except Exception as caught:
            error = caught
        failed = self.largest(float(error is not None))
        if error is not None:
            raise error
        if failed:
            raise ModelError("another process could not do its part; its own error says why.")
        return result  # type: ignore[return-value]  # there was no error
