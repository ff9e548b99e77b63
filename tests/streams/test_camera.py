"""CameraStreams: which images become streams, options, resuming, and what happens to images that cannot be used."""

from __future__ import annotations

import itertools
import json
import os
import zipfile

import cv2
import numpy as np
import pytest
from image_data import encode, encode_animation, make_pixels, psnr, write_folder
from made_clips import make_clip
from range_server import served

import streamloader as sl
from streamloader.errors import (
    ConfigError,
    CorruptStream,
    MediaLimitExceeded,
    StreamFailed,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.stores.io_thread import open_shared_store
from streamloader.stream_table import digest_streams
from streamloader.streams.base import skip_unreadable, stream_rng
from streamloader.testing import describe_streams, read_stream

SIZE = (24, 32)
STILL = {"max_rotation": 0, "max_translation": 0, "max_zoom": 0, "max_drift": 0}


def play(images, number=0, size=SIZE, seed=0, **options):
    """Return the frames of one stream."""
    dataset = sl.CameraStreams(images, size, **{"length": 5, **options})
    info = describe_streams(dataset)[number]
    return read_stream(dataset, info, rng=stream_rng(seed, 0, 0))["data"]


def names_of(dataset, base):
    return [os.path.relpath(info.key, base) for info in describe_streams(dataset)]


# --- images ----------------------------------------------------------------------------------------------------------


def test_each_image_is_a_stream(tmp_path):
    write_folder(tmp_path / "a", 2)
    write_folder(tmp_path / "b" / "deep", 1, ending="jpg", height=50)
    (tmp_path / "b" / "notes.txt").write_text("none")
    dataset = sl.CameraStreams(tmp_path, SIZE, 7)
    infos = describe_streams(dataset)
    assert names_of(dataset, tmp_path) == ["a/00000.png", "a/00001.png", "b/deep/00000.jpg"]
    assert [info.length for info in infos] == [7, 7, 7]
    assert [len(read_stream(dataset, info)["data"]) for info in infos] == [7, 7, 7]
    assert names_of(sl.CameraStreams(f"{tmp_path}/*/%05d.png", SIZE), tmp_path) == ["a/00000.png", "a/00001.png"]
    with pytest.raises(StreamNotFound):
        describe_streams(sl.CameraStreams(tmp_path / "none", SIZE))


def test_frames_come_from_the_pixels_of_the_file(tmp_path):
    pixels = write_folder(tmp_path, 2, first=3)
    for number in range(2):
        frames = play(tmp_path, number, **STILL)
        assert np.array_equal(frames, np.broadcast_to(pixels[number], frames.shape))
    gray = play(tmp_path, pix_fmt="gray", **STILL)
    assert gray.shape == (5, *SIZE, 1)
    assert np.abs(gray[0, ..., 0].astype(int) - cv2.cvtColor(pixels[0], cv2.COLOR_RGB2GRAY)).max() < 18  # limited range
    one, other = play(tmp_path, 0), play([pixels[0]], 0)
    assert np.array_equal(one, other)
    assert not np.array_equal(one[0], one[4])


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_large_files_are_scaled_down_like_arrays(tmp_path, format_):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)
    (tmp_path / f"a.{format_.lower()}").write_bytes(
        encode(image, format_, **({} if format_ == "PNG" else {"quality": 95}))
    )
    got, expected = play(tmp_path, fps=5), play([image], fps=5)
    assert psnr(got, expected) > 32  # a whole pixel aside, it is 23
    assert psnr(got[:, :, 1:], expected[:, :, :-1]) < 25


def test_views_of_one_image_move_differently(tmp_path):
    write_folder(tmp_path, 2)
    dataset = sl.CameraStreams(tmp_path, SIZE, 4, views=3)
    infos = describe_streams(dataset)
    assert names_of(dataset, tmp_path) == [f"{n:05d}.png#view{view}" for n in range(2) for view in range(3)]
    with sl.MultiStreamer(dataset, 6, 4, layout=None, shuffle=False) as loader:
        batch = next(iter(loader))
        frames = {int(stream): data for stream, data in zip(batch.stream[:, 0], batch.numpy()["data"], strict=True)}
    assert len({frames[number].tobytes() for number in range(len(infos))}) == 6


