"""Take part in Accelerate's gradient accumulation, which takes an optimizer step after the last batch of a loader.

Accelerate reads from the loader that is being iterated over whether its current batch is the last one. It sets that up
for DataLoaders that ``prepare`` has wrapped. A loader of this package does it by itself, where Accelerate is in use.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

__all__ = ["GradientAccumulation"]


class GradientAccumulation:
    """Registration of one iteration of a loader with Accelerate. It ends with the iteration, however that ends.

    Args:
        loader: Loader with the attributes ``end_of_dataloader`` and ``remainder``, which Accelerate reads.
        state: Accelerate's ``GradientState``, which all its instances share.
    """

    def __init__(self, loader: Any, state: Any) -> None:
        self._state = state
        self._loader_ref = weakref.ref(loader)
        loader.end_of_dataloader = False
        state.dataloader_references += [loader]  # it keeps weak references

    @classmethod
    def start(cls, loader: Any) -> GradientAccumulation | None:
        """Register an iteration of `loader`, or return None if this process does not use Accelerate."""
        state_class = getattr(sys.modules.get("accelerate.state"), "GradientState", None)
        return None if state_class is None else cls(loader, state_class())

    @property
    def needs_last_batch(self) -> bool:
        """Whether Accelerate accumulates gradients until the last batch at most, so that it has to be recognized."""
        return bool(self._state.num_steps > 1 and self._state.sync_with_dataloader)

    def end(self) -> None:
        """End the registration. Safe to call again."""
        loader = self._loader_ref()
        if loader is None:
            return
        loader.end_of_dataloader = False
        references = self._state.dataloader_references  # the first one is None, for no loader
        self._state.dataloader_references = [other for other in references if other is not loader]
