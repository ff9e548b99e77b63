"""Remove credentials and other secrets from text that is shown, logged, stored or sent to another process.

An address is shown by an allow-list: scheme, host, port and path, and the values of a few query parameters that select
data. User name and password, all other query values, and fragments are replaced by ``***``; so are the tokens that
some services put into paths. An address that cannot be taken apart with certainty is shown as its scheme alone:
everything after it may be part of a password, because passwords that are not percent-encoded contain any character.

Two addresses that differ only in a hidden value look the same. Where they must be distinguished, use
:func:`identify_address`, and keep the result in memory or store its digest.
"""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

from typing_extensions import override

from streamloader.common.printable import make_printable

__all__ = [
    "MASK", "SafeLogFilter", "clean", "get_user_name", "has_hidden_host", "has_secrets", "identify_address", "redact",
    "redact_address",
]  # fmt: skip

MASK: Final = "***"
_MAX_NESTING: Final = 8  # of addresses within addresses

# --- the parts of an address -----------------------------------------------------------------------------------------

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)?://(\S*)")
# An address that shows nothing but scheme, host, port and a path without special characters: the usual case.
_PLAIN_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[\w.-]*(?::\d{1,5})?(/[^?#@;:=\s]*)?")
_IPV6: Final = r"\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]"
_PORT: Final = r"(?::(?:\d{1,5}|port))?"  # "port": the placeholder of messages
_HOST: Final = rf"(?:{_IPV6}|[\w.%*{{}}+-]*){_PORT}"
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*")
_NUMERIC_HOST: Final = re.compile(rf"(?:localhost|{_IPV6}|\d{{1,3}}(?:\.\d{{1,3}}){{3}}){_PORT}")
_DOMAIN: Final = re.compile(rf"[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{{2,}}{_PORT}")  # or a user name with a dot
_USER_NAME: Final = re.compile(r"[\w.+%~-]{1,64}", re.ASCII)
_AUTHORITY_END: Final = re.compile(r"[/?#]")
_PUNCTUATION: Final = "\"'`)]>},:;.!"  # what may follow an address in a sentence

_HTTP_SCHEMES: Final = frozenset(
    {"", "dav", "davs", "http", "https", "mongodb", "mongodb+srv", "webdav", "webdavs", "ws", "wss"}
)
_SCHEMES_WITHOUT_LOGIN: Final = frozenset({"az", "file", "gs", "hf", "ipfs", "ipns", "memory", "s3", "sqlite"})
_SCHEMES_WITHOUT_HOST: Final = frozenset(  # of fsspec, which chains addresses with "::"
    {"blockcache", "cached", "data", "dir", "file", "filecache", "git", "gzip", "libarchive", "reference",
     "simplecache", "tar", "zip"}
)  # fmt: skip

# --- the allow-list --------------------------------------------------------------------------------------------------

_NUMBER: Final = re.compile(r"\d{1,10}", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_SHOWN_VALUES: Final[dict[str, re.Pattern[str]]] = {
    **dict.fromkeys(("frame", "height", "id", "index", "page", "part", "v", "version", "width"), _NUMBER),
    **dict.fromkeys(("dag-scope", "entity-bytes", "format"), _WORD),  # of IPFS gateways
    **dict.fromkeys(  # of MongoDB
        ("archive", "authsource", "directconnection", "loadbalanced", "replicaset", "ssl", "tls"), _WORD
    ),
}
_SHOWN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}", re.ASCII)
_SHOWN_FRAGMENT: Final = re.compile(r"\d{0,6}", re.ASCII)  # numbers of repeated stream keys
_SEPARATOR: Final = re.compile(r"([&;])")
# Paths of other schemes than HTTP are literal, and "?" is a glob character: only "?name=" begins a query there.
_LITERAL_QUERY: Final = re.compile(r"[?#][\w.%\[\]-]+=")
# The ends of addresses that name one version of an object. Such ids give no access.
_VERSION_SCHEMES: Final = frozenset({"gs", "s3"})
_VERSION: Final = re.compile(r"\?(?:versionId|generation)=[\w.%/+=-]{1,1024}(?=!/|\Z)", re.ASCII)
_PATH_PARAMETER: Final = re.compile(r";([^/;=?#]*)=([^/;]*)")
_NESTED_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+\S*")
# Tokens in paths: JSON Web Tokens; bots of Telegram; requests of Oracle Cloud that are authorized in advance; a digest
# beside an expiry, as nginx's secure_link and CDN77 have it; "name=value" of Akamai, Bunny and others.
_PATH_SECRETS: Final = (
    (re.compile(r"(/)eyJ[\w-]{5,}\.[\w.-]+"), r"\1" + MASK),
    (re.compile(r"(/bot)\d+:[\w-]{20,}"), r"\1" + MASK),
    (re.compile(r"(/p/)[^/]{20,}(?=/n/)"), r"\1" + MASK),
    (re.compile(r"(/)[\w-]{16,}={0,2}[,/]\d{9,11}(?=/)"), r"\1" + MASK),
    (re.compile(r"(/)\d{9,11}[,/][\w-]{16,}={0,2}(?=/)"), r"\1" + MASK),
    (
        re.compile(r"(?i)(/[\w-]*(?:auth|hdn|hmac|jwt|key|md5|pass|secret|sig|tok)[\w-]*=)[^/]*"),
        r"\1" + MASK,
    ),
    (re.compile(r"(?i)(%3a(?:%2f)+)[^/]*(?:%40|@)"), rf"\1{MASK}%40"),  # the login of an encoded address
)
_NAMED_PATH_VALUES: Final = re.compile(
    r"(?i)((?:password|passwd|passphrase|secret|token|signature|access_?key|api_?key|x-amz-[a-z-]{1,40})=)[^&/;\s'\"]+"
)

# --- secrets by their names ------------------------------------------------------------------------------------------

# These rules decide which values are never part of an identity. Adding a name here gives other identities to addresses
# that have such a value, and therefore other saved states and other files of the index cache.
_NAMED_SECRETS: Final = re.compile(
    r"(?i)((?:password|passwd|passphrase|secret|token|signature|access_?key|api_?key|x-amz-[a-z-]{1,40})=)[^&\s'\"]+"
)
_QUERY_SECRETS: Final = re.compile(
    r"(?i)([?&;](?:md5|expires|hmac|sign|[^=&\s'\"#]*"
    r"(?:auth|code|credential|jwt|key|pass|policy|pwd|secret|session|sig|token)[^=&\s'\"#]*)=)"
    r"[^&\s'\"#]+"
)
_LONG_QUERY_VALUES: Final = re.compile(r"([?&][^=&\s'\"#]+=)[^&\s'\"#]{24,}")

# In other text: options, headers and their reprs.
_SECRET_WORDS: Final = (
    r"(?:password|passwd|passphrase|pwd|secret|token|signature|cookie"  # noqa: S105 - names, not values
    r"|(?:access|account|api|private)[_-]?key|authorization|credential|connection_?string)"
)
_QUOTED: Final = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_TEXT_SECRETS: Final = (
    (
        re.compile(
            rf"(?i)(\b[\w-]{{0,40}}{_SECRET_WORDS}=)"
            rf"(?:b?{_QUOTED}|(?![,;)\]}}'\"]|\.\.\.|\*\*\*)[^&\s'\"]+)"
        ),
        MASK,
    ),
    (re.compile(r"(?i)(x-amz-[a-z-]{1,40}=)(?!\*\*\*)[^&\s'\"]+"), MASK),
    (re.compile(rf"""(?i)((['"])[\w-]{{0,40}}{_SECRET_WORDS}\2\s*:\s*)b?{_QUOTED}"""), f"'{MASK}'"),
    (re.compile(r"(?im)^(\s*(?:proxy-)?(?:authorization|(?:set-)?cookie|x-[\w-]*(?:token|key))\s*:\s*)\S.*$"), MASK),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}"), MASK),
    (re.compile(r"(\b)eyJ[\w-]{5,2000}\.[\w-]{1,9000}\.[\w-]*"), MASK),
)  # fmt: skip
_SECRET_HINT: Final = re.compile(rf"(?i){_SECRET_WORDS}|x-amz-|bearer|basic|eyJ|x-[\w-]*key")
# Logins in text that looks like an address and is none: "https:/me:word@host", "//me:word@host".
_BROKEN_ADDRESS: Final = re.compile(
    r"(?i)\b((?:https?|s?ftps?|ssh|s3|gs|az|webdavs?|smb|mongodb(?:\+srv)?):)(?!//)(?!/?\*\*\*@)[^\s@]{0,300}@\S*"
    r"|(?<![:\w/])(//)[^\s/@]{0,100}:\S{0,300}@\S*"
)


class _Parts(NamedTuple):
    """Parts of an address: ``scheme://login@hosts`` and all that follows. The scheme is in its original case."""

    scheme: str
    login: str | None
    hosts: str
    tail: str


def redact(text: str) -> str:
    """Return `text` with the secrets of all addresses, options and headers in it replaced by ``***``.

    A text that is one address should rather be given to :func:`redact_address`, which knows where it ends.
    """
    if "://" in text:
        text = _redact_addresses(text)
    if "@" in text and ":" in text:
        text = _BROKEN_ADDRESS.sub(rf"\1\2{MASK}", text)
    if _SECRET_HINT.search(text):
        for pattern, mask in _TEXT_SECRETS:
            text = pattern.sub(rf"\g<1>{mask}", text)
    return text


def redact_address(address: str) -> str:
    """Return an address in the form that may be shown and stored. A local path is returned unchanged.

    The result of another call is returned unchanged, too.
    """
    plain = _PLAIN_ADDRESS.fullmatch(address)
    if plain is not None and (plain[1].lower() not in _HTTP_SCHEMES or not _has_path_secrets(plain[2] or "")):
        return address
    match = _SCHEME.match(address)
    if match is None:
        return redact(address) if "://" in address or _BROKEN_ADDRESS.search(address) else address
    parts = _split_address(match[1], address[match.end() :])
    return f"{match[1]}://{MASK}" if parts is None else _show_parts(parts)


def has_hidden_host(address: str) -> bool:
    """Return whether an address is malformed, or may have a password that extends beyond its first "/"."""
    match = _SCHEME.match(address)
    return match is not None and _split_address(match[1], address[match.end() :]) is None


def has_secrets(address: str) -> bool:
    """Return whether an address contains more than may be stored, or cannot be taken apart. A user name may be stored.

    A user name that contains special characters is refused, because it may be part of a password.
    """
    match = _SCHEME.match(address)
    if match is None:
        return redact(address) != address if "://" in address else False
    parts = _split_address(match[1], address[match.end() :])
    if parts is None or (parts.login is not None and _USER_NAME.fullmatch(parts.login) is None):
        return True
    return _show_parts(parts._replace(login=None)) != f"{match[1]}://{parts.hosts}{parts.tail}"


def get_user_name(address: str) -> str | None:
    """Return the user name in an address if it may be stored: if it has no special characters. Otherwise None."""
    match = _SCHEME.match(address)
    parts = None if match is None else _split_address(match[1], address[match.end() :])
    if parts is None or parts.login is None:
        return None
    user = parts.login.partition(":")[0]
    return user if _USER_NAME.fullmatch(user) else None


def identify_address(address: str) -> str:
    """Return a text that is equal for addresses of the same object, and different for those of different ones.

    It is the address without its login, and without the values of parameters that are known to be secret, so that an
    address signed again keeps its identity. It contains all other values and must therefore not be shown or stored.
    Its digest may be stored. If such a value is a short secret, the digest can be used to guess it.
    """
    match = _SCHEME.match(address)
    if match is None:
        return address
    rest = address[match.end() :]
    parts = _split_address(match[1], rest, lenient=True)
    if parts is None:
        _, at_sign, remainder = rest.rpartition("@")
        rest = f"{MASK}@{remainder}" if at_sign else rest
    else:
        rest = f"{'' if parts.login is None else f'{MASK}@'}{parts.hosts}{parts.tail}"
    text = f"{match[1]}://{rest}"
    version = _VERSION.search(text) if match[1].lower() in _VERSION_SCHEMES else None
    text, end = (text, "") if version is None else (text[: version.start()], text[version.start() :])
    text = _NAMED_SECRETS.sub(rf"\1{MASK}", text)
    if "?" in text:
        text = _LONG_QUERY_VALUES.sub(rf"\1{MASK}", _QUERY_SECRETS.sub(rf"\1{MASK}", text))
    return text + end


def clean(text: str, limit: int | None = None) -> str:
    """Return the text of a message without secrets, and with all characters but line feeds printable.

    Args:
        text: Text of a message.
        limit: Maximum number of characters that are kept. Defaults to all.
    """
    return redact(make_printable(text, limit, keep_lines=True))


class SafeLogFilter(logging.Filter):
    """Removes secrets and unprintable characters from the messages of log records, whatever their arguments are."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Clean a record. All records pass."""
        try:
            message = record.getMessage()
            # A name must not forge a line. Records of workers have their whole text as the only argument.
            if isinstance(record.args, tuple) and record.msg != "%s" and "\n" in message:
                message = str(record.msg) % tuple(
                    make_printable(item, limit=None) if isinstance(item, str) else item for item in record.args
                )
        except Exception:  # noqa: BLE001 - logging reports arguments that do not fit when it formats the record
            return True
        cleaned = clean(message)
        if cleaned != record.getMessage():
            record.msg, record.args = cleaned, None
        return True


# --- taking addresses apart ------------------------------------------------------------------------------------------


def _split_address(scheme: str, rest: str, *, lenient: bool = False) -> _Parts | None:
    """Return the parts of an address, or None if it is malformed, or if a password may extend beyond its first "/".

    Args:
        scheme: Scheme of the address, without "://".
        rest: Address without its scheme.
        lenient: Whether the login ends before the first "/" in any case, as stores see it. Defaults to False.
    """
    end = _AUTHORITY_END.search(rest)
    authority, tail = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    login, at_sign, hosts = authority.rpartition("@")
    if _HOSTS.fullmatch(hosts) is None or hosts.startswith(":"):
        if scheme.lower() in _SCHEMES_WITHOUT_HOST and "@" not in rest.partition("://")[0]:
            return _Parts(scheme, None, "", rest)
        return None
    parts = _Parts(scheme, login if at_sign else None, hosts, tail)
    return None if not lenient and "@" in tail and _is_ambiguous(parts) else parts


def _is_ambiguous(parts: _Parts) -> bool:
    """Return whether the "@" in the path, query or fragment may be the end of a login."""
    before = parts.tail[: parts.tail.rindex("@")]
    is_numeric = _NUMERIC_HOST.fullmatch(parts.hosts) is not None
    if parts.login is not None and ":" in parts.login and not is_numeric:
        return True
    if before[0] != "/" and ":" in before:
        return True
    if is_numeric or _DOMAIN.fullmatch(parts.hosts):
        return False
    if parts.login is None and ":" in parts.hosts:  # a user name, and a password that begins with digits
        return True
    if parts.login is None and parts.scheme.lower() in _SCHEMES_WITHOUT_LOGIN:
        return False
    return ":" in before or (parts.login is None and before[0] != "/" and "=" not in before)


def _show_parts(parts: _Parts, depth: int = 0) -> str:
    login = "" if parts.login is None else f"{MASK}@"
    return f"{parts.scheme}://{login}{parts.hosts}{_show_tail(parts.scheme.lower(), parts.tail, depth)}"


def _show_tail(scheme: str, tail: str, depth: int) -> str:
    """Return path, query and fragment without secrets."""
    if scheme in _HTTP_SCHEMES:
        rest, mark, fragment = tail.partition("#")
        path, question, query = rest.partition("?")
        path = _PATH_PARAMETER.sub(rf";\1={MASK}", path)
        for pattern, replacement in _PATH_SECRETS:
            path = pattern.sub(replacement, path)
        fragment = fragment if _SHOWN_FRAGMENT.fullmatch(fragment) else MASK
        return f"{_show_path(path, depth)}{question}{_show_query(query)}{mark}{fragment}"
    version = _VERSION.search(tail) if scheme in _VERSION_SCHEMES else None
    if version is not None:
        return (
            _show_tail(scheme, tail[: version.start()], depth) + version[0] + _show_path(tail[version.end() :], depth)
        )
    found = _LITERAL_QUERY.search(tail)
    if found is None:
        return _show_path(tail, depth)
    path, rest = tail[: found.start()], tail[found.start() + 1 :]
    query, mark, fragment = rest.partition("#")
    fragment = fragment if _SHOWN_FRAGMENT.fullmatch(fragment) else MASK
    return f"{_show_path(path, depth)}{tail[found.start()]}{_show_query(query)}{mark}{fragment}"


def _show_query(query: str) -> str:
    return query and "".join(part if part in "&;" else _show_parameter(part) for part in _SEPARATOR.split(query))


def _show_parameter(parameter: str) -> str:
    name, sign, value = parameter.partition("=")
    if not value:
        return MASK + sign  # a value without a name
    pattern = _SHOWN_VALUES.get(name.lower())
    value = value if pattern is not None and pattern.fullmatch(value) else MASK
    return f"{name if _SHOWN_NAME.fullmatch(name) else MASK}={value}"


def _show_path(path: str, depth: int) -> str:
    """Return a path without named secrets, and without those of an address that is part of it, as proxies have it."""
    path = _NAMED_PATH_VALUES.sub(rf"\1{MASK}", path)
    if ":/" not in path:
        return path
    if depth >= _MAX_NESTING:
        return MASK
    return _NESTED_ADDRESS.sub(lambda match: _show_nested_address(match[0], depth + 1), path)


def _show_nested_address(text: str, depth: int) -> str:
    scheme, _, rest = text.partition(":")
    slashes = rest[: len(rest) - len(rest.lstrip("/"))]
    rest = rest.lstrip("/")
    parts = _split_address(scheme, rest)
    if parts is None and "@" not in rest:
        return text
    shown = MASK if parts is None else _show_parts(parts, depth).partition("://")[2]
    return f"{scheme}:{slashes}{shown}"


def _has_path_secrets(path: str) -> bool:
    return any(pattern.search(path) for pattern, _ in _PATH_SECRETS)


# --- addresses in other text -----------------------------------------------------------------------------------------


def _redact_addresses(text: str, depth: int = 0) -> str:
    if depth > _MAX_NESTING:
        return MASK
    parts: list[str] = []
    position = 0
    while (match := _ADDRESS.search(text, position)) is not None:
        parts.append(text[position : match.start()])
        shown, position = _show_token(match[1] or "", match[2], depth), match.end(2)
        if shown is None:
            shown = f"{match[1] or ''}://{MASK}"
            position = _find_login_end(text, position)
        parts.append(shown)
    return "".join([*parts, text[position:]])


def _show_token(scheme: str, token: str, depth: int) -> str | None:
    """Return an address in a text, up to the next blank, without secrets. Return None if it cannot be taken apart."""
    rest = token.rstrip(_PUNCTUATION)
    if rest.count("[") > rest.count("]") and token[len(rest) :].startswith("]"):
        rest += "]"
    punctuation = token[len(rest) :]
    parts = _split_address(scheme, rest)
    if parts is not None:
        return f"{scheme}://{_show_parts(parts).partition('://')[2]}{punctuation}"
    # The text may continue without a blank after the host, as a list of addresses does.
    hosts = _HOSTS.match(rest)
    remainder = rest[hosts.end() :] if hosts is not None else rest
    if "@" in rest or not remainder or remainder[0] not in _PUNCTUATION or _is_port_like(remainder):
        return None
    return f"{scheme}://{rest[: len(rest) - len(remainder)]}{_redact_addresses(remainder, depth + 1)}{punctuation}"


def _is_port_like(remainder: str) -> bool:
    return remainder[0] == ":" and remainder[1:2] not in ("", *_PUNCTUATION)


def _find_login_end(text: str, position: int) -> int:
    """Return the end of the word with the last "@" of a line: a password may contain blanks, too."""
    line_end = text.find("\n", position)
    line_end = len(text) if line_end < 0 else line_end
    last = text.rfind("@", position, line_end)
    if last < 0:
        return position
    blank = re.compile(r"\s").search(text, last)
    return line_end if blank is None else min(line_end, blank.start())
