"""The help texts of all commands, and interrupts of those that use the network."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from streamloader.cli.main import make_parser

COMMANDS = ["convert-vdd", "demo", "doctor", "index", "index-shards", "ingest", "inspect", "pack", "plan"]


def test_all_commands_are_here(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    found = re.findall(r"^    ([a-z][a-z-]+)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(found) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_are_valid(command, capsys):
    parser = make_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    examples = re.findall(rf"^  (streamloader {command}\b.*)$", text.partition("\nexample")[2], re.MULTILINE)
    assert examples
    for example in examples:
        parsed = parser.parse_args(shlex.split(example)[1:])
        assert callable(parsed.run)


@pytest.mark.parametrize("arguments", [["doctor", "--timeout", "600"], ["inspect"]])
def test_an_interrupt_ends_a_wait_for_a_server(arguments):
    with socket.socket() as silent:  # it accepts connections, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.mp4"
        with subprocess.Popen(
            [sys.executable, "-m", "streamloader", *arguments, address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            while True:  # the probe of doctor sends nothing
                connection, _ = silent.accept()
                with connection:
                    if connection.recv(1):
                        process.send_signal(signal.SIGINT)
                        out, errors = process.communicate(timeout=100)
                        break
    assert (process.returncode, out, errors) == (130, "", "interrupted\n")
