"""Start obstore's threads, which stay with their descriptors until the process ends: they are no leak of a test."""

from __future__ import annotations

import obstore
import obstore.store

obstore.put(obstore.store.MemoryStore(), "a", b"")
