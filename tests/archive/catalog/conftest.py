"""The real servers that catalogs live on."""

from __future__ import annotations

from servers.mongo_fixture import mongo_server, motor_threads  # noqa: F401 - fixtures, started once a process
