"""How do I train on videos of another machine, without copying all of them to this one?

The other machine is simulated by a new OpenSSH server on this one, with its own keys, folders and port. The example
needs no account and does not touch your files. The server has a folder of videos and an empty storage folder. The
videos are encoded at a small size, with a key frame every 16 frames for fast random access, and stored on the server in
chunks. Only the catalog, a small SQLite file, stays on this machine. Then a model is trained on slices of the archive,
and only the bytes that it needs are transferred.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import streamloader as sl
from streamloader.demo.clips import fetch_clips

PROGRAMS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
SIZE, STEPS = (32, 48), 60


def program(name: str) -> str:
    """Return the path of an installed program."""
    path = shutil.which(name, path=PROGRAMS)
    if path is None:
        sys.exit(f"this example needs {name}: apt-get install openssh-server openssh-client")
    return path


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Start a private SSH server. Yield its address and the options for logging in."""
    for name in ("host_key", "key"):
        command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd requires this folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    with (folder / "log").open("wb") as log:
        command = [program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(port, server, folder / "log")
        login = {"client_keys": str(folder / "key"), "known_hosts": str(folder / "known_hosts"), "config": []}
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}", login
    finally:
        server.terminate()
        server.wait(10)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server sends its greeting."""
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.02)
    sys.exit(f"the SSH server does not start:\n{log.read_text()}")


def train(archive: sl.Archive, steps: int) -> tuple[float, float]:
    """Train a small network to predict the next frame from the last two, on random slices.

    Returns:
        Ratio of its error to the error of repeating the last frame, at the start and at the end of the training.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a model this small gains nothing from more
    last = torch.nn.Conv2d(8, 3, 3, padding=1)
    for parameter in last.parameters():
        torch.nn.init.zeros_(parameter)  # it starts by copying the last frame
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3, padding=1), torch.nn.ReLU(), last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    errors, copying = [], []
    for start in torch.randint(len(archive) - 16, (steps,)).tolist():
        frames = archive[start : start + 16].permute(0, 3, 1, 2).float() / 255  # (16, 3, H, W)
        before, now, after = frames[:-2], frames[1:-1], frames[2:]
        loss = (now + model(torch.cat([before, now], 1)) - after).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
        copying.append((now - after).square().mean().item())
    part = steps // 3
    return sum(errors[:part]) / sum(copying[:part]), sum(errors[-part:]) / sum(copying[-part:])


def main() -> None:
    """Ingest videos from the server into its storage, and train."""
    with tempfile.TemporaryDirectory() as name:
        local, remote = Path(name, "local"), Path(name, "remote")
        local.mkdir()
        (remote / "videos").mkdir(parents=True)
        for path in sys.argv[1:] or [path for clip, path in fetch_clips().items() if clip != "bigbuckbunny"]:
            shutil.copy(path, remote / "videos")
        with ssh_server(remote) as (server, login):
            print("a new SSH server is running, with its own keys; its host key is checked at every connection")
            with sl.Archive.create(
                f"{server}{remote}/storage", catalog=f"{local}/catalog.sqlite", storage_options=login
            ) as archive:
                report = archive.add(f"{server}{remote}/videos", mode="encode", size=SIZE, gop=16, chunk_frames=96)
                chunks = sum(video.chunks for video in report.added)
                print(
                    f"{len(report.added)} videos of the server are now {chunks} chunks in its storage: "
                    f"{report.bytes_in / 1e6:.1f} MB in, {report.bytes_out / 1e6:.1f} MB out, "
                    f"{report.frames:,} frames, {report.frames_per_second:,.0f} frames/s"
                )
                print(f"on this machine: {sorted(path.name for path in local.iterdir())}")
                started = time.monotonic()
                early, late = train(archive, STEPS)
                seconds = time.monotonic() - started
                print(
                    f"trained on {STEPS} slices of 16 frames in {seconds:.1f} s: {STEPS * 16 / seconds:,.0f} frames/s, "
                    f"{archive.stats()['byte_misses'] / 1e6:.1f} MB fetched"
                )
                print(
                    f"error relative to copying the last frame: {early:.3f} at first, {late:.3f} at the end; "
                    f"better: {late < early}"
                )


if __name__ == "__main__":
    main()
