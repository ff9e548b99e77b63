"""Every example runs, and prints its expected result."""

from __future__ import annotations

import ast
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import make_clip
from optional_torch import needs_torch
from servers.block_gateway import serve_blocks

import streamloader as sl

pytestmark = needs_torch  # they show how to train with it
EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWS = {
    "addresses": "all 106,200 bytes equal the written ones: True",
    "archive_local": "as streams, every frame was delivered once: True",
    "archive_ssh": "; better: True",
    "articles": "every article was delivered once, without menus and advertisements: True",
    "audio_rnn": "better: True",
    "char_rnn": "learned: True",
    "gym_vector": "the same frames as in a bare loop over Gymnasium: True",
    "ipfs_train": "accuracy of at least 95% both ways: True",
    "ddp": "together 20,788 of 20,788 letters",
    "mnist_directory": "accuracy of at least 97%: True",
    "multimodal": "accuracy of at least 96%: True",
    "lightning_loop": "the same 58 batches and losses after it: True",
    "own_stream": ">3:0  3:1  3:2  3:3",
    "quickstart": "frames/s, waiting for data",
    "s3_shards": "accuracy of at least 95%: True",
    "resume": "the same losses, bit for bit: True",
    "text": ">a_0;a_1;a_2; >b_0;b_1;b_2;",
    "train_rnn": "epoch 5: 0.",
    "vector_env": "balls caught",
    "video_grid": "4 streams in 4 rows: 88 steps, on which 10 streams start",
    "virtual_camera": "the flow explains the motion: True",
}
NEEDS_SERVER = {"ipfs_train", "s3_shards"}
NEEDS_MNIST = {"mnist_directory": "all pixels are the saved ones: True", "multimodal": "200 rows, such as 00000.png"}
SAVES_PLOT = {"articles", "audio_rnn", "char_rnn", "gym_vector", "video_grid", "virtual_camera"}
NEEDS_VIDEOS = {"archive_local", "archive_ssh", "quickstart", "video_grid", "virtual_camera"}
# These run in every run of the tests. What the others show has tests of its own, and the README's training runs too.
QUICK = {"addresses", "text", "vector_env"}


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(SHOWS)
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in table for name in names)


@pytest.mark.parametrize("name", SHOWS)
def test_every_example_compiles_and_the_names_that_it_uses_exist(name):
    path = EXAMPLES / f"{name}.py"
    tree = ast.parse(path.read_text())
    compile(tree, path, "exec")
    used = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sl"
    ]
    assert used
    assert [attribute for attribute in used if not hasattr(sl, attribute)] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "streamloader":
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "streamloader":
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture(scope="module")
def made_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        make_clip(folder / f"{number}.mp4", frames=11 + 3 * number)
    return folder


def run(path, *arguments, cwd, **environ):
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in SHOWS
        if name not in NEEDS_SERVER and name not in NEEDS_MNIST
    ],
)
def test_example(name, request, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where torchrun leaves a folder behind
    videos = [str(path) for path in request.getfixturevalue("clips").values()] if name in NEEDS_VIDEOS else []
    assert SHOWS[name] in run(EXAMPLES / f"{name}.py", *videos, cwd=tmp_path)
    if name in SAVES_PLOT:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NEEDS_MNIST)
def test_example_on_a_few_images(name, mnist_cache, tmp_path):
    arguments = ["--images", "200", "--epochs", "1", "--workers", "0"]
    shown = run(EXAMPLES / f"{name}.py", *arguments, cwd=tmp_path, STREAMLOADER_CACHE=mnist_cache, TMPDIR=str(tmp_path))
    assert NEEDS_MNIST[name] in shown
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS_MNIST)
def test_example_on_mnist(name, mnist_cache, tmp_path):
    shown = run(EXAMPLES / f"{name}.py", cwd=tmp_path, STREAMLOADER_CACHE=mnist_cache, TMPDIR=str(tmp_path))
    assert NEEDS_MNIST[name].replace("200 rows", "10,000 rows") in shown
    assert SHOWS[name] in shown


def test_the_video_grid_as_a_file_of_each_kind(made_videos, tmp_path):
    """And with ``--show``, which says so where there is no screen."""
    command = [str(made_videos), "--rows", "3", "--size", "40", "60", "--stride", "1", "--batches", "3", "--show"]
    for name, frames in (("grid.gif", 24), ("grid.mp4", 24)):
        shown = run(EXAMPLES / "video_grid.py", *command, "--save", name, cwd=tmp_path, DISPLAY="")
        assert "5 streams in 3 rows: 24 steps, on which" in shown
        assert "no window can be opened" in shown
        with av.open(str(tmp_path / name)) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(pictures) == frames
        orange = [(np.abs(picture.astype(int) - (255, 159, 28)).max(-1) < 60).sum() for picture in pictures]
        assert orange[0] > 3 * 2 * 4 * 60  # the borders of all rows
        assert min(orange) < orange[0] / 4
    assert (tmp_path / "video_grid.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_short_training_of_the_char_rnn_example(tmp_path):
    arguments = ["--texts", "20", "--epochs", "1", "--plot", "plot.png"]
    shown = run(EXAMPLES / "char_rnn.py", *arguments, cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"))
    assert "epoch 1 of 1: " in shown
    assert "learned: False" in shown  # too few texts, which the last line of the example sees
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_ddp_example_on_one_rank(tmp_path):
    """What torchrun starts on each rank: test_ddp.py has several."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rank = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shown = run(EXAMPLES / "ddp.py", cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"), **rank)
    assert SHOWS["ddp"] in shown


@pytest.mark.slow
def test_a_training_of_the_resume_example(tmp_path):
    """One of the three that it starts: it prints a loss for each batch."""
    shown = run(
        EXAMPLES / "resume.py", "no checkpoint", "1", "{}",
        cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )  # fmt: skip
    losses = [json.loads(line) for line in shown.splitlines()]
    assert [epoch for epoch, *_ in losses] == sorted(epoch for epoch, *_ in losses)
    assert losses[-1][2] < losses[0][2]


@pytest.mark.slow
def test_the_example_on_ipfs(jsipfs_node, tmp_path):
    with serve_blocks(jsipfs_node) as gateway:
        addresses = ["--api", f"/ip4/127.0.0.1/tcp/{jsipfs_node.rpc_port}", "--gateway", gateway]
        assert SHOWS["ipfs_train"] in run(EXAMPLES / "ipfs_train.py", *addresses, cwd=tmp_path)
    assert (tmp_path / "ipfs_train.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_example_on_s3(seaweed_server, tmp_path):
    options = seaweed_server.options()
    keys = ["--access-key", options["access_key_id"], "--secret-key", options["secret_access_key"]]
    arguments = ["--endpoint", seaweed_server.endpoint, *keys, "--bucket", seaweed_server.bucket(), "--workers", "2"]
    assert SHOWS["s3_shards"] in run(EXAMPLES / "s3_shards.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "s3_shards.png").stat().st_size > 10_000
