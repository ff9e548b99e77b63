"""Search a tree in several ways, without root's right to read everything. Prints the results as JSON.

Arguments: a JSON document with a list of [finder, addresses, options, unreadable].
"""

import asyncio
import json
import logging
import sys

import streamloader as sl
from streamloader.errors import StreamloaderError
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.expand import SourceFile
from streamloader.stores.io_thread import close_shared_stores
from streamloader.stores.local import LocalStore
from streamloader.stores.registry import register_store
from streamloader.streams.image_files import find_images

FINDERS = {"files": lambda address, options, unreadable: expand_addresses(
    address, lambda path: path.endswith(".txt"), options, unreadable=unreadable
), "images": lambda address, options, unreadable: find_images(
    address, options, lambda path: path.endswith(".txt"), unreadable
)}  # fmt: skip


def index(dataset):
    """Return the files of the streams of a dataset."""
    return [SourceFile(info.key) for info in asyncio.run(dataset.index())]


FINDERS |= {
    "videos": lambda address, options, unreadable: index(sl.VideoStreams(address, unreadable=unreadable)),
    "sounds": lambda address, options, unreadable: index(sl.AudioStreams(address, unreadable=unreadable)),
    "found": lambda address, options, unreadable: index(sl.find_streams(address, unreadable=unreadable)),
    "texts": lambda address, options, unreadable: index(sl.TextStreams(address)),
}


class AsStore(LocalStore):
    """The store of local files under another scheme, so that it is searched as a store: ``local-store://-/path``."""

    schemes = ("local-store",)

    @classmethod
    def split(cls, address):
        return "local-store://-", address.removeprefix("local-store://-").lstrip("/")


class Warnings(logging.Handler):
    """Collects the messages of warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def search(finder, address, options, unreadable):
    """Return the paths found, the warnings, and the error."""
    warnings = Warnings()
    logger = logging.getLogger("streamloader")
    logger.addHandler(warnings)
    try:
        files = FINDERS[finder](address, options, unreadable)
        return [file.address.encode(errors="surrogateescape").hex() for file in files], warnings.messages, None
    except StreamloaderError as error:
        return [], warnings.messages, [type(error).__name__, error.message, error.details.get("failed")]
    finally:
        logger.removeHandler(warnings)


if __name__ == "__main__":
    register_store("local-store", AsStore)
    logging.getLogger("streamloader").propagate = False
    print(json.dumps([search(*request) for request in json.loads(sys.argv[1])]))  # noqa: T201
    close_shared_stores()
