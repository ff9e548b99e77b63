"""Page-locking the ring, and copying batches to a CUDA device ahead of the step."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamloader.errors import ConfigError, StreamloaderError

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
        wanted: whether it was asked for. Where there is no CUDA device it warns and does nothing, as DataLoader does.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._address: int | None = None
        if wanted:
            import torch

            if not torch.cuda.is_available():
                warnings.warn(
                    "pin_memory=True, but no CUDA device is found: the ring is not page-locked",
                    UserWarning,
                    stacklevel=_users_frame(),
                )
                self._wanted = False

    def pin(self, ring: Ring) -> None:
        """Page-lock the ring."""
        if not self._wanted:
            return
        import torch

        address, size = ring.span
        code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if code:
            warnings.warn(
                f"CUDA refuses to page-lock the ring of {size} bytes (error {code}); copies will be slower",
                UserWarning,
                stacklevel=_users_frame(),
            )
        else:
            self._address = address

    def unpin(self) -> None:
        """Make it ordinary memory again; what is held of it stays valid."""
        if self._address is not None:
            import torch

            torch.cuda.cudart().cudaHostUnregister(self._address)
            self._address = None


def _users_frame() -> int:
    """Return the ``stacklevel`` of a warning that is to point at the first caller outside this package."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - as warnings.warn itself does
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("streamloader."):
        frame, level = frame.f_back, level + 1
    return level


def make_feed(device: Any, wrap: Callable[[Grant], SlotBatch]) -> CudaFeed | None:
    """Return the feed for a CUDA `device`; None for the CPU.

    Raises:
        ConfigError: the device is not there, or is of another kind.
    """
    if device is None:
        return None
    import torch

    target = torch.device(device)
    if target.type == "cpu":
        return None
    if target.type != "cuda":
        raise ConfigError(
            f"device= takes a CPU or CUDA device, got {device!r}; use batch.to({str(device)!r}) in the loop"
        )
    if not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}, but torch {torch.__version__} finds no CUDA device")
    return CudaFeed(target, wrap)


class CudaFeed:
    """Copies the next batch on a side stream while the step works on this one.

    Each batch is one copy of one whole slot. Its lease is kept until the copy's event has passed, so no worker
    writes into a slot that is still being read.
    """

    def __init__(self, device: torch.device, wrap: Callable[[Grant], SlotBatch]) -> None:
        import torch

        self._device, self._wrap = device, wrap
        self._stream = torch.cuda.Stream(device)
        self._next: tuple[SlotBatch, torch.cuda.Event] | None = None
        self._copying: deque[tuple[torch.cuda.Event, SlotBatch]] = deque()

    @property
    def has_next(self) -> bool:
        """Whether the next batch is on its way, so that :meth:`next` needs nothing of the supervisor."""
        return self._next is not None

    def next(self, supervisor: Supervisor) -> SlotBatch | None:
        """Return the next batch on the device, and start the copy of the one after it if that is ready.

        The supervisor is locked, and ready unless :attr:`has_next`.
        """
        import torch

        if self._next is None:
            grant = supervisor.pop()
            if grant is None:
                return None
            self._next = self._start(grant)
        batch, event = self._next
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        batch.record_stream(current)
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        following = None
        with contextlib.suppress(StreamloaderError):  # it is raised again when it is this batch's turn
            supervisor.poll()
            following = supervisor.pop() if supervisor.ready else None
        self._next = None if following is None else self._start(following)
        return batch

    def _start(self, grant: Grant) -> tuple[SlotBatch, torch.cuda.Event]:
        import torch

        source = self._wrap(grant)
        with torch.cuda.stream(self._stream):
            moved = source.to(self._device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copying.append((event, source))
        return moved, event

    def restart(self) -> None:
        """Forget the batch that was copied ahead."""
        self._next = None

    def close(self) -> None:
        """Wait for the copies under way and let their slots go."""
        self._stream.synchronize()
        self._next = None
        self._copying.clear()
