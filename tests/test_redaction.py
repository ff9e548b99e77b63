"""Addresses, options and headers in text: what is shown of them, and that no secret gets through."""

from __future__ import annotations

import logging
import random
import string
import time

import pytest

from streamloader import errors
from streamloader.redaction import (
    MASK,
    SafeLogFilter,
    clean,
    get_user_name,
    has_secrets,
    identify_address,
    redact,
    redact_address,
)

# Words of secrets. Every form below has one or several of them; none may get through, not even a part.
WORDS = ("Zebra", "Yonder", "Xenon")
SEPARATORS = ("", "@", "/", "?", "#", ":", "'", '"', "&", "=", "%40", "\\", "$", ";", ",", "(", "[", "]", "{", "<", "é")

LOGINS = [
    *(f"user:Zebra{separator}Yonder@" for separator in SEPARATORS),
    *(f"Zebra{separator}Yonder:Xenon@" for separator in SEPARATORS if separator),
    *(f"user:{separator}Zebra@" for separator in SEPARATORS),
    *(f"user:Zebra{separator}@" for separator in SEPARATORS),
    *(f"user:12{separator}Zebra@" for separator in SEPARATORS),
    "Zebra@", ":Zebra@", "Zebra:@", "user:Ze bra Zebra@", "user:Zebra@Yonder/Xenon@", "user:Zebra#?/@Yonder@",
]  # fmt: skip

QUERIES = [
    "?Zebra", "?Zebra=", "?=Zebra", "?a=Zebra", "?md5=Zebra&expires=Yonder", "?st=Zebra&e=Yonder", "?h=Zebra",
    "?hdnea=exp=1~acl=/*~hmac=Zebra", "?Key-Pair-Id=Zebra", "?sv=2024&sig=Zebra", "?x=1;token=Zebra",
    "?X-Amz-Date=Zebra",
    "?id=Zebra", "?part=Zebra", "?format=a&b=Zebra", "?url=https%3A%2F%2Fme:Zebra%40host", "?a='Zebra", '?a="Zebra',
    "?a=b&&=Zebra", "?a=b#Zebra", "#Zebra", "#access_token=Zebra&x=Yonder", "?a[]=Zebra", "?a=Zebra?b=Yonder",
    "?u=https://me:Zebra@host/x", "?AUTH=Zebra", "?ticket=Zebra%20Yonder", "?v=1.Zebra", "?p=Zebra/Yonder",
]  # fmt: skip

PATHS = [
    "/a;jsessionid=Zebra/b.mp4", "/a.mp4;token=Zebra", "/file/bot12345:ZebraZebraZebraZebraZebraZ/a.mp4",
    "/p/ZebraZebraZebraZebraZebra/n/space/b/bucket/o/a.mp4", "/eyJhbGciOiJ.ZebraZebra.Yonder/a.mp4",
    "/s/ZebraZebraZebraZebra12,1700000000/a.mp4", "/ZebraZebraZebraZebra12/1700000000/a.mp4",
    "/1700000000/ZebraZebraZebraZebra12/a.mp4", "/hdntl=exp=1~acl=!~hmac=Zebra/a.mp4", "/bcdn_token=Zebra&e=1/a.mp4",
    "/https%3A%2F%2Fme%3AZebra%40host%2Fx.mp4", "/token=Zebra/a.mp4", "/a.mp4&token=Zebra&x-amz-date=Yonder",
    "/https://me:Zebra@host.example/x.mp4", "/https:/me:Zebra@host.example/x?a=Yonder",
]  # fmt: skip

UNCHANGED = [
    "ssh://box/a b@c.mp4", "ssh://box.local:2222/videos/a@b.mp4", "http://localhost:8080/img@2x.png", "s3://bucket/clip-?.mp4",
    "http://10.0.0.5:80/a@b:c.mp4", "https://host.example/x/@user/a.mp4", "s3://bucket/a?b.mp4", "s3://b/12:30/cam@1.mp4",
    "ssh://box/*/clip-[0-9]?.mp4", "https://host/v?id=17&part=2", "https://host/a.mp4#2", "memory://x/", "ipfs://bafy/a/b",
    "ipfs://bafy?format=raw&dag-scope=entity", "hf://datasets/user/set@main/a.mp4", "file:///home/a:b@c/d.mp4",
    "mongodb://h:1,i:2/d?archive=a&authSource=admin&tls=true", "http://[::1]:80/a", "zip://a.mp4::/tmp/x.zip",
    "https://host-{1..3}.example/a.mp4", "HTTPS://Host/A", "/data/a@b:c.mp4", "rel/a.mp4", "https://***@host/a?b=***#2",
    "https://host/%F0%9F%8E%A5.mp4", "ssh://grüße.example/größe.mp4", "s3://b/year=2024/token.mp4", "sqlite:///x.sqlite",
]  # fmt: skip


