"""Helpers of the tests of SQLite catalogs: they create, fill and inspect files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogExists
from streamloader.testing.catalogs.binding import PLACES, make_sample_video

HERE = Path(__file__).parent / "archive" / "catalog" / "sqlite"


def use(path, function, **options):
    async def with_catalog():
        catalog = SqliteCatalog(path, **options)
        try:
            return await asyncio.wait_for(function(catalog), 60)
        finally:
            await catalog.aclose()

    return asyncio.run(with_catalog())


async def fill(catalog, seeds=range(2)):
    with contextlib.suppress(CatalogExists):
        await catalog.create(PLACES)
    return [await make_sample_video(seed).add(catalog) for seed in seeds]


def files(path):
    return sorted(os.listdir(os.path.dirname(path)))


def run_program(program, path):
    command = [sys.executable, "-c", program, path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def database(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def create_old_schema(path):
    with database(path) as db:
        db.executescript((HERE / "schema_0.sql").read_text())
