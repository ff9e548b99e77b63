"""Batches on their way from a program to the test that has started it. Imports no torch."""

from __future__ import annotations

import numpy as np


def write_batches(path, batches):
    """Write copies of batches, as `resume_data.arrays` makes them, to one file."""
    np.savez(
        path, **{f"{number} {name}": array for number, batch in enumerate(batches) for name, array in batch.items()}
    )


def read_batches(path):
    """Return what :func:`write_batches` wrote."""
    batches = {}
    with np.load(path) as file:
        for key in file.files:
            number, name = key.split(" ", 1)
            batches.setdefault(number, {})[name] = file[key]
    return list(batches.values())
