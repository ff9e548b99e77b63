"""Lets a program find no torch, from its import on: it comes before all other imports."""

from __future__ import annotations

import sys


class NoTorch:
    """Finder that finds no torch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


assert "torch" not in sys.modules
sys.modules["torch"] = None  # as for a module that an import did not find
sys.meta_path.insert(0, NoTorch)
