"""``streamloader doctor``: what it finds at real servers, and what it says about servers that are broken."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile

import pytest
from canaries import canary
from made_clips import make_clip
from servers.ftpd import PASSWORD, ftpd
from servers.ftpd import USER as FTP_USER
from servers.nginx_fixture import USER

from streamloader.archive.archive import Archive
from streamloader.cli.main import main
from streamloader.redaction import MASK
from streamloader.stores.environment import CA_VARIABLES
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.http import HttpFault, HttpServer

DATA = bytes(range(256)) * 4096  # 1 MiB
MEBIBYTE = len(DATA)
POSITIVE = "positive"
ALL_STEPS = ("find", "list", "range", "latency", "throughput of one", "throughput of eight")


def examine(capsys, *arguments, options=None, tmp_path=None, status=0):
    """Return the report of an address. Its times and speeds are checked, and replaced by a word."""
    if options is not None:
        file = tmp_path / "options.json"
        file.write_text(json.dumps(options))
        arguments = (*arguments, "--storage-options", str(file))
    found = main(["doctor", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out, object_hook=check_speeds)
    assert found == status, report["problems"]
    assert report["ok"] == (status == 0) == (not report["problems"])
    return report


def check_speeds(document):
    for name, value in document.items():
        if (name.endswith("seconds") or name == "bytes_per_second") and value is not None:
            assert value > 0
            document[name] = POSITIVE
    return document


def list_steps(report):
    return [(step["step"], step["status"]) for step in report["steps"]]


def make_step(name, target, detail=""):
    return {"step": name, "target": target, "status": "ok", "seconds": POSITIVE, "detail": detail, "error": None}


def make_throughput(one, eight):
    return {
        name: {"reads": reads, "bytes": count, "seconds": POSITIVE, "bytes_per_second": POSITIVE, "complete": True}
        for name, reads, count in (("one", 1, one), ("eight", 8, eight))
    }


# --- stores that work ------------------------------------------------------------------------------------------------


def test_all_keys_of_a_local_file(tmp_path, capsys):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    report = examine(capsys, path, "--bytes", str(MEBIBYTE))
    version = report["object"].pop("version")
    assert f"{MEBIBYTE:x}" in version
    assert report == {
        "address": str(path),
        "ok": True,
        "store": "LocalStore",
        "access": {},
        "login": None,
        "steps": [
            make_step("find", str(path), "1,048,576 bytes"),
            make_step("list", str(tmp_path), "1 file"),
            make_step("range", str(path), "first and last byte"),
            *(make_step(name, str(path)) for name in ALL_STEPS[3:]),
        ],
        "object": {
            "kind": "file",
            "size": MEBIBYTE,
            "modified": path.stat().st_mtime,
            "files": None,
            "files_complete": None,
        },
        "capabilities": {"ranges": True, "listings": True, "versions": True, "writes": True},
        "latency": {"reads": 5, "min_seconds": POSITIVE, "median_seconds": POSITIVE},
        "throughput": make_throughput(MEBIBYTE // 2, MEBIBYTE // 2),
        "bytes_read": MEBIBYTE + 2 + 5,
        "places": [],
        "problems": [],
        "notes": [],
    }


def test_a_local_directory(tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(DATA[: 1000 + number])
    report = examine(capsys, tmp_path)
    assert report["object"] == {
        "kind": "directory", "size": None, "version": None, "modified": None, "files": 3, "files_complete": True,
    }  # fmt: skip
    assert [step["target"] for step in report["steps"]] == [str(tmp_path), *[str(tmp_path / "2.bin")] * 4]
    assert report["bytes_read"] == 2 + 5 + 1002 + 3 * (1000 + 1001 + 1002) - 1000
    assert report["capabilities"]["versions"] is True


def test_ssh(ssh_server, tmp_path, capsys):
    (ssh_server.data / "doctor").mkdir(exist_ok=True)
    (ssh_server.data / "doctor" / "a.bin").write_bytes(DATA)
    address = ssh_server.address("doctor/a.bin")
    report = examine(capsys, address, options=ssh_server.options(), tmp_path=tmp_path)
    host = f"127.0.0.1:{ssh_server.port}"
    assert report["address"] == address.replace(f"{ssh_server.user}@", f"{MASK}@")
    assert report["store"] == "SshStore"
    assert {name: value for name, value in report["access"].items() if name != "agent"} == {
        "user": ssh_server.user,
        "server": host,
        "keys": str(ssh_server.key),
        "known hosts": str(ssh_server.known_hosts),
    }
    login = report["login"]
    assert (login["user"], login["authentication"]) == (ssh_server.user, "public key")
    assert login["key"] == f"ssh-ed25519 {fingerprint(ssh_server.key)}"
    assert login["host_key"] == f"ssh-ed25519 {fingerprint(ssh_server.folder / 'host_key')}"
    assert login["server_version"].startswith("SSH-2.0-OpenSSH")
    assert list_steps(report) == [(name, "ok") for name in ("connect", "login", *ALL_STEPS)]
    assert report["steps"][0]["target"] == f"server {host}"
    assert (report["object"]["kind"], report["object"]["size"]) == ("file", MEBIBYTE)
    assert report["capabilities"] == {"ranges": True, "listings": True, "versions": True, "writes": True}
    assert report["throughput"] == make_throughput(MEBIBYTE, 8 * (512 << 10))
    report = examine(capsys, ssh_server.address("doctor"), options=ssh_server.options(), tmp_path=tmp_path)
    assert (report["object"]["kind"], report["object"]["files"]) == ("directory", 1)


def fingerprint(key):
    done = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


def test_a_key_with_a_passphrase_through_a_jump_host(ssh_server, tmp_path, capsys):
    options = {
        "client_keys": str(ssh_server.locked_key),
        "passphrase": canary("ssh-passphrase"),
        "config": str(ssh_server.config),
    }
    (ssh_server.data / "jumped.bin").write_bytes(DATA)
    report = examine(capsys, f"ssh://jumped{ssh_server.data}/jumped.bin", options=options, tmp_path=tmp_path)
    assert report["access"]["jump hosts"] == "box"
    assert report["steps"][0]["target"] == f"jump host 127.0.0.1:{ssh_server.port}"
    assert report["login"]["key"] == f"ssh-ed25519 {fingerprint(ssh_server.key)}"
    assert canary("ssh-passphrase") not in json.dumps(report)


def test_http(nginx_server, capsys, monkeypatch):
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    nginx_server.put({"doctor/a.bin": DATA})
    address = f"{nginx_server.url}/doctor/a.bin"
    report = examine(capsys, address)
    assert report["store"] == "HttpStore"
    assert report["access"] == {"credentials": "none", "certificates": "authorities of the system"}
    assert list_steps(report) == [(name, "ok") for name in ("connect", "find", *ALL_STEPS[2:])]
    assert report["capabilities"] == {"ranges": True, "listings": False, "versions": True, "writes": False}
    assert report["notes"] == []  # that proxy is for another scheme
    assert report["bytes_read"] == 2 + 5 + MEBIBYTE + 8 * (512 << 10)
    by_name = examine(capsys, address.replace("127.0.0.1", "localhost"))
    assert list_steps(by_name)[:2] == [("resolve", "ok"), ("connect", "ok")]
    assert "127.0.0.1" in by_name["steps"][0]["detail"].split(", ")


def test_a_login_of_the_address_is_named_and_not_shown(nginx_server, tmp_path, capsys, monkeypatch):
    nginx_server.put({"doctor/a.bin": DATA[:1000]})
    password = canary("http-password")
    address = f"{nginx_server.url}/private/doctor/a.bin"
    with_login = address.replace("http://", f"http://{USER}:{password}@")
    report = examine(capsys, with_login)
    assert report["address"] == address.replace("http://", f"http://{MASK}@")
    assert report["access"]["credentials"] == "login from the address"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {address.split('/')[2]} login {USER} password {password}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    from_file = examine(capsys, address)
    assert from_file["access"]["credentials"] == f"login from the netrc file {netrc}"
    assert password not in json.dumps([report, from_file])
    assert main(["doctor", with_login]) == 0
    assert password not in capsys.readouterr().out


def test_s3(seaweed_server, tmp_path, capsys):
    bucket = seaweed_server.bucket()
    seaweed_server.make_objects(bucket, ["v/a.bin", "v/b.bin"], DATA)
    options = seaweed_server.options()
    report = examine(capsys, f"s3://{bucket}/v/a.bin", options=options, tmp_path=tmp_path)
    assert report["store"] == "ObjectStore"
    assert report["access"]["credentials"] == "options access_key_id, secret_access_key"
    assert (report["access"]["bucket"], report["access"]["endpoint"]) == (bucket, options["endpoint_url"])
    assert options["secret_access_key"] not in json.dumps(report)
    assert list_steps(report) == [(name, "ok") for name in ("connect", *ALL_STEPS)]
    assert report["object"]["version"] == hashlib.md5(DATA).hexdigest()
    report = examine(capsys, f"s3://{bucket}/v", options=options, tmp_path=tmp_path)
    assert (report["object"]["kind"], report["object"]["files"]) == ("directory", 2)


def test_ipfs(jsipfs_node, tmp_path, capsys):
    cids = jsipfs_node.add({"d/a.bin": DATA, "d/b.bin": DATA[:1000]})
    options = {"rpc": jsipfs_node.rpc}
    report = examine(capsys, f"ipfs://{cids['d']}/a.bin", options=options, tmp_path=tmp_path)
    assert report["access"]["verification"] == "blocks are compared with their CIDs"
    assert report["steps"][0]["target"].startswith("node ")
    assert report["object"]["version"] is not None
    assert report["capabilities"] == {"ranges": True, "listings": True, "versions": True, "writes": False}
    report = examine(capsys, f"ipfs://{cids['d']}", options=options, tmp_path=tmp_path)
    assert (report["object"]["kind"], report["object"]["files"]) == ("directory", 2)


def test_a_member_of_a_container(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("a/b.bin", DATA[:1000])
    report = examine(capsys, f"{tmp_path}/set.zip!/a/b.bin")
    assert list_steps(report)[-1] == ("member", "ok")
    assert report["steps"][-1]["detail"] == "1,000 bytes"
    report = examine(capsys, f"{tmp_path}/set.zip!/none", status=1)
    assert [problem["problem"] for problem in report["problems"]] == [
        f"{tmp_path}/set.zip!/none is not in the container"
    ]


def test_an_archive(tmp_path, capsys):
    clip = make_clip(tmp_path / "one.mp4", frames=23, gop=5)
    with Archive.create(str(tmp_path / "archive")) as archive:
        archive.add(clip, jobs=0)
    report = examine(capsys, tmp_path / "archive")
    assert report["store"] == "SqliteCatalog"
    assert report["object"] == {"kind": "archive", "videos": 1, "frames": 23}
    assert list_steps(report) == [("catalog", "ok")]
    (place,) = report["places"]
    assert (place["ok"], place["object"]["kind"]) == (True, "directory")
    assert report["bytes_read"] == place["bytes_read"] > 0
    report = examine(capsys, tmp_path / "none.sqlite", status=1)
    assert report["steps"][0]["error"]["type"] == "CatalogNotFound"


def test_an_fsspec_scheme(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(DATA)
    with ftpd(tmp_path / "data") as port:
        options = {"username": FTP_USER, "password": PASSWORD}
        report = examine(capsys, f"ftp://127.0.0.1:{port}/a.bin", options=options, tmp_path=tmp_path)
    assert (report["store"], report["object"]["size"]) == ("FsspecStore", MEBIBYTE)
    assert report["access"] == {"credentials": "options password, username", "file system": "ftp of fsspec"}
    assert report["bytes_read"] == 2 + 5 + MEBIBYTE + 8 * (512 << 10)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def assert_one_problem(report, step, kind, problem, advice):
    failed = [each for each in report["steps"] if each["status"] == "failed"]
    assert [(each["step"], each["error"]["type"]) for each in failed] == [(step, kind)]
    assert len(report["problems"]) == 1
    assert problem in report["problems"][0]["problem"]
    assert advice in report["problems"][0]["advice"]
    started = [each["step"] for each in report["steps"] if each["status"] != "skipped"]
    assert started[-1] == step


def test_a_refused_connection(capsys):
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        report = examine(capsys, f"http://127.0.0.1:{port}/a.bin", status=1)
        assert_one_problem(report, "connect", "Unreachable", "Connection refused", "check the port")
        assert (report["object"], report["latency"], report["bytes_read"]) == (None, None, 0)
        assert list_steps(report)[1:] == [(name, "skipped") for name in ("login", *ALL_STEPS)]
        assert main(["doctor", f"http://127.0.0.1:{port}/a.bin"]) == 1
        text = capsys.readouterr().out
        assert "1 problem" in text
        assert "Connection refused" in text
        assert "check the port" in text
        assert "not tried: login, find, list, range, latency, throughput of one, throughput of eight" in text


def test_a_name_that_does_not_resolve(capsys):
    report = examine(capsys, "http://nowhere.invalid/a.bin", status=1)
    assert_one_problem(report, "resolve", "Unreachable", "nowhere.invalid", "name service")


def test_a_server_that_does_not_answer(capsys):
    with socket.socket() as silent:  # it accepts connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        report = examine(capsys, f"http://127.0.0.1:{port}/a.bin", "--timeout", "2", status=1)
    assert_one_problem(report, "find", "StoreTimeout", "waited 2", "")


def test_a_wrong_key(ssh_server, tmp_path, capsys):
    options = {**ssh_server.options(), "client_keys": [str(ssh_server.stranger_key)]}
    report = examine(capsys, ssh_server.address("a.bin"), options=options, tmp_path=tmp_path, status=1)
    offered = f"offered: ssh-ed25519 {fingerprint(ssh_server.stranger_key)}"
    assert_one_problem(report, "login", "AccessDenied", offered, "check the user name")
    assert report["login"] is None


def test_a_wrong_host_key(ssh_server, second_ssh_server, tmp_path, capsys):
    known = tmp_path / "known_hosts"
    key = second_ssh_server.known_hosts.read_text().split()[1:]
    known.write_text(f"[127.0.0.1]:{ssh_server.port} {' '.join(key)}\n")
    options = {**ssh_server.options(), "known_hosts": str(known)}
    report = examine(capsys, ssh_server.address("a.bin"), options=options, tmp_path=tmp_path, status=1)
    assert_one_problem(report, "login", "UntrustedHost", fingerprint(ssh_server.folder / "host_key"), "ssh-keygen -R")


def test_no_ranges(nginx_server, capsys):
    nginx_server.put({"doctor/a.bin": DATA})
    report = examine(capsys, f"{nginx_server.url}/rangeless/doctor/a.bin", status=1)
    assert report["capabilities"]["ranges"] is False
    assert [problem["problem"] for problem in report["problems"]] == [
        f"the server of {nginx_server.url}/rangeless/doctor/a.bin sends whole files when a part is requested"
    ]
    assert report["throughput"] == make_throughput(MEBIBYTE, 8 * (512 << 10))


@pytest.mark.parametrize(
    ("place", "kind", "advice"),
    [("private", "AccessDenied", "credentials"), ("forbidden", "AccessDenied", ""), ("none", "NotFound", "spelling")],
)
def test_an_answer_that_is_an_error(nginx_server, place, kind, advice, capsys):
    report = examine(capsys, f"{nginx_server.url}/{place}/a.bin", status=1)
    assert_one_problem(report, "find", kind, f"/{place}/a.bin", advice)


def test_a_wrong_secret(seaweed_server, tmp_path, capsys):
    bucket = seaweed_server.bucket()
    seaweed_server.make_objects(bucket, ["a.bin"])
    options = {**seaweed_server.options(), "secret_access_key": canary("s3-wrong-secret-key")}
    report = examine(capsys, f"s3://{bucket}/a.bin", options=options, tmp_path=tmp_path, status=1)
    assert_one_problem(report, "find", "AccessDenied", f"s3://{bucket}/a.bin", "credentials")
    assert canary("s3-wrong-secret-key") not in json.dumps(report)


def test_tls(tmp_path, capsys):
    certificate = make_certificate()
    (tmp_path / "ca.pem").write_bytes(certificate.pem)

    async def run():
        async with HttpServer({"a.bin": DATA}, tls=certificate.server_context()) as server:
            address = f"{server.url}/a.bin"
            options = {"ca_file": str(tmp_path / "ca.pem")}
            known = await asyncio.to_thread(examine, capsys, address, options=options, tmp_path=tmp_path)
            unknown = await asyncio.to_thread(examine, capsys, address, status=1)
        async with HttpServer({"a.bin": DATA}) as plain:
            address = plain.url.replace("http://", "https://") + "/a.bin"
            return known, unknown, await asyncio.to_thread(examine, capsys, address, status=1)

    known, unknown, plain = asyncio.run(run())
    assert list_steps(known)[:2] == [("connect", "ok"), ("tls", "ok")]
    assert known["steps"][1]["detail"].startswith("TLSv1.")
    assert known["access"]["certificates"] == str(tmp_path / "ca.pem")
    assert_one_problem(unknown, "tls", "UntrustedHost", "self-signed certificate", "ca_file")
    assert_one_problem(plain, "tls", "UntrustedHost", "is not valid", "http://")


@pytest.mark.parametrize("kind", ["drips", "stalls"])
def test_a_slow_transfer(kind, capsys):
    async def run():
        async with HttpServer({"a.bin": DATA}) as server:
            server.fault = HttpFault(kind, at=10_000)
            return await asyncio.to_thread(examine, capsys, f"{server.url}/a.bin", "--timeout", "3", status=1)

    report = asyncio.run(run())
    assert list_steps(report)[-2][0] == "throughput of one"
    one = report["throughput"]["one"]
    assert (one["reads"], one["complete"]) == (1, False)
    assert 10_000 <= one["bytes"] < 10_010
    assert all("a.bin" in problem["problem"] for problem in report["problems"])
    assert "--timeout" in report["problems"][0]["advice"]


def test_a_server_that_is_busy_or_no_web_server(nginx_server, capsys):
    report = examine(capsys, f"{nginx_server.url}/busy/a.bin", status=1)
    assert_one_problem(report, "find", "ServerBusy", "503", "")

    async def run():
        async with HttpServer({"a.bin": DATA}) as server:
            server.fault = HttpFault("no-http", methods=("GET", "HEAD"), everywhere=True)
            return await asyncio.to_thread(examine, capsys, f"{server.url}/a.bin", status=1)

    assert_one_problem(asyncio.run(run()), "find", "ProtocolError", "not valid HTTP", "what answers")


def test_a_cache_is_not_measured(nginx_server, tmp_path, capsys):
    nginx_server.put({"doctor/a.bin": DATA[:1000]})
    options = {"cache_dir": str(tmp_path / "cache"), "cache_bytes": 1 << 20}
    report = examine(capsys, f"{nginx_server.url}/doctor/a.bin", options=options, tmp_path=tmp_path)
    assert "the cache is not used" in " ".join(report["notes"])
    assert not (tmp_path / "cache").exists()


def test_an_empty_file_and_an_empty_directory(tmp_path, capsys):
    (tmp_path / "a.bin").touch()
    report = examine(capsys, tmp_path / "a.bin", status=1)
    assert report["problems"] == [{"problem": f"{tmp_path}/a.bin is empty (0 bytes)", "advice": "write it again"}]
    (tmp_path / "a.bin").unlink()
    report = examine(capsys, f"{tmp_path}/", status=1)
    assert "there is nothing at" in report["problems"][0]["problem"]
    report = examine(capsys, tmp_path / "none", status=1)
    assert "there is nothing at" in report["problems"][0]["problem"]


def test_a_server_without_a_path(nginx_server, capsys):
    report = examine(capsys, nginx_server.url)
    assert report["steps"][0]["status"] == "ok"
    assert report["object"] is None
    assert "names no object" in report["notes"][0]


def test_what_cannot_be_carried_out(tmp_path, capsys):
    (tmp_path / "options.json").write_text("[]")
    for arguments, words in (
        (["nosuch://host/a"], "no store serves"),
        (["http://[bad/a"], "not"),
        ([str(tmp_path), "--storage-options", str(tmp_path / "options.json")], "JSON object"),
        (["http://127.0.0.1/a", "--storage-options", str(tmp_path / "none.json")], "none.json"),
        (["s3://bucket/a", "--storage-options", '{"secret_access_key": "hidden"}'], "takes the name of a file"),
    ):
        assert main(["doctor", *arguments]) == 2
        out, errors = capsys.readouterr()
        assert out == ""
        assert words in errors
        assert len(errors.strip().splitlines()) == 1
    for arguments in (["--bytes", "0"], ["--timeout", "0"]):
        with pytest.raises(SystemExit) as refused:
            main(["doctor", *arguments])
        assert refused.value.code == 2
        assert "must be" in capsys.readouterr().err


def test_names_from_servers_reach_no_terminal_as_they_are(tmp_path, capsys):
    folder = tmp_path / "a\x1b[31m\n1. wrong: b"
    folder.mkdir()
    (folder / "c.bin").write_bytes(DATA[:100])
    assert main(["doctor", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert r"a\x1b[31m\n1. wrong: b" in text


# --- this machine ----------------------------------------------------------------------------------------------------


def test_this_machine(tmp_path, capsys, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "some.bin").write_bytes(bytes(1000))
    monkeypatch.setenv("STREAMLOADER_CACHE", str(cache))
    report = examine(capsys)
    assert set(report) == {
        "ok", "python", "platform", "packages", "extras", "cores", "memory", "shared_memory", "memfd", "descriptors",
        "cache", "gpu", "problems", "notes",
    }  # fmt: skip
    assert report["python"]["executable"] == sys.executable
    assert {"streamloader", "numpy", "av", "aiohttp"} <= set(report["packages"])
    assert "test" not in report["extras"]
    assert report["extras"]["objects"]["packages"].keys() == {"obstore"}
    assert (report["cache"]["folder"], report["cache"]["bytes"], report["cache"]["writable"]) == (
        str(cache),
        1000,
        True,
    )
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("STREAMLOADER_CACHE", str(blocked / "cache"))
    report = examine(capsys, status=1)
    assert report["cache"]["writable"] is False
    assert "STREAMLOADER_CACHE" in report["problems"][0]["advice"]


def test_too_few_descriptors(tmp_path):
    code = (
        "import resource, sys; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)); "
        "from streamloader.cli.main import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["descriptors"]["soft"] == 200
    assert report["problems"][0]["problem"] == "a process may open 200 files at the same time"


def test_torch_is_not_imported(tmp_path):
    code = (
        "import sys; from streamloader.cli.main import main; main(['doctor', '--json']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=100, check=False)
    assert done.returncode == 0


def test_gpus_are_found_through_the_driver_and_its_program(tmp_path, capsys, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    main(["doctor", "--json"])
    gpu = json.load(io.StringIO(capsys.readouterr().out))["gpu"]
    assert gpu["devices"] == [{"name": "NVIDIA H200", "memory": "143771 MiB", "driver": "570.1"}]
    assert gpu["visible"] == ""


def test_what_may_not_be_read_below_a_folder_does_not_end_the_examination(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x" * 1000)
    os.mkfifo(tmp_path / "pipe\x1b.mp4")
    (tmp_path / "link.mp4").symlink_to("nothing")
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["capabilities"]["listings"] is True
    assert {step["step"]: step["status"] for step in report["steps"]}["range"] == "ok"
    problems = sorted(each["problem"] for each in report["problems"])
    assert len(problems) == 2
    assert "pipe\\x1b.mp4 is a pipe" in problems[0]
    assert "link.mp4" in problems[1]
    assert main(["doctor", str(tmp_path / "a.txt")]) == 0  # they are no problem of this file


def test_other_spellings_are_examined(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    (tmp_path / "a.bin").write_bytes(DATA)
    for address in ("$DATA/a.bin", "${DATA}/a.bin", f"file:{tmp_path}/a.bin", "file://$DATA/a.bin"):
        assert examine(capsys, address)["object"]["size"] == MEBIBYTE
    for address, advice in (
        ("s3:b/k", "write s3://b/k"),
        ("C:\\k", "it is a path of Windows, which WSL has as /mnt/c/k"),
    ):
        (problem,) = examine(capsys, address, status=1)["problems"]
        assert problem["advice"] == advice
