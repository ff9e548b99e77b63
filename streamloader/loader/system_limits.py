"""Name the limit of the system because of which a loader could not start."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from streamloader.common.error_translation import error_translator
from streamloader.errors import StreamloaderError, SystemLimit

__all__ = ["name_system_limits"]

_REMEDIES: Final = {
    errno.EMFILE: "this process has too many open files: close some, or raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: raise the sysctl fs.file-max",
    errno.EFBIG: "the limit of file sizes also applies to shared memory: raise it (ulimit -f unlimited)",
    errno.EAGAIN: "there are too many processes or threads: end some, or raise the limit (ulimit -u, or pids.max)",
    errno.ENOMEM: "there is not enough memory for another process: use fewer workers",
    errno.ENOSPC: "there is not enough memory, or the limit of this container is reached: use smaller batches",
}


@error_translator
def name_system_limits(action: str) -> Iterator[None]:
    """Translate errors of the system inside that a limit has caused.

    Args:
        action: Description of what cannot be done, such as "the workers cannot be started".

    Raises:
        SystemLimit: If a limit is reached.
    """
    try:
        yield
    except StreamloaderError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise SystemLimit(f"{action}: {remedy} ({error})", errno=error.errno) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise SystemLimit(f"{action}: {_REMEDIES[errno.EAGAIN]} ({error})", errno=errno.EAGAIN) from error