def test_animations_give_their_first_frame(tmp_path):
    frames = [make_pixels(seed) for seed in range(3)]
    (tmp_path / "a.webp").write_bytes(encode_animation(frames, "WEBP", 40, lossless=True))
    (tmp_path / "b.png").write_bytes(encode_animation(frames, "PNG", 40))
    (tmp_path / "c.gif").write_bytes(encode_animation(frames, "GIF", 40))
    for number, tolerance in enumerate((0, 0, 40)):
        shown = play(tmp_path, number, **STILL)[0]
        assert np.abs(shown.astype(int) - frames[0]).mean() <= tolerance / 4


def test_images_of_containers_and_stores(tmp_path):
    pixels = write_folder(tmp_path / "files", 3)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in sorted((tmp_path / "files").iterdir()):
            file.write(path, path.name)
    expected = [play([image]) for image in pixels]
    zipped = sl.CameraStreams(f"{tmp_path}/*.zip!/**/*.png", SIZE, 5)
    infos = describe_streams(zipped)
    assert [np.array_equal(read_stream(zipped, info)["data"], one) for info, one in zip(infos, expected, strict=True)]
    sizes = zipped.source_sizes(infos)
    assert sizes.remote.all()
    assert sizes.sizes.tolist() == [path.stat().st_size for path in sorted((tmp_path / "files").iterdir())]
    store, _ = open_shared_store("memory://camera-images/")
    with store:
        store.write("a.png", encode(pixels[1]))
        assert np.array_equal(play("memory://camera-images/*.png"), expected[1])


def test_keys_show_no_secrets_and_digests_tell_streams_apart(tmp_path):
    write_folder(tmp_path, 1)
    with served(tmp_path) as url:
        digests = set()
        for secret in ("alpha", "beta"):
            dataset = sl.CameraStreams(f"{url}/00000.png?name={secret}", SIZE, 3, views=2)
            infos = describe_streams(dataset)
            assert [info.key for info in infos] == [f"{url}/00000.png?name=***#view{view}" for view in range(2)]
            assert secret not in repr(list(infos)) + repr(dataset)
            assert len(read_stream(dataset, infos[1])["data"]) == 3
            digests.add(digest_streams(infos))
        assert len(digests) == 2


def test_steps_of_other_streams_are_images(tmp_path):
    pixels = write_folder(tmp_path / "a", 3)
    write_folder(tmp_path / "b", 2, first=7)
    single = sl.CameraStreams(sl.ImageStreams(tmp_path, streams="files"), SIZE, 5)
    assert names_of(single, tmp_path) == [f"{name}/{n:05d}.png" for name, n in itertools.product("a", range(3))] + [
        "b/00007.png",
        "b/00008.png",
    ]
    folders = sl.CameraStreams(sl.ImageStreams(tmp_path), SIZE, 5)
    infos = describe_streams(folders)
    assert names_of(folders, tmp_path) == ["a[0]", "a[1]", "a[2]", "b[0]", "b[1]"]
    assert folders.source_sizes(infos).sizes.sum() > 0
    for number in range(3):
        assert np.array_equal(read_stream(folders, infos[number])["data"], play([pixels[number]]))
    make_clip(tmp_path / "clip.mp4", frames=4, width=64, height=48)
    found = sl.CameraStreams(sl.find_streams(tmp_path, size=(40, 50), max_frames=2), SIZE, 5)
    assert len(describe_streams(found)) == 6  # two frames of each
    assert len(read_stream(found, describe_streams(found)[5])["data"]) == 5


