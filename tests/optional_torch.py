"""torch, where it is installed, and what tests need to run with and without it."""

from __future__ import annotations

import numpy as np
import pytest

try:
    import torch
except ModuleNotFoundError:  # none is installed for this interpreter
    torch = None

__all__ = ["address_of", "needs_torch", "torch"]

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def address_of(array):
    """Return the address of the first element of a tensor or an array."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