def make_addresses():
    """Return addresses with secrets in all forms, of many schemes."""
    for scheme in ("https", "http", "ssh", "sftp", "s3", "webdav", "smb", "mongodb", "foo", "HTTPS"):
        # In s3://bucket/..., what follows the first "/" is always a key.
        for login in LOGINS if scheme != "s3" else LOGINS[: len(SEPARATORS)]:
            yield f"{scheme}://{login}host.example/videos/a.mp4"
            yield f"{scheme}://{login}box"
    for host in ("host", "host.example:8080", "[::1]"):
        yield from (f"https://{host}/a.mp4{query}" for query in QUERIES)
        yield from (f"http://{host}{query}" for query in QUERIES)
        yield from (f"https://{host}{path}" for path in PATHS)
    yield from (f"ssh://box/a.mp4{query}" for query in ("?token=Zebra", "#token=Zebra", "?a=Zebra&b=Yonder"))
    for chain in ("simplecache::", "zip://a.mp4::", "filecache::"):
        yield f"{chain}https://user:Zebra@host/x?a=Yonder"


def find_words(text):
    return [word for word in WORDS if word.lower() in text.lower()]


@pytest.mark.parametrize("sentence", ["{}", "cannot read {}: refused", "({})", "'{}'", "['{}', 'x']", "at {}, or {}."])
def test_no_form_of_a_secret_gets_through(sentence):
    found = {}
    for address in make_addresses():
        shown = redact(sentence.format(address, address))
        if find_words(shown) or redact(shown) != shown:
            found[address] = shown
    assert found == {}


def test_no_form_of_a_secret_gets_through_in_an_address():
    found = {}
    for address in make_addresses():
        shown = redact_address(address)
        if find_words(shown) or redact_address(shown) != shown or redact(shown) != shown:
            found[address] = shown
    assert found == {}


def test_no_form_of_a_secret_gets_into_an_error():
    for address in list(make_addresses())[::4]:
        error = errors.StoreError(f"cannot read {address}", address=address, url=address)
        text = f"{error} {error!r} {error.address!r} {error.details!r} {errors.to_wire(error)!r}"
        assert not find_words(text), address


@pytest.mark.parametrize("address", UNCHANGED)
def test_ordinary_addresses_are_shown_as_they_are(address):
    assert redact_address(address) == address
    assert redact(address) == address
    assert redact(f"cannot read '{address}': refused") == f"cannot read '{address}': refused"
    if not address.startswith("mongodb"):
        assert identify_address(address) == address


def test_addresses_that_look_like_a_login_keep_their_identity():
    address = "ssh://box:2222/videos/a@b.mp4"
    assert redact_address(address) == "ssh://***"
    assert identify_address(address) == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("https://user:p/ss@host/x", "https://***"),
        ("https://user:12/34@host/x", "https://***"),
        ("https://me:word@127.0.0.1/img@2x.png", "https://***@127.0.0.1/img@2x.png"),
        ("https://me:word@host.example/img@2x.png", "https://***"),
        ("https://me@host.example/img@2x.png", "https://***@host.example/img@2x.png"),
        ("ssh://me@box/a@b.mp4", "ssh://***@box/a@b.mp4"),
        ("https://host/a?b=c&id=17;id=x&part=2#top", "https://host/a?b=***&id=17;id=***&part=2#***"),
        ("https://host/a?ABCDEF", "https://host/a?***"),
        ("https://host/a?1f2e3d=4", "https://host/a?***=***"),
        ("https://ho st/a", "https://***"),
        ("https://host:99999999/a", "https://***"),
        ("https:/me:word@host/a", "https:***"),
        ("s3://key:sec/ret@bucket/a", "s3://***"),
    ],
)
def test_what_is_shown(address, shown):
    assert redact_address(address) == shown


@pytest.mark.parametrize(
    "text",
    [
        "{'password': 'Zebra', 'port': 5}",
        '{"secret_access_key": "Zebra\'s \\" Yonder", "region": "x"}',
        "SshLogin(user='me', password='Zebra Yonder', passphrase=\"Xenon\")",
        "headers={'Authorization': 'Bearer Zebra', 'X-Api-Key': 'Yonder', 'Cookie': 'a=Xenon'}",
        "Authorization: Basic Zebra\nX-Auth-Token: Yonder\nSet-Cookie: sid=Xenon; Path=/",
        "sent with Bearer Zebra0123456789",
        "client_secret=Zebra&access-key=Yonder",
        "connection_string='AccountKey=Zebra'",
        "got eyJhbGciOiJIUzI1NiJ9.Zebra.Yonder",
        "account_key=b'Zebra'",
    ],
)
def test_options_and_headers_are_hidden(text):
    assert not find_words(redact(text))
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "credentials come from one of: the address, auth=, token=, an Authorization in headers=",
        "pass it in storage_options={'...://...': {'password': ...}}, or log in with a key",
        "expected http(s)://host or http(s)://host:port",
        "the address has the form ssh://host:port/path; put 'user@' before the host if needed",
        "an encrypted key needs passphrase= or the agent",
        "tokenizer=None, max_tokens=5",
        "mail me@box about /data/a@b.mp4 at 12:30",
        "s3:// has no option token; it has region",
    ],
)
def test_messages_stay_readable(text):
    assert redact(text) == text
    assert clean(text) == text


