"""Page-lock the ring, and copy batches to a CUDA device ahead of the training step."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamloader.errors import ConfigError, StreamloaderError
from streamloader.torch_support import require_torch

if TYPE_CHECKING:
    import torch

    from streamloader.engine.ring import Ring
    from streamloader.engine.supervisor import Supervisor
    from streamloader.engine.workload import Grant
    from streamloader.loader.batch import SlotBatch

__all__ = ["CudaFeed", "Pinning", "make_feed"]


class Pinning:
    """Page-locks the whole ring with ``cudaHostRegister``, so that copies to the device start from the slots.

    Args:
        enabled: Whether to page-lock the ring. Without a CUDA device, this only warns, as in DataLoader.

    Raises:
        MissingDependency: If it is enabled, and torch is not installed.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._address: int | None = None
        if enabled:
            require_torch("pin_memory=True needs")
            import torch

            if not torch.cuda.is_available():
                warnings.warn(
                    "pin_memory=True, but no CUDA device was found: the ring is not page-locked",
                    UserWarning,
                    stacklevel=_user_stacklevel(),
                )
                self._enabled = False

    def pin(self, ring: Ring) -> None:
        """Page-lock the ring."""
        if not self._enabled:
            return
        import torch

        address, size = ring.span
        code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if code:
            warnings.warn(
                f"CUDA could not page-lock the ring of {size} bytes (error {code}); copies will be slower",
                UserWarning,
                stacklevel=_user_stacklevel(),
            )
        else:
            self._address = address

    def unpin(self) -> None:
        """Undo the page-lock. Batches that are still held stay valid."""
        if self._address is not None:
            import torch

            torch.cuda.cudart().cudaHostUnregister(self._address)
            self._address = None


def _user_stacklevel() -> int:
    """Return the ``stacklevel`` for a warning that points at the first caller outside this package."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - as warnings.warn itself does
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("streamloader."):
        frame, level = frame.f_back, level + 1
    return level


def make_feed(device: Any, make_batch: Callable[[Grant], SlotBatch]) -> CudaFeed | None:
    """Return the feed for a CUDA `device`, or None for the CPU.

    Raises:
        ConfigError: If the device is not available, or is neither a CPU nor a CUDA device.
        MissingDependency: If the device is not the CPU, and torch is not installed.
    """
    if device is None or (isinstance(device, str) and device == "cpu"):
        return None
    require_torch(f"device={str(device)!r:.80} needs")
    import torch

    try:
        target = torch.device(device)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"device must be a torch.device or its name, got {device!r:.80}: {reason:.200}") from None
    if target.type == "cpu":
        return None
    if target.type != "cuda":
        raise ConfigError(
            f"device must be a CPU or CUDA device, got {device!r}; call batch.to({str(device)!r}) in the loop"
        )
    if not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}, but torch {torch.__version__} finds no CUDA device")
    return CudaFeed(target, make_batch)


class CudaFeed:
    """Copies the next batch on a side stream during the training step on the current batch.

    Each batch is one copy of one whole slot. The slot stays leased until the copy's event has completed, so no worker
    overwrites a slot that is being copied.

    Args:
        device: CUDA device of the batches.
        make_batch: Function that returns the batch of a complete slot, on the CPU.
    """

    def __init__(self, device: torch.device, make_batch: Callable[[Grant], SlotBatch]) -> None:
        import torch

        self._device, self._make_batch = device, make_batch
        self._stream = torch.cuda.Stream(device)
        self._next: tuple[SlotBatch, torch.cuda.Event] | None = None
        self._copying: deque[tuple[torch.cuda.Event, SlotBatch]] = deque()

    @property
    def has_next(self) -> bool:
        """Whether the next batch is already being copied, so that :meth:`next` does not need the supervisor."""
        return self._next is not None

    def next(self, supervisor: Supervisor) -> SlotBatch | None:
        """Return the next batch on the device, and start the copy of the batch after it if that is ready.

        The caller holds the supervisor's lock. The supervisor must be ready, unless :attr:`has_next` is True.
        """
        import torch

        if self._next is None:
            grant = supervisor.pop()
            if grant is None:
                return None
            self._next = self._start_copy(grant)
        batch, event = self._next
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        batch.record_stream(current)
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        following = None
        with contextlib.suppress(StreamloaderError):  # raised again when that batch is requested
            supervisor.poll()
            following = supervisor.pop() if supervisor.ready else None
        self._next = None if following is None else self._start_copy(following)
        return batch

    def _start_copy(self, grant: Grant) -> tuple[SlotBatch, torch.cuda.Event]:
        import torch

        source = self._make_batch(grant)
        with torch.cuda.stream(self._stream):
            moved = source.to(self._device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copying.append((event, source))
        return moved, event

    def discard_next(self) -> None:
        """Discard the batch that was copied ahead."""
        self._next = None

    def close(self) -> None:
        """Wait for the running copies, and release their slots."""
        self._stream.synchronize()
        self._next = None
        self._copying.clear()
