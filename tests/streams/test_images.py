"""ImageStreams: how files become streams, their times, and what happens to images that cannot be used."""

from __future__ import annotations

import logging
import os
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from image_data import encode, encode_animation, make_pixels, write_folder
from PIL import Image
from range_server import served

import streamloader as sl
from streamloader.errors import (
    ConfigError,
    CorruptStream,
    FrameSizeError,
    MediaLimitExceeded,
    ObjectChanged,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.media.image.decoder import ImageDecoder
from streamloader.stores.io_thread import open_shared_store
from streamloader.streams import image_probe
from streamloader.streams.image_names import find_numbers, order_naturally
from streamloader.testing import describe_streams, read_stream
from streamloader.testing.streams.playing import read_block


def play(dataset, number=0, **options):
    """Return the frames of one stream."""
    return read_stream(dataset, describe_streams(dataset)[number], **options)["data"]


def lengths(dataset, base):
    """Return key (relative to `base`) -> number of steps."""
    return {os.path.relpath(info.key, base): info.length for info in describe_streams(dataset)}


def times_of(dataset, number=0):
    """Return the times of all steps of one stream."""

    async def read():
        stream = await dataset.open(info, np.random.default_rng(0))
        out = np.full(info.length, np.nan)
        await read_block(stream, dataset, info.length)
        stream.times(0, out)
        await stream.aclose()
        return out.tolist()

    import anyio

    info = describe_streams(dataset)[number]
    return anyio.run(read)


def write(folder, names, *, seed=0, **options):
    """Write an image under each name, and return their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = [make_pixels(seed + number, **options) for number in range(len(names))]
    for name, image in zip(names, pixels, strict=True):
        (folder / name).write_bytes(encode(image))
    return np.stack(pixels)


# --- names -----------------------------------------------------------------------------------------------------------


def test_numbers_in_names_count():
    names = ["b10.png", "b9.png", "b9a.png", "a.png", "b010.png", "B1.png", "b1-2.png", "b1-10.png"]
    order = [names[number] for number in order_naturally(names)]
    assert order == ["B1.png", "a.png", "b1-2.png", "b1-10.png", "b9.png", "b9a.png", "b010.png", "b10.png"]
    assert order_naturally([f"{number:03d}" for number in (2, 0, 1)]) == [1, 2, 0]
    names = ["10.png", "1a.png", "99.png"]  # of one length, and not alike
    assert order_naturally(names) == [1, 0, 2]
    names = ["9" * 5000, "1" * 5001, "0" * 6000 + "7"]  # longer than Python converts
    assert order_naturally(names) == [2, 0, 1]


def test_numbers_are_found_where_names_differ():
    assert find_numbers(["f07_x.png", "f7_x.png", "f123_x.png"]).tolist() == [7, 7, 123]
    assert find_numbers(["v2_100.png", "v2_101.png"]).tolist() == [100, 101]
    assert find_numbers(["a1b2.png", "a2b1.png"]) is None
    assert find_numbers(["a.png", "b.png"]) is None
    assert find_numbers(["1.png"]) is None
    assert find_numbers([f"{'9' * 30}.png", f"{'8' * 30}.png"]) is None


def test_images_play_in_natural_order(tmp_path):
    pixels = write(tmp_path / "a", [f"frame {number}.png" for number in range(12)])
    assert np.array_equal(play(sl.ImageStreams(tmp_path)), pixels)


def test_each_folder_is_a_stream(tmp_path):
    for name, count in (("z/deep", 2), ("a", 3), (".hidden", 1)):
        write_folder(tmp_path / name, count)
    write_folder(tmp_path, 1)
    (tmp_path / "a" / "notes.txt").write_text("none")
    assert lengths(sl.ImageStreams(tmp_path), tmp_path) == {".": 1, "a": 3, "z/deep": 2}
    assert lengths(sl.ImageStreams(f"{tmp_path}/*/*.png"), tmp_path) == {"a": 3}
    assert lengths(sl.ImageStreams(tmp_path / "a", streams="files"), tmp_path) == {
        f"a/{number:05d}.png": 1 for number in range(3)
    }
    keys = [info.key for info in describe_streams(sl.ImageStreams([tmp_path / "a"] * 2))]
    assert keys == [str(tmp_path / "a"), f"{tmp_path / 'a'}#2"]
    with pytest.raises(StreamNotFound):
        describe_streams(sl.ImageStreams(tmp_path / ".hidden" / "none"))


def test_number_fields_select_images(tmp_path):
    write(tmp_path / "a", ["00000.png", "00001.png", "123456.png", "1.png", "left00000.png"])
    assert lengths(sl.ImageStreams(tmp_path / "a" / "%05d.png", gaps="keep"), tmp_path) == {"a": 3}
    assert lengths(sl.ImageStreams(f"{tmp_path}/*/%d.png", gaps="keep"), tmp_path) == {"a": 2}
    assert lengths(sl.ImageStreams(tmp_path / "a" / "left%05d.png"), tmp_path) == {"a": 1}
    with pytest.raises(StreamNotFound, match="no image has a number"):
        describe_streams(sl.ImageStreams(tmp_path / "a" / "%07d.png"))
    with pytest.raises(ConfigError, match="wildcard"):
        describe_streams(sl.ImageStreams(tmp_path / "a" / "*%05d.png"))


# --- missing numbers -------------------------------------------------------------------------------------------------


def test_a_missing_number_is_an_error_that_names_it(tmp_path):
    write_folder(tmp_path / "a", 10)
    for number in (4, 7, 8):
        (tmp_path / "a" / f"{number:05d}.png").unlink()
    with pytest.raises(CorruptStream, match=r"/a has no image with the number 4 and 2 more: .*00005.*gaps=") as caught:
        describe_streams(sl.ImageStreams(tmp_path))
    error = caught.value
    assert (error.stream, error.address, error.offset) == (str(tmp_path / "a"), str(tmp_path / "a"), 4)
    assert error.details["missing"] == [4, 7, 8]
    assert lengths(sl.ImageStreams(tmp_path, gaps="keep"), tmp_path) == {"a": 7}


def test_missing_numbers_are_counted_by_the_step(tmp_path):
    write(tmp_path, [f"{number:03d}.png" for number in (0, 10, 40, 50, 80)])
    with pytest.raises(CorruptStream, match="number 20 and 3 more") as caught:
        describe_streams(sl.ImageStreams(tmp_path))
    assert (caught.value.details["missing"], caught.value.details["missing_count"]) == ([20, 30, 60, 70], 4)


@pytest.mark.parametrize("numbers", [[5, 6, 7], [0, 10, 20], [7], [1, 2]])
def test_numbers_begin_anywhere_and_advance_by_any_step(tmp_path, numbers):
    write(tmp_path, [f"{number:04d}.png" for number in numbers])
    assert lengths(sl.ImageStreams(tmp_path), tmp_path) == {".": len(numbers)}


def test_a_number_that_occurs_twice_is_an_error(tmp_path):
    write(tmp_path, ["1.png", "2.png", "02.png", "3.png"])
    with pytest.raises(CorruptStream, match="have the same number"):
        describe_streams(sl.ImageStreams(tmp_path))


def test_names_without_numbering_are_not_checked(tmp_path):
    write(tmp_path, ["a1.png", "a3.png", "b1.png", "end.png"])
    assert lengths(sl.ImageStreams(tmp_path), tmp_path) == {".": 4}


# --- times -----------------------------------------------------------------------------------------------------------


def test_images_without_times_are_one_a_second_or_at_the_frame_rate(tmp_path):
    write_folder(tmp_path, 5)
    assert times_of(sl.ImageStreams(tmp_path)) == [0, 1, 2, 3, 4]
    assert times_of(sl.ImageStreams(tmp_path, fps=25, stride=2)) == [0, 0.08, 0.16]


def test_times_from_names(tmp_path):
    write(tmp_path, [f"cam1_{time}.png" for time in (1_000_000_000, 1_040_000_000, 1_160_000_000)])
    dataset = sl.ImageStreams(tmp_path, times="names", time_unit="ns")
    assert times_of(dataset) == pytest.approx([0, 0.04, 0.16])
    resampled = sl.ImageStreams(tmp_path, times="names", time_unit="ns", fps=25)
    assert times_of(resampled) == pytest.approx([0.04 * step for step in range(7)])
    frames = play(resampled)
    shown = [0, 1, 1, 1, 2, 2, 2]  # the last one is shown for as long as the one before it
    assert np.array_equal(frames, np.stack([make_pixels(number) for number in shown]))
    write(tmp_path / "b", ["1.5.png", "1.75.png"])
    assert times_of(sl.ImageStreams(tmp_path / "b", times="names")) == [0, 0.25]


@pytest.mark.parametrize(
    "table",
    [
        "0.0\n0.5\n2.0\n",
        "# time, name\n0.0, 00000.png\n2.0, 00002.png\n0.5, 00001.png\n",
        "filename;seconds\nrgb/00000.png;0.0\nrgb/00001.png;0.5\nrgb/00002.png;2.0\n",
        "0.0 rgb/00000.png x\n\n0.5 rgb/00001.png y\n2.0 rgb/00002.png z",
        "\ufeff0.0\r\n0.5\r\n2.0\r\n",  # with a mark, as spreadsheets write it
        '"00002.png"\t"2.0"\n"00000.png"\t"0.0"\n"00001.png"\t"0.5"\n',
        "# frame;time (s);exposure\n0;0.0;9\n1;0.5;8\n2;2.0;7\n",
        "name,number,t\n00000.png,7,0.0\n00001.png,8,0.5\n00002.png,9,2.0\n",
        "# timestamp tx ty\n0.0 7 8\n0.5 5 6\n2.0 3 4\n",
    ],
)
def test_times_from_a_table(tmp_path, table):
    write_folder(tmp_path / "rgb", 3)
    (tmp_path / "rgb" / "times.txt").write_text(table)
    (tmp_path / "times.csv").write_text(table)
    for name in ("times.txt", "../times.csv"):
        assert times_of(sl.ImageStreams(tmp_path, times=name)) == [0, 0.5, 2]
    with pytest.raises(StreamNotFound, match=r"none\.txt"):
        describe_streams(sl.ImageStreams(tmp_path, times="none.txt"))


@pytest.mark.parametrize(
    "table",
    [
        "0,5 00000.png\n1,5 00001.png\n2,5 00002.png\n",  # a comma in a number
        "0.0 a.png\n0.5 b.png\n2.0 c.png\n",  # names of other images
        "0\n1e9999999\n2e9999999\n",
        "0\nnan\n2\n",
        "0\n1\n",
    ],
)
def test_a_table_that_gives_no_time_is_an_error(tmp_path, table):
    write_folder(tmp_path, 3)
    (tmp_path / "times.txt").write_text(table)
    with pytest.raises(UnreadableStream, match=r"0000[01]\.png .*has no time in the table times\.txt"):
        describe_streams(sl.ImageStreams(tmp_path, times="times.txt"))


def test_times_from_the_user(tmp_path):
    write_folder(tmp_path / "a", 3)
    assert times_of(sl.ImageStreams(tmp_path, times={f"{number:05d}.png": number / 4 for number in range(3)})) == [
        0, 0.25, 0.5,
    ]  # fmt: skip
    assert times_of(sl.ImageStreams(tmp_path, times=lambda folder, names: np.arange(len(names)) / 8)) == [
        0,
        0.125,
        0.25,
    ]
    with pytest.raises(ConfigError, match="2 times for the 3 images"):
        describe_streams(sl.ImageStreams(tmp_path, times=lambda folder, names: [0, 1]))
    with pytest.raises(UnreadableStream, match=r"00001\.png .*has no time in times=") as caught:
        describe_streams(sl.ImageStreams(tmp_path, times={"00000.png": 0}))
    assert caught.value.offset == 1
    with pytest.raises(UnreadableStream, match="run backwards"):
        describe_streams(sl.ImageStreams(tmp_path, times=lambda folder, names: [0, 2, 1]))


def test_animations_have_the_times_of_their_file(tmp_path):
    frames = [make_pixels(seed) for seed in range(4)]
    for name, format_ in (("a.gif", "GIF"), ("b/1.webp", "WEBP"), ("b/2.webp", "WEBP"), ("c/x.png", "PNG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_animation(frames, format_, [40, 80, 40, 200]))
    dataset = sl.ImageStreams(tmp_path)
    assert lengths(dataset, tmp_path) == dict.fromkeys(("a.gif", "b/1.webp", "b/2.webp", "c/x.png"), 4)
    for number in range(4):
        assert times_of(dataset, number) == pytest.approx([0, 0.04, 0.12, 0.16])
    resampled = sl.ImageStreams(tmp_path / "c", fps=25)
    assert np.array_equal(play(resampled), np.stack([frames[n] for n in (0, 1, 1, 2, 3, 3, 3, 3, 3)]))


def test_an_animation_among_images_is_an_error(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes(encode_animation([make_pixels(1), make_pixels(2)], "PNG", 40))
    with pytest.raises(UnreadableStream, match=r'2\.png is an animation .*streams="files"'):
        play(sl.ImageStreams(tmp_path))


def test_an_animation_of_one_frame_is_an_image(tmp_path):
    """Whatever its extension says: collections from the web have many such files."""
    pixels = write(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "2.png").write_bytes(encode(pixels[1], "WEBP", lossless=True))
    grey = np.repeat(pixels[2][..., :1], 3, axis=2)
    (tmp_path / "3.png").write_bytes(encode(Image.fromarray(grey[..., 0]), "GIF"))
    assert np.array_equal(play(sl.ImageStreams(tmp_path)), np.stack([*pixels[:2], grey]))


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_a_truncated_animation_has_its_whole_frames_on_request(tmp_path, format_):
    path = tmp_path / f"a.{format_.lower()}"
    data = encode_animation([make_pixels(seed) for seed in range(5)], format_, 50)
    path.write_bytes(data)
    whole = play(sl.ImageStreams(path))
    counts = set()
    for end in range(len(data) // 3, len(data) - 20, len(data) // 20):
        path.write_bytes(data[:end])
        with pytest.raises(CorruptStream, match="truncated"):
            describe_streams(sl.ImageStreams(path))
        dataset = sl.ImageStreams(path, damaged="keep")
        frames = play(dataset)
        counts.add(len(frames))
        assert np.array_equal(frames, whole[: len(frames)])
        assert np.array_equal(play(dataset, seek=len(frames) - 1), whole[len(frames) - 1 : len(frames)])
    assert len(counts) > 2


def test_a_damaged_animation_shows_its_last_frame_before_the_damage(tmp_path, caplog):
    """Each frame is drawn over those before it, so none after the damage can be shown."""
    data = bytearray(encode_animation([make_pixels(seed) for seed in range(1500)], "PNG", 50))
    position = data.index(b"fdAT", data.index(b"fdAT") + 1) + 20
    data[position : position + 4] = b"\xff" * 4  # of frame 2
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(CorruptStream, match="damaged at frame 2") as caught:
        play(sl.ImageStreams(tmp_path), seek=700)
    assert caught.value.offset == 2
    with caplog.at_level(logging.WARNING):
        frames = play(sl.ImageStreams(tmp_path, damaged="keep"))
    assert np.array_equal(frames[:2], np.stack([make_pixels(0), make_pixels(1)]))
    assert (frames[2:] == frames[1]).all()
    assert len(frames) == 1500
    assert caplog.text.count("shows the frame before it") == 1


# --- where images are ------------------------------------------------------------------------------------------------


def test_names_have_no_query(tmp_path):
    """Signed URLs, whose signatures have digits and extensions of their own."""
    pixels = write(tmp_path, [f"{number}.png" for number in (1, 2, 4)])
    (tmp_path / "z.gif").write_bytes(encode_animation([pixels[0], pixels[1]], "GIF", 40))
    with served(tmp_path) as url:
        addresses = [f"{url}/{number}.png?sig={text}" for number, text in ((4, "a1.5"), (1, "b77"), (2, "z9.gif"))]
        assert np.array_equal(play(sl.ImageStreams(addresses, gaps="keep")), pixels)
        assert times_of(sl.ImageStreams(addresses, times="names")) == [0, 1, 3]
        with pytest.raises(CorruptStream, match=r"no image with the number 3: 4\.png follows 2\.png"):
            describe_streams(sl.ImageStreams(addresses))
        animation = f"{url}/z.gif?x=3"
        assert len(play(sl.ImageStreams(animation, size=(8, 8)))) == 2
        found = describe_streams(sl.find_streams([*addresses, animation], size=(8, 8)))
        assert [info.length for info in found] == [1, 1, 1, 2]
        other = describe_streams(sl.find_streams([*addresses, f"{url}/z.gif?x=4"], size=(8, 8)))
        assert [info.key for info in other] == [info.key for info in found]  # keys show no values
        assert other.digest() != found.digest()


def test_images_in_zips(tmp_path):
    pixels = {}
    for name in ("one", "two"):
        pixels[name] = write_folder(tmp_path / name, 5, first=len(pixels) * 9)
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for path in sorted((tmp_path / name).iterdir()):
                file.write(path, f"frames/{path.name}")
    dataset = sl.ImageStreams(f"{tmp_path}/*.zip!/**/%05d.png")
    infos = describe_streams(dataset)
    assert [info.key.rpartition("/zips")[2][-15:] for info in infos] == ["one.zip!/frames", "two.zip!/frames"]
    for info, name in zip(infos, ("one", "two"), strict=True):
        assert np.array_equal(read_stream(dataset, info)["data"], pixels[name])
    sizes = dataset.source_sizes(infos)
    assert sizes.remote.all()
    assert sizes.sizes.tolist() == [
        sum(path.stat().st_size for path in (tmp_path / name).iterdir()) for name in ("one", "two")
    ]


def test_images_in_tars(tmp_path):
    pixels = write_folder(tmp_path / "frames", 4)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tmp_path / "frames", "frames")
    dataset = sl.ImageStreams(f"{tmp_path}/*.tar!/frames/")
    assert np.array_equal(play(dataset), pixels)
    assert np.array_equal(play(dataset, seek=2), pixels[2:])


def test_a_replaced_object_is_noticed():
    store, _ = open_shared_store("memory://replaced-images/a/0.png")
    with store:
        for number in range(3):
            store.write(f"a/{number}.png", encode(make_pixels(number)))
        dataset = sl.ImageStreams("memory://replaced-images/a/")
        assert len(play(dataset)) == 3
        infos = describe_streams(dataset)
        store.write("a/1.png", encode(make_pixels(9)))
        with pytest.raises(ObjectChanged):
            read_stream(dataset, infos[0])


def test_a_changed_file_is_noticed(tmp_path):
    write_folder(tmp_path, 3)
    dataset = sl.ImageStreams(tmp_path)
    infos = describe_streams(dataset)
    (tmp_path / "00001.png").write_bytes(encode(make_pixels(9)) + b"!")
    with pytest.raises(CorruptStream, match="was changed") as caught:
        read_stream(dataset, infos[0])
    assert (caught.value.stream, caught.value.offset) == (str(tmp_path), 1)
    (tmp_path / "00001.png").unlink()
    with pytest.raises(StreamNotFound, match="was deleted"):
        read_stream(dataset, infos[0])


def test_only_what_is_needed_is_read(tmp_path):
    # No file of the first folder is an image. With a size, JPEG files are not looked into, and others only the first.
    for folder, ending in (("a", "jpg"), ("b", "png")):
        write_folder(tmp_path / folder, 4, ending=ending)
        for path in sorted((tmp_path / folder).iterdir())[folder == "b" :]:
            path.write_bytes(b"junk")
    assert lengths(sl.ImageStreams(tmp_path, size=(8, 8)), tmp_path) == {"a": 4, "b": 4}
    with pytest.raises(UnreadableStream, match=r"a/00000\.jpg cannot be used"):
        describe_streams(sl.ImageStreams(tmp_path))


def test_animations_are_not_all_in_memory_while_they_are_indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(image_probe, "_MAX_BATCH_BYTES", 1 << 20)
    data = encode_animation([make_pixels(1), make_pixels(2)], "GIF", 40)
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * 1600 + b"\0"
    for number in range(20):
        (tmp_path / f"{number}.gif").write_bytes(data[:-1] + comment + data[-1:])
    dataset = sl.ImageStreams(tmp_path)
    describe_streams(dataset)
    tracemalloc.start()
    try:
        assert len(describe_streams(dataset)) == 20
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


# --- images that cannot be used --------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Three folders of five images, in the second of which image 2 is truncated."""
    for number, name in enumerate("abc"):
        write_folder(tmp_path / name, 5, first=10 * number)
    path = tmp_path / "b" / "00012.png"
    path.write_bytes(path.read_bytes()[:-40])
    return tmp_path


def test_a_broken_image_is_an_error_after_those_before_it(broken):
    with pytest.raises(CorruptStream, match=r"b/00012\.png cannot be decoded") as caught:
        play(sl.ImageStreams(broken), 1)
    error = caught.value
    assert (error.stream, error.address, error.offset) == (str(broken / "b"), str(broken / "b" / "00012.png"), 2)
    assert len(play(sl.ImageStreams(broken), 1, steps=2)) == 2


def test_a_broken_image_is_replaced_on_request(broken, caplog):
    dataset = sl.ImageStreams(broken, damaged="keep")
    with caplog.at_level(logging.WARNING):
        frames = play(dataset, 1)
    assert np.array_equal(frames, np.stack([make_pixels(10 + number) for number in (0, 1, 1, 3, 4)]))
    assert "00011.png instead" in caplog.text
    assert np.array_equal(play(dataset, 1, seek=2), frames[2:])
    for number in (0, 1):
        path = broken / "b" / f"{10 + number:05d}.png"
        path.write_bytes(path.read_bytes()[:-40])
    frames = play(sl.ImageStreams(broken, damaged="keep", size=(24, 32)), 1)
    assert np.array_equal(frames, np.stack([make_pixels(10 + number) for number in (3, 3, 3, 3, 4)]))


@pytest.mark.parametrize("intact", [0, 19, 39])
def test_many_broken_images_are_not_decoded_again_for_each_step(tmp_path, intact, monkeypatch):
    write(tmp_path, ["0.png"])
    data = (tmp_path / "0.png").read_bytes()
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(data if number == intact else data[:-40])
    decoded = []
    decode = ImageDecoder.convert_into
    monkeypatch.setattr(ImageDecoder, "convert_into", lambda *given: decoded.append(given[1].step) or decode(*given))
    frames = play(sl.ImageStreams(tmp_path, damaged="keep"))
    assert (frames == make_pixels(0)).all()
    assert len(frames) == 40
    assert len(decoded) <= 160


def test_a_loader_skips_streams_with_broken_images(broken):
    with sl.MultiStreamer(sl.ImageStreams(broken), 1, 1, shuffle=False, on_error="skip") as loader:
        keys = [loader.streams[int(batch.stream[0, 0])].key for batch in loader if batch.valid[0, 0]]
        assert [os.path.basename(key) for key in keys] == [*"aaaaa", *"bb", *"ccccc"]
        assert {os.path.basename(record.key) for record in loader.quarantined} == {"b"}  # in the next epoch too


def test_streams_that_cannot_be_used_are_listed_or_left_out(broken):
    (broken / "a" / "00002.png").unlink()
    (broken / "c" / "00020.png").write_bytes(b"junk")
    with pytest.raises(CorruptStream, match="2 of 3 image streams cannot be used"):
        describe_streams(sl.ImageStreams(broken))
    dataset = sl.ImageStreams(broken, unreadable="skip")
    assert lengths(dataset, broken) == {"b": 5}
    assert [(os.path.basename(each.key), each.error) for each in dataset.skipped] == [
        ("a", "CorruptStream"),
        ("c", "UnreadableStream"),
    ]


def test_sizes_that_differ(tmp_path):
    write(tmp_path / "a", ["0.png", "1.png"])
    write(tmp_path / "a", ["2.png"], height=30)
    with pytest.raises(FrameSizeError, match=r"2\.png is 30x32 .*size=") as caught:
        play(sl.ImageStreams(tmp_path))
    assert caught.value.offset == 2
    assert play(sl.ImageStreams(tmp_path, size=(10, 12))).shape == (3, 10, 12, 3)
    write(tmp_path / "b", ["0.png"], height=30)
    with pytest.raises(FrameSizeError):
        describe_streams(sl.ImageStreams(tmp_path))


def test_large_images_are_refused(tmp_path):
    write(tmp_path / "a", ["0.png", "1.png"])
    write(tmp_path / "a", ["2.png"], height=30)
    limited = {"max_pixels": 24 * 32, "size": (8, 8)}
    for damaged in ("raise", "keep"):
        with pytest.raises(MediaLimitExceeded, match="max_pixels") as caught:
            play(sl.ImageStreams(tmp_path, damaged=damaged, **limited))
        assert (caught.value.stream, caught.value.offset) == (str(tmp_path / "a"), 2)
    with pytest.raises(MediaLimitExceeded):
        describe_streams(sl.ImageStreams(tmp_path, max_pixels=10))


@pytest.mark.parametrize(
    "options",
    [{"times": 3}, {"time_unit": "min"}, {"streams": "all"}, {"gaps": "skip"}, {"damaged": "no"}, {"size": 3}],
)
def test_invalid_options(options):
    with pytest.raises(ConfigError):
        sl.ImageStreams("images", **options)