def test_steps_of_streams_that_seek_by_reading():
    def make(item, rng):
        for step in range(item):
            yield make_pixels(step)

    field = sl.Field((24, 32, 3), "uint8", axes="HWC")
    dataset = sl.CameraStreams(sl.IterStreams([3, 2], make, fields=field, lengths=[3, 2]), SIZE, 2)
    infos = describe_streams(dataset)
    assert [info.key for info in infos] == ["0[0]", "0[1]", "0[2]", "1[0]", "1[1]"]
    assert np.array_equal(read_stream(dataset, infos[2])["data"], play([make_pixels(2)], length=2))
    short = sl.CameraStreams(sl.IterStreams([3], make, fields=field, lengths=[4]), SIZE, 2)
    with pytest.raises(CorruptStream, match=r"0\[3\]"):
        read_stream(short, describe_streams(short)[3])
    with pytest.raises(ConfigError, match="number of images of 0 is unknown"):
        describe_streams(sl.CameraStreams(sl.IterStreams([3], make, fields=field), SIZE))


class Numbered(sl.StreamDataset):
    """A stream of three images that cannot seek."""

    fields = {"data": sl.Field((24, 32, 3), "uint8", axes="HWC"), "number": sl.Field()}  # noqa: RUF012

    async def index(self):
        return [sl.StreamInfo("s", 3)]

    async def open(self, info, rng):
        class Steps(sl.Stream):
            step = 0

            async def read_into(self, out):
                out["data"][0], out["number"][0] = make_pixels(self.step), self.step
                self.step += 1
                return int(self.step <= 3)

        return Steps()


def test_steps_of_streams_without_seek():
    dataset = sl.CameraStreams(Numbered(), SIZE, 5)
    infos = describe_streams(dataset)
    for number in range(3):
        assert np.array_equal(read_stream(dataset, infos[number])["data"], play([make_pixels(number)]))


@pytest.mark.parametrize(
    "field", [sl.Field((3, 24, 32), "uint8", axes="CHW"), sl.Field((4,), "uint8"), sl.Field((9, 9, 3), "int64")]
)
def test_streams_that_are_no_images(field):
    dataset = sl.CameraStreams(sl.IterStreams([1], lambda item: [], fields=field, lengths=[1]), SIZE)
    describe_streams(dataset)
    with pytest.raises(ConfigError, match="must be a field 'data'"):
        _ = dataset.fields


def test_arrays():
    stack = np.stack([make_pixels(seed) for seed in range(3)])
    assert len(describe_streams(sl.CameraStreams(stack, SIZE))) == 3
    assert len(describe_streams(sl.CameraStreams(stack[0], SIZE))) == 1
    assert np.array_equal(play(stack, 2), play(stack[2]))
    sizes = sl.CameraStreams([stack[0], make_pixels(3, 90, 90)], SIZE)
    assert [info.key for info in describe_streams(sizes)] == ["0", "1"]
    assert play(stack[0, ..., 0]).shape == (5, *SIZE, 1)
    for wrong in ([stack[0], stack[0, ..., :1]], [stack], np.zeros((4, 4, 5)), np.zeros((4, 4), int), stack[:, :0]):
        with pytest.raises(ConfigError):
            sl.CameraStreams(wrong, SIZE)


# --- motion of streams, epochs and loaders ---------------------------------------------------------------------------


def epoch_of(dataset, epoch=0, **options):
    """Return the batches of an epoch."""
    with sl.MultiStreamer(dataset, **{"batch_size": 2, "window": 5, "layout": None, **options}) as loader:
        loader.set_epoch(epoch)
        return [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]


