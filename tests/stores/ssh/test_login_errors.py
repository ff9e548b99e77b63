"""Logins that fail say why, with advice that is right and safe; files of OpenSSH mean what they mean to OpenSSH."""

from __future__ import annotations

import asyncio
import logging
import subprocess

import pytest
from servers.sshd import agent
from servers.sshd_fixture import started

from streamloader.config import Retry
from streamloader.errors import AccessDenied, ConfigError, ProtocolError, UntrustedHost
from streamloader.stores.registry import open_store
from streamloader.stores.ssh.known_hosts import KnownHosts
from streamloader.stores.ssh.packets import BadReply, parse_name
from streamloader.stores.ssh.store import SshStore

DANGEROUS = ("attacker", "ssh-keygen -R", "remove")  # advice for a key that has changed, and for no other
ONE_MORE_TRY = Retry(attempts=4, first_wait=0.01, jitter=0)


@pytest.fixture(autouse=True)
def data(ssh_server):
    (ssh_server.data / "object").write_bytes(b"data")


@pytest.fixture
def make_key(tmp_path):
    """Return a function that makes a key pair, and returns the path of its private key."""

    def make(name, kind="ed25519", *options):
        path = tmp_path / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", *options, "-f", path], check=True)
        return path

    return make


@pytest.fixture
def configured(ssh_server, tmp_path):
    """Return a function that reads an object with an SSH configuration, which is all that the store is given."""

    def read(text, address="ssh://box", **replaced):
        lines = {
            "HostName": "127.0.0.1", "Port": ssh_server.port, "User": ssh_server.user, "IdentityFile": ssh_server.key,
            "UserKnownHostsFile": ssh_server.known_hosts, "GlobalKnownHostsFile": "none",
        } | replaced  # fmt: skip
        config = tmp_path / "config"
        document = f"{text}\nHost *\n" + "".join(f"  {name} {value}\n" for name, value in lines.items() if value)
        config.write_bytes(document.encode("utf-8", "surrogateescape"))
        return read_object(ssh_server, address, client_keys=(), known_hosts=None, config=str(config))

    return read


def read_object(server, url=None, **options):
    async def read():
        async with SshStore(url or server.url, **{**server.options(), **options}) as store:
            return await store.read(server.path("object"))

    return asyncio.run(read())


def public_key(path):
    """Return type and key of a public key."""
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def fail_untrusted(server, known_hosts, **options):
    with pytest.raises(UntrustedHost) as caught:
        read_object(server, known_hosts=str(known_hosts), **options)
    assert "Nothing was sent" in caught.value.message
    assert not caught.value.transient
    return caught.value.message


# --- host keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"KexAlgorithms": "sntrup761x25519-sha512@openssh.com"}, {"Ciphers": "aes128-ctr", "MACs": "hmac-md5-96"}],
)
def test_no_common_algorithm_among_many_is_no_impostor(settings):
    with started(settings=settings) as server:
        (server.data / "object").write_bytes(b"data")

        async def read():
            async with open_store(server.url, retry=ONE_MORE_TRY, **server.options()) as store:
                await store.read(server.path("object"))

        with pytest.raises(ProtocolError, match=r"no .* algorithm in common.* nothing is wrong with it") as caught:
            asyncio.run(read())
        assert not any(word in caught.value.message for word in DANGEROUS)
        assert list(settings.values())[-1] in caught.value.message


def test_keys_of_other_types_are_not_changed_keys(ssh_server, make_key, tmp_path):
    name = f"[127.0.0.1]:{ssh_server.port}"
    known = tmp_path / "known"
    for line, words in (
        (f"{name} {public_key(make_key('rsa', 'rsa'))}", "has only ssh-rsa for it"),
        (f"{name} {public_key(make_key('ec', 'ecdsa'))}", "has only ecdsa-sha2-nistp256 for it"),
        (f"@cert-authority * {public_key(make_key('ca'))}", "only a certificate authority for it"),
    ):
        known.write_text(line + "\n")
        message = fail_untrusted(ssh_server, known)
        assert words in message
        assert "ssh-ed25519" in message
        assert f"ssh-keyscan -p {ssh_server.port} 127.0.0.1" in message
        assert not any(word in message for word in DANGEROUS)
    known.write_text(f"{name} {public_key(make_key('other'))}\n")
    message = fail_untrusted(ssh_server, known)
    assert all(word in message for word in DANGEROUS)