def test_identities_distinguish_what_is_hidden_and_contain_no_login():
    first, second = "https://me:word@host/get?name=alpha", "https://you:key@host/get?name=beta"
    assert redact_address(first) == redact_address(second) == "https://***@host/get?name=***"
    assert identify_address(first) == "https://***@host/get?name=alpha" != identify_address(second)
    signed = [f"https://host/a.mp4?id=x&X-Amz-Signature={number}&md5=a{number}&Expires={number}" for number in (1, 2)]
    assert identify_address(signed[0]) == identify_address(signed[1])
    for separator in ("", "@", ":", "'", '"', "&", "%40"):
        assert not find_words(identify_address(f"ssh://user:Zebra{separator}Yonder@box/a.mp4"))


@pytest.mark.parametrize(
    ("address", "user", "secret"),
    [
        ("ssh://me@box/data", "me", False),
        ("ssh://me%40corp@box/data", "me%40corp", False),
        ("ssh://me:word@box/data", "me", True),
        ("ssh://me:w/ord@box/data", None, True),
        ("ssh://m'e@box/data", None, True),
        ("webdav://host/data?token=x", None, True),
        ("s3://bucket/clip?.mp4", None, False),
        ("/data/a:b@c", None, False),
    ],
)
def test_what_may_be_stored_of_an_address(address, user, secret):
    assert (get_user_name(address), has_secrets(address)) == (user, secret)


@pytest.mark.parametrize(
    "piece",
    [
        "https://h/x:/", "https://h','", "x:/", "://", "//a:", "ssh:", "a-", "eyJ", "?auth", "'token", "https://u:p",
        "@", "bearer ", "https://h/https:/", "https://u:p@h/?a=b&", "%3a%2f%2f", ";a=", "x-amz-", "password='\\",
    ],
)  # fmt: skip
def test_repeated_pieces_cost_no_time_and_no_stack(piece):
    """Text that a server or catalog made to slow down its reader: the time is linear, or bounded by the limits."""
    text = (piece * 10_000)[:10_000] + " token=@ bearer eyJ"
    started = time.process_time()
    for shown in (redact(text), redact_address(text), identify_address(text), clean(text)):
        assert isinstance(shown, str)
    has_secrets(text)
    assert time.process_time() - started < 20.0


def test_log_records_are_cleaned_whatever_their_arguments(caplog):
    logger = logging.getLogger("streamloader")
    assert any(isinstance(each, SafeLogFilter) for each in logger.filters)
    logger.warning("%s and %r", "https://me:Zebra@host/x", {"password": "Yonder"})
    logger.warning("a file %s of %d", "a\nb\x1b[31m\u202e.mp4", 5)
    logger.warning("%s", "two\nlines\x07")
    logger.warning("%(name)s", {"name": "token=Xenon"})
    assert [record.getMessage() for record in caplog.records] == [
        f"https://{MASK}@host/x and {{'password': '{MASK}'}}",
        "a file a\\nb\\x1b[31m\\u202e.mp4 of 5",
        "two\nlines\\x07",
        f"token={MASK}",
    ]


def test_errors_show_names_on_one_line():
    name = "ssh://box/a\nFAKE: all is well \x1b]0;title\x07\u202e.mp4"
    error = errors.NotFound(f"no such file: {name}", address=name)
    assert "\n" not in str(error)
    assert str(error).isprintable()
    assert error.address == name
    error = errors.StreamFailed("first line\nsecond \x9b31m line", stream="k\ney", worker_traceback="a\n\x1bb")
    assert str(error) == "first line\nsecond \\x9b31m line (stream='k\\ney')\n\n--- in the worker ---\na\n\\x1bb"
    assert len(str(errors.StoreError("x" * 200_000))) <= 20_000


def make_random_addresses(seed, count):
    """Return random addresses whose login and values consist of words and special characters."""
    random_ = random.Random(seed)
    characters = string.punctuation + " \t\u00e9\u202e"

    def make_secret(characters=characters):
        parts = [random_.choice(characters) if random_.random() < 0.6 else random_.choice(WORDS) for _ in range(6)]
        return "".join([*parts, random_.choice(WORDS)])

    for _ in range(count):
        scheme = random_.choice(("https", "ssh", "s3", "webdav", "ftp"))
        # A user name with a dot before a "/" is a host, and what follows s3://bucket/ is a key.
        user = make_secret(characters.replace(".", "")) if scheme != "s3" else "user"
        login = random_.choice((f"user:{make_secret()}@", f"{user}:{make_secret()}@", f"u:{make_secret()}@"))
        yield f"{scheme}://{login}{random_.choice(('host.example', 'box', '10.0.0.1:80'))}/a.mp4"


def check_random_addresses(seed, count):
    found = {}
    for address in make_random_addresses(seed, count):
        shown = redact_address(address)
        if find_words(shown) or redact_address(shown) != shown:
            found[address] = shown
    assert found == {}


def test_random_logins():
    check_random_addresses(1, 500)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_random_logins(seed):
    check_random_addresses(seed, 20_000)
