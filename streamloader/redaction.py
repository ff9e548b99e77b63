"""Remove credentials and other secrets from text that is shown, logged or sent to another process."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["redact"]

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")
_SECRETS: Final = re.compile(
    r"(?i)((?:password|passwd|passphrase|secret|token|signature|access_?key|api_?key|x-amz-[a-z-]+)=)[^&\s'\"]+"
)
# Query values of an address: those whose name sounds secret, and any value long enough to be a signature or a token.
_QUERY_SECRETS: Final = re.compile(
    r"(?i)([?&][^=&\s'\"#]*(?:auth|code|credential|jwt|key|pass|policy|pwd|secret|session|sig|token)[^=&\s'\"#]*=)"
    r"[^&\s'\"#]+"
)
_QUERY_LONG: Final = re.compile(r"([?&][^=&\s'\"#]+=)[^&\s'\"#]{24,}")


def redact(text: str) -> str:
    """Return `text` with the user names, passwords and signed query values of all addresses in it replaced."""
    text = _SECRETS.sub(r"\1***", _CREDENTIALS.sub("***@", text))
    if "?" in text:
        text = _QUERY_LONG.sub(r"\1***", _QUERY_SECRETS.sub(r"\1***", text))
    return text