@pytest.mark.parametrize("form", ["plain", "any", "alone", "hashed", "with port, trusted without", "without port"])
def test_a_revoked_key_is_never_to_be_added(ssh_server, tmp_path, form):
    name, _, key = ssh_server.known_hosts.read_text().strip().partition(" ")
    known = tmp_path / "known"
    lines = {
        "plain": f"{name} {key}\n@revoked {name} {key}\n",
        "any": f"@revoked * {key}\n{name} {key}\n",
        "alone": f"@revoked {name} {key}\n",
        "hashed": f"{name} {key}\n",
        "with port, trusted without": f"@revoked {name} {key}\n127.0.0.1 {key}\n",
        "without port": f"{name} {key}\n@revoked 127.0.0.1 {key}\n",
    }
    known.write_text(lines[form])
    if form == "hashed":
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
        known.write_text(known.read_text() + f"@revoked {known.read_text()}")
    message = fail_untrusted(ssh_server, known)
    assert f"is revoked in {known}" in message
    assert "do not trust it" in message
    assert not any(word in message for word in ("ssh-keyscan", "ssh-keygen", "add ", "remove"))


@pytest.mark.parametrize(
    ("validity", "names", "words"),
    [("-1d:+1d", "127.0.0.1", None), ("-2d:-1d", "127.0.0.1", "expired"), ("-1d:+1d", "other", "principal")],
)
def test_certificates_of_hosts(own_ssh_server, make_key, tmp_path, validity, names, words):
    server, authority = own_ssh_server, make_key("ca")
    (server.data / "object").write_bytes(b"data")
    key = server.folder / "host_key"
    command = ["ssh-keygen", "-q", "-s", authority, "-h", "-I", "host", "-n", names, "-V", validity, f"{key}.pub"]
    subprocess.run(command, check=True)
    server.stop()
    server._settings["HostCertificate"] = f"{key}-cert.pub"
    server.start()
    known = tmp_path / "known"
    known.write_text(f"@cert-authority * {public_key(authority)}\n")
    if words is None:
        assert read_object(server, known_hosts=str(known)) == b"data"
        return
    message = fail_untrusted(server, known)
    assert words in message
    assert "certificate that is not valid" in message
    assert not any(word in message for word in DANGEROUS)


NAMES = [
    "box", "BOX", "box,other", "other,box", "b?x", "b*", "*", "!box,*", "*,!box", "*,!other", "!other", "[box]:2222",
    "[box]:22", "b[o]x", "box.", "*x", "**", "?", "bo", "boxx", "10.0.0.1", "[b*]:2222", "*:2222", "10.0.0.0/8",
    "b\xf6x",
]  # fmt: skip


@pytest.mark.parametrize("hashed", [False, True])
def test_names_match_as_in_openssh(make_key, tmp_path, hashed):
    key = public_key(make_key("key"))
    known = tmp_path / "known"
    for names in NAMES:
        known.write_bytes(f"{names} {key} comment\n".encode("latin-1"))
        if hashed:
            if any(sign in names for sign in "*?!"):  # which cannot be hashed
                continue
            subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
        for host, port in (("box", None), ("box", 2222), ("10.0.0.1", None), ("boxx", None)):
            with_port = host if port is None else f"[{host}]:{port}"
            done = [
                subprocess.run(["ssh-keygen", "-F", name, "-f", known], capture_output=True, check=False).returncode
                for name in {with_port, host}
            ]
            trusted = KnownHosts([str(known)]).match(host, "", port)[0]
            assert bool(trusted) == (0 in done), (names, host, port)


def test_a_hundred_thousand_known_hosts(ssh_server, make_key, tmp_path):
    other = public_key(make_key("other"))
    lines = [f"host{number} {other}" for number in range(100_000)]
    known = tmp_path / "known"
    known.write_text("\n".join([*lines, ssh_server.known_hosts.read_text()]))
    assert read_object(ssh_server, known_hosts=str(known)) == b"data"


# --- configurations --------------------------------------------------------------------------------------------------


