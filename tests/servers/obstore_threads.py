"""Start obstore's threads. They and their descriptors live until the process ends and are not leaked by a test."""

from __future__ import annotations

import obstore
import obstore.store

obstore.put(obstore.store.MemoryStore(), "a", b"")