def assert_same_batches(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_same_bytes_for_any_number_of_workers_and_threads(tmp_path):
    # Large enough for OpenCV to use several threads, which it does in this process only.
    write_folder(tmp_path, 4, ending="jpg", height=200, width=300)
    dataset = sl.CameraStreams(tmp_path, (300, 400), 12, ground_truth=("homography", "flow", "pose", "visible"))
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        expected = epoch_of(dataset)
        cv2.setNumThreads(4)
        assert_same_batches(epoch_of(dataset), expected)
    finally:
        cv2.setNumThreads(threads)
    for workers in (1, 2):
        assert_same_batches(epoch_of(dataset, num_workers=workers), expected)


def test_the_motion_changes_with_epoch_and_seed_unless_it_has_a_seed_of_its_own():
    def poses(epoch, seed, **options):
        dataset = sl.CameraStreams([make_pixels(0)] * 2, SIZE, 5, ground_truth="pose", **options)
        (batch,) = epoch_of(dataset, epoch, seed=seed, shuffle=False)
        return batch["pose"]

    drawn = [poses(epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({each.tobytes() for each in drawn}) == 3
    assert np.array_equal(poses(1, 0), drawn[1])
    held = [poses(epoch, seed, motion_seed=5) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({each.tobytes() for each in held}) == 1
    assert not np.array_equal(held[0][0], held[0][1])
    assert not np.array_equal(poses(0, 0, motion_seed=6), held[0])


def test_a_stream_is_resumed_anywhere_without_drawing_the_steps_before(monkeypatch):
    dataset = sl.CameraStreams([make_pixels(0)], SIZE, 10_000, ground_truth=("homography", "flow"), border="reflect")
    (info,) = describe_streams(dataset)
    whole = read_stream(dataset, info, 64, steps=200)
    drawn = []
    warp = cv2.warpPerspective
    monkeypatch.setattr(cv2, "warpPerspective", lambda *args, **options: drawn.append(1) or warp(*args, **options))
    for step in (0, 1, 62, 63, 64, 65, 127, 128, 190):
        part = read_stream(dataset, info, 3, seek=step, steps=5)
        for name, values in part.items():
            assert np.array_equal(values, whole[name][step : step + 5])
    assert len(drawn) == 9 * 5
    assert len(read_stream(dataset, info, seek=9_998)["data"]) == 2


def test_times_and_layouts():
    dataset = sl.CameraStreams([make_pixels(0)], SIZE, 5, fps="30000/1001", ground_truth=("flow", "homography"))
    with sl.MultiStreamer(dataset, 1, 8) as loader:
        batch = next(iter(loader))
        assert batch.time[0, :5].tolist() == pytest.approx([step * 1001 / 30000 for step in range(5)])
        assert batch.data.shape == (1, 8, 3, *SIZE)
        assert batch["flow"].shape == (1, 8, 2, *SIZE)
        assert batch["homography"].shape == (1, 8, 3, 3)
        assert not batch["homography"][0, 5:].any()  # padding
    with sl.MultiStreamer(dataset, 1, 8, layout="BTHWC") as loader:
        assert next(iter(loader))["flow"].shape == (1, 8, *SIZE, 2)


def test_a_transform_changes_frames_alone(tmp_path):
    def darken(frames, rng):
        return (frames * rng.uniform(0.2, 0.8)).astype(np.float32)

    plain = sl.CameraStreams([make_pixels(0)], SIZE, 9, ground_truth="flow")
    dataset = sl.CameraStreams([make_pixels(0)], SIZE, 9, ground_truth="flow", transform=darken)
    before, after = (read_stream(each, describe_streams(each)[0]) for each in (plain, dataset))
    assert np.array_equal(before["flow"], after["flow"])
    factors = after["data"][before["data"] > 0] / before["data"][before["data"] > 0]
    assert np.ptp(factors) < 1e-6
    assert 0.2 < factors[0] < 0.8

    def fail(frames, rng):
        if frames.any():
            raise ValueError("no")
        return frames

    failing = sl.CameraStreams([make_pixels(0)], SIZE, transform=fail)
    with pytest.raises(StreamFailed, match="transform raised ValueError"):
        read_stream(failing, describe_streams(failing)[0])


def test_settings_are_plain_and_tell_all_that_matters():
    dataset = sl.CameraStreams("images", (np.int64(24), 32), 7, "30000/1001", "gray", views=2, max_rotation=(0, 0.5, 0))
    settings = json.loads(json.dumps(dataset.settings))
    assert settings == dataset.settings
    assert {name: settings[name] for name in ("size", "length", "fps", "pix_fmt", "views", "max_rotation")} == {
        "size": [24, 32], "length": 7, "fps": "30000/1001", "pix_fmt": "gray", "views": 2, "max_rotation": [0, 0.5, 0],
    }  # fmt: skip
    of_steps = sl.CameraStreams(sl.ImageStreams("images", stride=3), SIZE)
    assert of_steps.settings["images"]["stride"] == 3
    with pytest.raises(ConfigError, match="before index"):
        read_stream(dataset, sl.StreamInfo("x", 7, {"image": 0, "view": 0}))


# --- images that cannot be used --------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Four images, of which the second is truncated, and the third is none."""
    write_folder(tmp_path, 4, ending="jpg", height=64, width=96)
    path = tmp_path / "00001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "00002.jpg").write_bytes(b"junk")
    return tmp_path


def test_a_broken_image_is_an_error_that_names_it(broken):
    dataset = sl.CameraStreams(broken, SIZE, 5)
    infos = describe_streams(dataset)  # looks into no file
    for number, kind in ((1, CorruptStream), (2, UnreadableStream)):
        path = str(broken / f"0000{number}.jpg")
        with pytest.raises(kind) as caught:
            read_stream(dataset, infos[number])
        assert (caught.value.stream, caught.value.address, caught.value.offset) == (path, path, 0)
        assert "damaged=" not in caught.value.message
    with pytest.raises(CorruptStream, match=r'on_error="skip"'):
        read_stream(dataset, infos[1])
    assert len(read_stream(dataset, infos[3])["data"]) == 5


def test_a_broken_animation_is_an_error_that_names_it(tmp_path):
    data = encode_animation([make_pixels(1), make_pixels(2)], "PNG", 40)
    position = data.index(b"IDAT") + 20
    (tmp_path / "a.png").write_bytes(data[:position] + bytes(40) + data[position + 40 :])
    with pytest.raises(CorruptStream, match=r'a\.png is truncated or damaged.*on_error="skip"') as caught:
        play(tmp_path)
    assert caught.value.stream == caught.value.address == str(tmp_path / "a.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_skips_broken_images(broken, workers):
    dataset = sl.CameraStreams(broken, SIZE, 3)
    with sl.MultiStreamer(dataset, 1, 1, num_workers=workers, shuffle=False, on_error="skip") as loader:
        keys = [loader.streams[int(batch.stream[0, 0])].key for batch in loader if batch.valid[0, 0]]
        assert [os.path.basename(key) for key in keys] == ["00000.jpg"] * 3 + ["00003.jpg"] * 3
        assert sorted({os.path.basename(record.key) for record in loader.quarantined}) == ["00001.jpg", "00002.jpg"]
    with sl.MultiStreamer(dataset, 1, 1, num_workers=workers, shuffle=False) as loader, pytest.raises(CorruptStream):
        for _ in loader:
            pass


def test_files_that_cannot_be_accessed_are_listed_or_left_out(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "00001.png").unlink()
    (tmp_path / "00001.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(tmp_path / "00003b.png")
    with pytest.raises(UnreadableStream, match="2 of 5 images cannot be used"):
        describe_streams(sl.CameraStreams(tmp_path, SIZE))
    dataset = sl.CameraStreams(tmp_path, SIZE, 5, unreadable="skip")
    assert names_of(dataset, tmp_path) == ["00000.png", "00002.png", "00003.png"]
    assert [(os.path.basename(each.key), each.error) for each in dataset.skipped] == [
        ("00001.png", "UnreadableStream"),
        ("00003b.png", "UnreadableStream"),
    ]
    infos = describe_streams(dataset)
    assert np.array_equal(read_stream(dataset, infos[1])["data"], play([make_pixels(2)]))
    with skip_unreadable():
        assert len(describe_streams(sl.CameraStreams(tmp_path, SIZE))) == 3


def test_files_that_change_are_noticed(tmp_path):
    write_folder(tmp_path, 2)
    dataset = sl.CameraStreams(tmp_path, SIZE)
    infos = describe_streams(dataset)
    (tmp_path / "00000.png").write_bytes(encode(make_pixels(9)) + b"!")
    (tmp_path / "00001.png").unlink()
    with pytest.raises(CorruptStream, match="was changed") as caught:
        read_stream(dataset, infos[0])
    assert (caught.value.stream, caught.value.offset) == (infos[0].key, 0)
    with pytest.raises(StreamNotFound, match="was deleted"):
        read_stream(dataset, infos[1])


def test_large_images_are_refused(tmp_path):
    write_folder(tmp_path, 1, height=50, width=60)
    with pytest.raises(MediaLimitExceeded, match="max_pixels") as caught:
        play(tmp_path, max_pixels=2999)
    assert (caught.value.stream, caught.value.offset) == (str(tmp_path / "00000.png"), 0)
    play(tmp_path, max_pixels=3000)


def test_errors_of_other_streams_name_the_camera(tmp_path):
    write_folder(tmp_path / "a", 3)
    path = tmp_path / "a" / "00001.png"
    path.write_bytes(path.read_bytes()[:-40])
    dataset = sl.CameraStreams(sl.ImageStreams(tmp_path, SIZE), SIZE)
    with pytest.raises(CorruptStream) as caught:
        read_stream(dataset, describe_streams(dataset)[1])
    assert (caught.value.stream, caught.value.address, caught.value.offset) == (f"{tmp_path / 'a'}[1]", str(path), 1)


def test_the_index_reads_no_image(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(b"junk")
    assert len(describe_streams(sl.CameraStreams(tmp_path, SIZE, views=5))) == 200


@pytest.mark.parametrize(
    "options",
    [
        {"size": (24,)}, {"size": 24}, {"length": 0}, {"length": 1.5}, {"length": 10**9}, {"fps": 0}, {"fps": None},
        {"pix_fmt": "yuv420p"}, {"views": 0}, {"ground_truth": "depth"}, {"ground_truth": ["flow", 3]},
        {"flow_to": "last"}, {"max_rotation": -1}, {"max_rotation": (1, 2)}, {"max_rotation": 1.3},
        {"max_rotation": "fast"}, {"max_translation": np.inf}, {"max_zoom": 10}, {"max_zoom": np.nan},
        {"max_drift": -1},
        {"speed": 0}, {"speed": (2, 1)}, {"speed": (1, 2, 3)}, {"speed": "slow"}, {"fov": 0}, {"fov": 180},
        {"fov": 150},
        {"fov": 60, "camera_matrix": np.eye(3)}, {"camera_matrix": np.eye(2)}, {"camera_matrix": -np.eye(3)},
        {"camera_matrix": "K"}, {"border": "wrap"}, {"border_value": "black"}, {"interpolation": "area"},
        {"motion_seed": 0.5}, {"unreadable": "keep"}, {"max_pixels": 0},
    ],
)  # fmt: skip
def test_invalid_options(options):
    with pytest.raises(ConfigError):
        sl.CameraStreams("images", **{"size": SIZE, **options})


@pytest.mark.parametrize("options", [{"pix_fmt": "gray"}, {"storage_options": {}}])
def test_options_of_files_are_refused_for_other_images(options):
    for images in ([make_pixels(0)], sl.ImageStreams("images")):
        with pytest.raises(ConfigError, match="options of image files"):
            sl.CameraStreams(images, SIZE, **options)