def test_paths_of_known_hosts_have_tokens_and_variables(ssh_server, configured, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNOWN", str(tmp_path))
    key = ssh_server.known_hosts.read_text()
    (tmp_path / "box alias").write_text(key.replace(key.partition(" ")[0], "alias"))
    for name in ("plain", "of_127.0.0.1", "of_box", "of_%h"):
        (tmp_path / name).write_text(key)
    for path in ("%d/plain", "~/plain", "${KNOWN}/plain", "~/of_%h", "~/of_%n", "~/of_%k", "~/of_%%h"):
        assert configured("", UserKnownHostsFile=path) == b"data"
    assert configured("HostKeyAlias alias", UserKnownHostsFile='"~/box %k"') == b"data"
    with pytest.raises(ConfigError, match="NOT_SET"):
        configured("", UserKnownHostsFile="${NOT_SET}/plain")


def test_configurations_that_cannot_be_read(configured, tmp_path):
    with pytest.raises(ConfigError, match="includes itself"):
        configured(f"Include {tmp_path}/config")
    with pytest.raises(ConfigError, match="not in UTF-8: convert it"):
        configured("# J\udcf6rg")


def test_a_command_for_known_hosts_is_named(ssh_server, configured):
    with pytest.raises(UntrustedHost, match=r"The KnownHostsCommand in .*config is not run"):
        configured(f"KnownHostsCommand /bin/cat {ssh_server.known_hosts}", UserKnownHostsFile="none")


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("public", "is a public key: name the private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "puttygen"),
        ("", "the file is empty"),
        ("<html>", "no private key, or damaged"),
        ("cut", "no private key, or damaged"),
    ],
)
def test_files_that_are_no_private_keys(ssh_server, configured, tmp_path, caplog, content, words):
    path = tmp_path / "key file"
    texts = {"public": f"{public_key(ssh_server.key)} comment\n", "cut": ssh_server.key.read_text()[:120]}
    path.write_text(texts.get(content, content))
    with pytest.raises(ConfigError) as caught:
        read_object(ssh_server, client_keys=[str(path)])
    assert words in caught.value.message
    assert str(path) in caught.value.message
    with caplog.at_level(logging.WARNING, "streamloader"):  # ssh goes on with the next key
        assert configured(f'IdentityFile "{path}"') == b"data"
        assert configured(f"IdentityFile {tmp_path}/none") == b"data"
    assert (words in caplog.text) is (content != "public")


def test_a_key_of_the_configuration_that_does_not_exist_is_no_broken_connection(configured, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(AccessDenied, match=r"The server accepts a key$"):
        configured("", IdentityFile=f"{tmp_path}/none")


def test_too_many_keys_of_the_agent(make_key, configured, monkeypatch):
    with started(settings={"MaxAuthTries": 2}) as server:
        (server.data / "object").write_bytes(b"data")
        with agent(*(make_key(f"key{number}") for number in range(3)), server.key) as socket:
            monkeypatch.setenv("SSH_AUTH_SOCK", socket)
            with pytest.raises(AccessDenied, match=r"too many keys .* client_keys=, or .* IdentitiesOnly yes"):
                read_object(server, client_keys=())
            assert read_object(server) == b"data"  # a key that is named is the only one


def test_agents_of_variables(ssh_server, configured, monkeypatch):
    with agent(ssh_server.key) as socket:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setenv("MY_AGENT", socket)
        assert configured("IdentityAgent $MY_AGENT", IdentityFile="none") == b"data"
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        assert configured("IdentityAgent SSH_AUTH_SOCK", IdentityFile="none") == b"data"


@pytest.mark.parametrize("method", ["PasswordAuthentication", "KbdInteractiveAuthentication"])
def test_a_server_that_accepts_a_password_only_says_so(method):
    settings = {"PubkeyAuthentication": "no", "PasswordAuthentication": "no", method: "yes", "PermitRootLogin": "yes"}
    with started(settings=settings) as server, pytest.raises(AccessDenied, match=r"The server accepts a password$"):
        read_object(server)


# --- programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"Subsystem": "sftp /nonexistent/sftp-server"}, 127),
        ({"ForceCommand": "/bin/false"}, 1),
        ({"ChrootDirectory": "/nonexistent"}, 255),
    ],
)
def test_a_program_that_ends_at_once_is_no_broken_connection(settings, status):
    with (
        started(settings=settings) as server,
        pytest.raises(ProtocolError, match=f"ended with status {status}") as caught,
    ):
        read_object(server)
    assert not caught.value.transient


def test_a_reply_without_a_name():
    with pytest.raises(BadReply, match="without a name"):
        parse_name(bytes(4))
