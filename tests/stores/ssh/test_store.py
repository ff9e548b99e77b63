"""The SSH store with a real OpenSSH server: logins, host keys, connections, and files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from canaries import canary
from clocks import JumpingLoop, run_in
from planted import give_away, needs_root, plant
from servers.sshd import agent
from servers.sshd_fixture import started

from streamloader.config import Limits, Retry, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreError,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.base import Store
from streamloader.stores.registry import open_store
from streamloader.stores.ssh.store import SshStore
from streamloader.testing.faults.ssh import FaultySsh
from streamloader.values import ByteRange

DATA = hashlib.shake_256(b"ssh").digest(6_000_000)
TRUST = "any_host_key_even_of_an_impostor"


@pytest.fixture(autouse=True)
def data(ssh_server):
    (ssh_server.data / "object").write_bytes(DATA)


def _read(store: Store, path: str, span: ByteRange | None = None) -> bytes:
    async def read():
        async with store:
            return await store.read(path, span)

    return asyncio.run(read())


def _store(server, **options) -> SshStore:
    return SshStore(server.url, **{**server.options(), **options})


# --- logins ----------------------------------------------------------------------------------------------------------


def test_a_key(ssh_server):
    assert _read(_store(ssh_server), ssh_server.path("object")) == DATA


def test_an_encrypted_key(ssh_server):
    store = _store(ssh_server, client_keys=str(ssh_server.locked_key), passphrase=canary("ssh-passphrase"))
    assert _read(store, ssh_server.path("object"), ByteRange(5, 9)) == DATA[5:9]


@pytest.mark.parametrize("passphrase", [None, "wrong"])
def test_an_encrypted_key_without_its_passphrase(ssh_server, passphrase):
    store = _store(ssh_server, client_keys=str(ssh_server.locked_key), passphrase=passphrase)
    with pytest.raises(ConfigError, match="passphrase="):
        _read(store, ssh_server.path("object"))


def test_a_certificate(ssh_server):
    store = _store(ssh_server, client_keys=[str(ssh_server.certificate_key)])
    assert _read(store, ssh_server.path("object"), ByteRange(-7)) == DATA[-7:]


def test_the_agent(ssh_server, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys there
    with agent(ssh_server.key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        assert _read(_store(ssh_server, client_keys=()), ssh_server.path("object"), ByteRange(0, 3)) == DATA[:3]


@needs_root
def test_an_agent_of_another_user_is_not_used(ssh_server, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys there
    with agent(ssh_server.key) as socket_path:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        give_away(Path(socket_path))
        with pytest.raises(AccessDenied):
            _read(_store(ssh_server, client_keys=()), ssh_server.path("object"), ByteRange(0, 3))
    assert f"the SSH agent is not used: {socket_path} belongs to another user" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "nothing"])
def test_an_agent_that_is_none(ssh_server, monkeypatch, tmp_path, kind):
    if kind == "pipe":
        plant(tmp_path / "agent", kind)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    assert _read(_store(ssh_server), ssh_server.path("object"), ByteRange(0, 3)) == DATA[:3]


def test_a_key_that_the_server_does_not_know(ssh_server):
    with pytest.raises(AccessDenied, match="client_keys=") as caught:
        _read(_store(ssh_server, client_keys=[str(ssh_server.stranger_key)]), ssh_server.path("object"))
    assert not caught.value.transient
    assert not isinstance(caught.value, UntrustedHost)


@pytest.mark.parametrize("option", ["client_keys", "known_hosts", "config"])
def test_a_file_that_is_not_there(ssh_server, option):
    with pytest.raises(ConfigError, match=rf"{option}='/nowhere/file'"):
        _read(_store(ssh_server, **{option: "/nowhere/file"}), ssh_server.path("object"))


@pytest.mark.parametrize("where", ["option", "address"])
def test_a_password(where):
    password = canary("ssh-password" if where == "option" else "ssh-address-password")

    async def read():
        async with FaultySsh({"object": DATA}, password=password) as server:
            options = server.options()
            url = server.url
            if where == "address":
                url = url.replace("@", f":{options.pop('password')}@")
            async with open_store(url, **options) as store:
                assert password not in repr(store) + store.url + repr(vars(store.inner))
                with pytest.raises(StoreError) as caught:
                    await store.read("missing")
                assert password not in f"{caught.value!r}{caught.value}"
                return await store.read("object")

    assert asyncio.run(read()) == DATA


def test_a_wrong_password_is_tried_once():
    async def read():
        async with FaultySsh({"object": DATA}, "login refused", password=canary("ssh-password")) as server:
            options = {**server.options(), "password": canary("ssh-wrong-password")}
            async with open_store(server.url, **options) as store:
                for result in await asyncio.gather(*(store.read("object") for _ in range(8)), return_exceptions=True):
                    assert isinstance(result, AccessDenied)
                    assert canary("ssh-wrong-password") not in f"{result!r} {result}"
            return server.fault_count

    assert asyncio.run(read()) == 1


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["box", "jumped"])
def test_aliases_and_jump_hosts_of_the_configuration(ssh_server, alias):
    store = SshStore(f"ssh://{alias}", config=str(ssh_server.config))
    assert _read(store, ssh_server.path("object"), ByteRange(1, 4)) == DATA[1:4]


def test_a_jump_host_with_a_password(ssh_server):
    async def read():
        async with FaultySsh({}, password=canary("ssh-jump-password")) as jump:
            hosts = [str(ssh_server.known_hosts), jump.options()["known_hosts"]]
            through = f"reader:{canary('ssh-jump-password')}@127.0.0.1:{jump.port}"
            async with _store(ssh_server, jump=through, known_hosts=hosts) as store:
                assert canary("ssh-jump-password") not in repr(vars(store))
                got = await store.read(ssh_server.path("object"))
            return got, jump.logins

    assert asyncio.run(read()) == (DATA, 1)


def test_the_password_of_a_host_does_not_go_to_its_jump_host(ssh_server):
    async def read():
        async with FaultySsh({}, password=canary("ssh-password")) as jump:
            hosts = [str(ssh_server.known_hosts), jump.options()["known_hosts"]]
            through = f"reader@127.0.0.1:{jump.port}"
            password = canary("ssh-password")  # the jump host would accept it
            async with _store(ssh_server, jump=through, known_hosts=hosts, password=password) as store:
                with pytest.raises(AccessDenied, match=f"127.0.0.1:{jump.port}"):
                    await store.read(ssh_server.path("object"))
            return jump.logins

    assert asyncio.run(read()) == 0


def test_jump_hosts_that_lead_in_a_circle(ssh_server, tmp_path):
    config = tmp_path / "config"
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(ConfigError, match="circle"):
        _read(SshStore("ssh://a", config=str(config)), "x")


@pytest.mark.parametrize(
    "url", ["ssh://", "ssh:///path", "ssh://host:0/x", "ssh://host:port/x", "ssh://-oProxyCommand=x/y", "ssh://[::1/x"]
)
def test_malformed_addresses(url):
    with pytest.raises(ConfigError, match="ssh://host:port/path"):
        open_store(url)


def test_paths(ssh_server):
    assert SshStore.split("ssh://me@box:22//srv/a b%20.mp4") == ("ssh://me@box:22", "srv/a b%20.mp4")
    (ssh_server.home / "inner").mkdir(exist_ok=True)
    (ssh_server.home / "inner" / "file").write_bytes(b"at home")

    async def read():
        async with open_store(f"{ssh_server.url}/~/inner", **ssh_server.options()) as store:
            return await store.read("file"), [info.path async for info in store.list()]

    assert asyncio.run(read()) == (b"at home", ["file"])


# --- host keys -------------------------------------------------------------------------------------------------------


def test_an_unknown_host_is_refused(ssh_server, tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(UntrustedHost, match="SHA256:") as caught:
        _read(_store(ssh_server, known_hosts=str(tmp_path / "empty")), ssh_server.path("object"))
    assert "not known" in str(caught.value)
    assert f"ssh-keyscan -p {ssh_server.port} 127.0.0.1" in str(caught.value)
    assert not caught.value.transient
    # The line in the message is what known_hosts needs.
    (tmp_path / "known").write_text(re.search(r"\((\[127.*?)\)", str(caught.value))[1] + "\n")
    store = _store(ssh_server, known_hosts=str(tmp_path / "known"))
    assert _read(store, ssh_server.path("object"), ByteRange(0, 1)) == DATA[:1]


def test_a_changed_host_key_is_refused(own_ssh_server):
    (own_ssh_server.data / "object").write_bytes(DATA)
    assert _read(_store(own_ssh_server), own_ssh_server.path("object")) == DATA
    own_ssh_server.stop()
    own_ssh_server.new_host_key()
    own_ssh_server.start()
    with pytest.raises(UntrustedHost, match="ssh-keygen -R"):
        _read(_store(own_ssh_server), own_ssh_server.path("object"))


@pytest.mark.parametrize(
    ("setting", "servers", "clients"),
    [
        ("Ciphers", "aes256-ctr", "aes128-ctr"),
        ("KexAlgorithms", "curve25519-sha256", "ecdh-sha2-nistp256"),
        ("MACs", "hmac-sha2-256", "hmac-sha2-512"),
    ],
)
def test_no_common_algorithm_is_no_impostor(setting, servers, clients, tmp_path):
    both = {"Ciphers": "aes128-ctr"} if setting == "MACs" else {}  # GCM needs no MAC
    (tmp_path / "config").write_text("".join(f"{k} {v}\n" for k, v in {**both, setting: clients}.items()))
    with started(settings={**both, setting: servers}) as server:
        (server.data / "object").write_bytes(DATA)
        options = {**server.options(), "config": str(tmp_path / "config"), "retry": Retry(first_wait=0, jitter=0)}
        with pytest.raises(ProtocolError, match=setting) as caught:
            # The server may close the connection before the reason is known; another attempt then finds it.
            _read(open_store(server.url, **options), server.path("object"))
        assert servers in str(caught.value)
        assert clients in str(caught.value)
        assert "attacker" not in str(caught.value)
        assert "ssh-keygen" not in str(caught.value)
        (tmp_path / "config").write_text("".join(f"{k} {v}\n" for k, v in {**both, setting: servers}.items()))
        assert _read(open_store(server.url, **options), server.path("object"), ByteRange(0, 3)) == DATA[:3]


@pytest.mark.parametrize(
    "lines",
    [
        b"word",
        b"@nonsense * ssh-ed25519 AAAA",
        b"@cert-authority",
        b"@revoked *",
        b"host ssh-ed25519 AAAA J\xf6rg",
        b"h\xf6st ssh-ed25519 AAAA",
        b"|1|broken ssh-ed25519 AAAA",
        b"|2|AAAA|AAAA ssh-ed25519 AAAA",
        b"host ssh-\xff AAAA",
        b"host 1024 35 12345",
        b"\x00\x01\x02\n\n  # J\xf6rg\n\xff",
    ],
)
def test_lines_of_known_hosts_that_ssh_ignores(ssh_server, tmp_path, lines):
    line = ssh_server.known_hosts.read_bytes().rstrip() + b" the computer of J\xf6rg"
    for data in (lines + b"\n" + line, line + b"\r\n" + lines):
        (tmp_path / "known").write_bytes(data)
        store = _store(ssh_server, known_hosts=str(tmp_path / "known"))
        assert _read(store, ssh_server.path("object"), ByteRange(0, 3)) == DATA[:3]


def test_revoked_keys_stay_revoked_among_bad_lines(ssh_server, tmp_path):
    line = ssh_server.known_hosts.read_text()
    (tmp_path / "known").write_text(f"word\n{line}@revoked * {line.partition(' ')[2]}\n@nonsense a b\n")
    with pytest.raises(UntrustedHost, match="revoked"):
        _read(_store(ssh_server, known_hosts=str(tmp_path / "known")), ssh_server.path("object"))


@pytest.mark.parametrize("value", ["no", "off", "accept-new", "Accept-New"])
def test_a_policy_that_is_not_followed_is_named(ssh_server, tmp_path, value):
    (tmp_path / "empty").write_text("")
    (tmp_path / "config").write_text(f"Host 127.*\n  StrictHostKeyChecking={value}\nHost *\n  User nobody\n")
    options = {"known_hosts": str(tmp_path / "empty"), "config": str(tmp_path / "config")}
    with pytest.raises(UntrustedHost, match=f"StrictHostKeyChecking {value.lower()} in .* is not followed"):
        _read(_store(ssh_server, **options), ssh_server.path("object"))


@pytest.mark.parametrize("value", ["yes", "ask"])
def test_a_policy_that_is_followed_is_not_named(ssh_server, tmp_path, value):
    (tmp_path / "empty").write_text("")
    (tmp_path / "config").write_text(
        f"Host other\n  StrictHostKeyChecking no\nHost *\n  StrictHostKeyChecking {value}\n"
    )
    options = {"known_hosts": str(tmp_path / "empty"), "config": str(tmp_path / "config")}
    with pytest.raises(UntrustedHost) as caught:
        _read(_store(ssh_server, **options), ssh_server.path("object"))
    assert "StrictHostKeyChecking" not in str(caught.value)


@pytest.mark.parametrize("kind", ["openssh", "pem"])
@pytest.mark.parametrize("named", [True, False])
def test_an_encrypted_key_that_no_agent_has_is_named(ssh_server, monkeypatch, tmp_path, kind, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    key = tmp_path / ".ssh" / ("mine" if named else "id_rsa")
    form = ["-m", "PEM"] if kind == "pem" else []
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", *form, "-N", "canary", "-f", key], check=True)
    (tmp_path / "config").write_text(f"IdentityFile {key}\n" if named else "")
    with pytest.raises(AccessDenied, match=rf"encrypted.*{key.name}.*ssh-add"):
        _read(_store(ssh_server, client_keys=(), config=str(tmp_path / "config")), ssh_server.path("object"))


def test_a_key_without_passphrase_is_not_said_to_be_encrypted(ssh_server, tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "config").write_text(f"IdentityFile {ssh_server.stranger_key}\n")
    with pytest.raises(AccessDenied) as caught:
        _read(_store(ssh_server, client_keys=(), config=str(tmp_path / "config")), ssh_server.path("object"))
    assert "encrypted" not in str(caught.value)


def test_a_login_script_that_prints_is_named(tmp_path):
    with (
        started(
            settings={"Subsystem": "sftp echo Welcome to the machine; exec /usr/lib/openssh/sftp-server"}
        ) as server,
        pytest.raises(ProtocolError, match=r"Welcome to the machine.*login script") as caught,
    ):
        _read(_store(server), server.path("object"))
    assert "bytes" not in str(caught.value)


@pytest.mark.parametrize("limit", [8, 12])
def test_a_server_with_few_open_files(limit, caplog):
    subsystem = f"sftp ulimit -n {limit}; exec /usr/lib/openssh/sftp-server"
    with started(settings={"Subsystem": subsystem}) as server:
        names = [f"object-{number}" for number in range(40)]
        for name in names:
            (server.data / name).write_bytes(name.encode() + DATA)

        async def read():
            async with _store(server, connections=1, channels=2) as store:
                return await asyncio.gather(*(store.read(server.path(name)) for name in names))

        assert asyncio.run(read()) == [name.encode() + DATA for name in names]


def test_a_server_that_states_no_limit_of_open_files():
    async def read():
        objects = {f"object-{number}": bytes([number]) * 100_000 for number in range(40)}
        password = canary("ssh-password")
        async with FaultySsh(objects, password=password, max_open_files=3) as server:
            async with SshStore(server.url, **server.options(), connections=1, channels=2) as store:
                results = await asyncio.gather(*(store.read(name) for name in objects))
            assert server.refused_files
            return results == list(objects.values())

    assert asyncio.run(read())


def test_a_file_that_cannot_be_opened_for_the_moment_is_tried_again():
    async def read():
        password = canary("ssh-password")
        async with FaultySsh({"object": DATA}, password=password, max_open_files=0) as server:
            async with SshStore(server.url, **server.options()) as store:
                with pytest.raises(ServerBusy, match=r"Limits\(requests") as caught:
                    await store.read("object")
            assert caught.value.transient

    asyncio.run(read())


def test_known_hosts_none_in_the_configuration_trusts_no_host(ssh_server, tmp_path):
    config = tmp_path / "config"
    text = ssh_server.config.read_text().replace(str(ssh_server.known_hosts), "none")
    config.write_text(text + "  StrictHostKeyChecking no\n")
    with pytest.raises(UntrustedHost):
        _read(SshStore("ssh://box", config=str(config)), ssh_server.path("object"))


def test_nothing_is_sent_to_an_impostor():
    async def read():
        async with FaultySsh({"object": DATA}, "changed host key", password=canary("ssh-password")) as server:
            async with open_store(server.url, **server.options()) as store:
                with pytest.raises(UntrustedHost):
                    await store.read("object")
            return server.logins

    assert asyncio.run(read()) == 0


def test_trusting_any_host_needs_the_full_option_and_is_logged(ssh_server, caplog, tmp_path):
    (tmp_path / "empty").write_text("")
    for word in (True, "yes", "any"):
        with pytest.raises(ConfigError, match=TRUST):
            _store(ssh_server, trust=word)
    with caplog.at_level(logging.WARNING, "streamloader"):
        store = _store(ssh_server, known_hosts=str(tmp_path / "empty"), trust=TRUST)
        assert _read(store, ssh_server.path("object")) == DATA
    assert "SHA256:" in caplog.text
    assert TRUST in caplog.text


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_server_that_restarts(own_ssh_server):
    (own_ssh_server.data / "object").write_bytes(DATA * 4)
    path = own_ssh_server.path("object")

    async def play():
        async with _store(own_ssh_server) as store:
            chunks = store.stream(path)
            got = [await anext(chunks)]
            own_ssh_server.stop()
            with pytest.raises(TransferInterrupted) as caught:  # noqa: PT012
                async for chunk in chunks:
                    got.append(chunk)  # noqa: PERF401 - kept, although the loop ends with an error
            assert caught.value.offset == len(b"".join(got)) > 0
            assert b"".join(got) == (DATA * 4)[: caught.value.offset]
            with pytest.raises(Unreachable):
                await store.head(path)
            own_ssh_server.start()
            return await store.read(path)

    assert asyncio.run(play()) == DATA * 4


def test_dropped_connections_are_replaced_with_retries(own_ssh_server):
    (own_ssh_server.data / "object").write_bytes(DATA * 4)

    async def play():
        got = b""
        async with open_store(own_ssh_server.url, **own_ssh_server.options()) as store:
            async for chunk in store.stream(own_ssh_server.path("object")):
                if not got:
                    own_ssh_server.drop_connections()
                got += chunk
        return got

    assert asyncio.run(play()) == DATA * 4


def test_64_reads_at_once_beside_a_big_one(ssh_server):
    path = ssh_server.path("object")
    spans = [ByteRange(at, at + 5_000 + at % 977) for at in range(0, 64 * 90_000, 90_000)]

    async def play():
        async with _store(ssh_server) as store:
            big = asyncio.create_task(store.read(path))
            small = await asyncio.gather(*(store.read(path, span) for span in spans))
            return small, await big

    small, big = asyncio.run(play())
    assert small == [DATA[span.start : span.end] for span in spans]
    assert big == DATA


def test_fewer_channels_than_wanted():
    async def play(server):
        path = server.path("object")
        async with _store(server, connections=1, channels=16) as store:
            return await asyncio.gather(*(store.read(path, ByteRange(at, at + 100_000)) for at in range(40)))

    with started(max_sessions=2) as server:
        (server.data / "object").write_bytes(DATA)
        assert asyncio.run(play(server)) == [DATA[at : at + 100_000] for at in range(40)]


def test_one_set_of_data_on_two_servers(ssh_server, second_ssh_server):
    (second_ssh_server.data / "other").write_bytes(DATA[::-1])

    async def play():
        async with _store(ssh_server) as one, _store(second_ssh_server) as two:
            return await asyncio.gather(one.read(ssh_server.path("object")), two.read(second_ssh_server.path("other")))

    assert asyncio.run(play()) == [DATA, DATA[::-1]]


def _open_files(pid):
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(link))
    return found


def test_cancelled_reads_leave_nothing_open(ssh_server):
    path = ssh_server.path("object")

    async def play():
        async with _store(ssh_server, connections=1, channels=1) as store:
            for _ in range(20):
                chunks = store.stream(path)
                await anext(chunks)
                await chunks.aclose()
            reads = [asyncio.create_task(store.read(path)) for _ in range(20)]
            await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            assert await store.read(path) == DATA  # queued behind all cancelled requests
            return await asyncio.to_thread(_open_files, ssh_server.pid)

    assert [name for name in asyncio.run(play()) if name.endswith("/object")] == []


def test_a_pickled_copy_makes_its_own_connection(ssh_server):
    async def play():
        async with _store(ssh_server) as store:
            path = ssh_server.path("object")
            first = await store.read(path)
            async with pickle.loads(pickle.dumps(store)) as twin:
                return [first, await twin.read(path), await store.read(path)]

    assert asyncio.run(play()) == [DATA] * 3


def test_importing_the_stores_loads_no_asyncssh():
    code = (
        "import sys, streamloader, streamloader.stores, streamloader.stores.registry; print('asyncssh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_read(own_ssh_server):
    target = own_ssh_server.data / "object"
    target.write_bytes(DATA * 10)

    async def play():
        async with _store(own_ssh_server) as store:
            chunks = store.stream(own_ssh_server.path("object"))
            await anext(chunks)
            os.utime(target, (1, 1))
            async for _ in chunks:
                pass

    with pytest.raises(ObjectChanged):
        asyncio.run(play())


def test_writing_twice_within_a_second_makes_two_versions(own_ssh_server):
    path = own_ssh_server.path("a")

    async def play():
        async with _store(own_ssh_server) as store:
            versions = []
            for number in range(5):
                await store.write(path, b"%d" % number)
                versions.append((await store.head(path)).version)
            return versions

    assert len(set(asyncio.run(play()))) == 5


def test_a_failed_write_leaves_nothing(own_ssh_server):
    (own_ssh_server.data / "a").write_bytes(b"old")

    async def pieces():
        yield b"new" * 100_000
        raise KeyError("no more")

    async def play():
        async with _store(own_ssh_server, connections=1, channels=1) as store:
            with pytest.raises(KeyError):
                await store.write(own_ssh_server.path("a"), pieces())
            return [info.path async for info in store.list(own_ssh_server.path("").rstrip("/"))]

    asyncio.run(play())
    assert [path.name for path in own_ssh_server.data.iterdir()] == ["a"]
    assert (own_ssh_server.data / "a").read_bytes() == b"old"


def test_listings_follow_links_and_end(own_ssh_server):
    root = own_ssh_server.data / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "ü").write_bytes(b"1")
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "self").symlink_to(root / "sub")
    (root / "link").symlink_to(root / "sub" / "ü")
    (root / "nothing").symlink_to(root / "nowhere")
    (root / ".streamloader-new-1").write_bytes(b"unfinished")
    os.mkfifo(root / "pipe")

    async def play():
        async with open_store(own_ssh_server.address("tree"), **own_ssh_server.options()) as store:
            return [
                {info.path async for info in store.list()},
                {info.path async for info in store.list(recursive=False)},
                [info async for info in store.list("nowhere")],
                [info async for info in store.list("link")],
            ]

    assert asyncio.run(play()) == [{"sub/ü", "link"}, {"sub/", "link"}, [], []]


def test_a_server_without_sftp():
    with started(sftp=False) as server, pytest.raises(AccessDenied, match="Subsystem sftp"):
        _read(_store(server), server.path("object"))


def test_limits_and_options_are_checked():
    with pytest.raises(ConfigError):
        SshStore("ssh://box", connections=0)
    with pytest.raises(ConfigError, match="no such option"):
        open_store("ssh://box", nonsense=1)
    assert SshStore("ssh://box", limits=Limits(connections=1), connections=9)._max_connections == 1


def test_a_stalled_connection_is_replaced():
    """A connection on which nothing arrives any more is not used for further requests."""

    async def play():
        times = Timeouts(connect=30.0, response=30.0, window=30.0, min_rate=1000.0, close=1.0)
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(FaultySsh({"object": DATA}, "silence", at=1_500_000, once=True))
            store = await stack.enter_async_context(SshStore(server.url, **server.options(), timeouts=times))
            reading = asyncio.create_task(store.read("object"))
            while not server.fault_count:  # noqa: ASYNC110 - the server runs in this loop
                await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            await loop.rest()  # what came before the silence is read, and the wait for more has begun
            loop.jump(100)
            with pytest.raises(StoreError) as caught:
                await reading
            assert caught.value.transient
            assert caught.value.offset is not None
            return await store.read("object"), server.logins

    assert run_in(JumpingLoop, play) == (DATA, 2)


def test_a_server_that_cannot_replace_files(ssh_server, monkeypatch):
    from streamloader.stores.ssh.sftp import SftpChannel

    monkeypatch.setattr(SftpChannel, "can_replace", False)  # like a server without posix-rename
    path = ssh_server.path("not-replaced")

    async def play():
        async with _store(ssh_server) as store:
            await store.write(path, b"one")
            with pytest.raises(NotSupported, match="delete it first"):
                await store.write(path, b"two")
            assert await store.read(path) == b"one"
            await store.delete(path)
            await store.write(path, b"two")
            return await store.read(path)

    assert asyncio.run(play()) == b"two"
