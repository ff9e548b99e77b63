"""Whether torch is installed, and the error of what cannot work without it. Neither imports torch."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamloader.errors import MissingDependency

__all__ = ["as_tensor", "has_torch", "make_missing_torch_error", "require_torch"]


def has_torch() -> bool:
    """Return whether torch is installed. It is not imported for this."""
    if "torch" in sys.modules:
        return sys.modules["torch"] is not None
    spec = importlib.util.find_spec("torch")
    return spec is not None and spec.origin is not None  # a folder of this name is no package


def as_tensor(array: NDArray[Any]) -> Any:
    """Return a tensor over the memory of an array, or the array itself where torch is not installed."""
    if not has_torch():
        return array
    import torch

    return torch.from_numpy(array)


def require_torch(purpose: str) -> None:
    """Check that torch is installed.

    Args:
        purpose: First words of the error, with the verb: ``"batch.rgb() needs"``.

    Raises:
        MissingDependency: If torch is not installed.
    """
    if not has_torch():
        raise make_missing_torch_error(purpose)


def make_missing_torch_error(purpose: str) -> MissingDependency:
    """Return the error of what needs torch. `purpose` is as for :func:`require_torch`."""
    from streamloader.errors import MissingDependency  # importing the package imports this module, and not the errors

    error = MissingDependency(f"{purpose} torch, which is not installed: pip install torch")
    error.name = "torch"  # as ImportError has it
    return error
