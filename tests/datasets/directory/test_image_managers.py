"""Images of Pillow, arrays of OpenCV, and conversions between the two. Pixels are compared exactly."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

import streamloader as sl

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (7, 5), np.uint8)
COLOR = RNG.integers(0, 256, (7, 5, 3), np.uint8)  # RGB, or BGR
LARGE = RNG.integers(0, 256, (70, 50, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (7, 5, 4), np.uint8)
GRAY16 = RNG.integers(0, 65536, (7, 5), np.uint16)
COLOR16 = RNG.integers(0, 65536, (7, 5, 3), np.uint16)
REAL = RNG.random((7, 5), np.float32)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")


def image(mode):
    if mode in ("I", "F", "I;16"):
        return Image.fromarray({"I": GRAY16.astype(np.int32), "F": REAL, "I;16": GRAY16}[mode])
    return Image.fromarray(COLOR if mode == "P" else ALPHA).convert(mode)


def same_image(one, other):
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# --- Pillow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_bytes_of_images_keep_mode_and_pixels(mode):
    manager = sl.PillowDataManager()
    loaded = manager.deserialize(memoryview(manager.serialize(image(mode))))
    assert same_image(loaded, image(mode))
    assert pickle.loads(pickle.dumps(manager)) == manager


@pytest.mark.parametrize("name", ["a.png", "a.BMP", "a.webp", "a.tif", "a.tiff", "a.ppm"])
def test_images_in_files_without_loss(name, tmp_path):
    manager, path = sl.PillowDataManager(), tmp_path / name
    manager.save(str(path), image("RGB"))
    loaded = manager.load(str(path))
    assert same_image(loaded, image("RGB"))
    assert same_image(manager.deserialize(path.read_bytes()), loaded)
    path.unlink()  # the image is in memory
    assert loaded.getpixel((0, 0)) == image("RGB").getpixel((0, 0))


def test_jpeg_keeps_its_colors_and_takes_options(tmp_path):
    fine, coarse = tmp_path / "a.jpg", tmp_path / "b.jpeg"
    smooth = Image.linear_gradient("L").convert("RGB")
    sl.PillowDataManager().save(str(fine), smooth)
    sl.PillowDataManager(save_options={"quality": 5}).save(str(coarse), smooth)
    assert fine.read_bytes()[:3] == b"\xff\xd8\xff"
    assert coarse.stat().st_size < fine.stat().st_size
    loaded = np.asarray(sl.PillowDataManager().load(str(fine)), np.int32)
    assert np.abs(loaded - np.asarray(smooth)).max() <= 3


def test_images_are_converted_if_wanted(tmp_path):
    path = tmp_path / "a.png"
    sl.PillowDataManager().save(str(path), image("L"))
    assert sl.PillowDataManager().load(str(path)).mode == "L"
    assert same_image(sl.PillowDataManager(mode="RGB").load(str(path)), image("L").convert("RGB"))
    with pytest.raises(sl.ConfigError, match="none"):
        sl.PillowDataManager(mode="none").load(str(path))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n"
PNG = sl.PillowDataManager().serialize(Image.fromarray(COLOR))


@pytest.mark.parametrize("manager", [sl.PillowDataManager(), sl.OpenCVDataManager()], ids=["pillow", "opencv"])
@pytest.mark.parametrize(
    "data", [b"", b"text", EPS, PNG[:-30], PNG[:40], b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"II*\0"]
)
def test_damaged_images(manager, data, tmp_path):
    with pytest.raises(sl.CorruptSample):
        manager.deserialize(data)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(sl.CorruptSample, match=r"a\.png: the image cannot be decoded") as error:
        manager.load(str(path))
    assert error.value.address == str(path)


@pytest.mark.parametrize(
    ("manager", "value"), [(sl.PillowDataManager(), Image.fromarray(LARGE)), (sl.OpenCVDataManager(), LARGE)]
)
@pytest.mark.parametrize("ending", ["jpg", "bmp", "webp", "tiff", "ppm", "jp2"])
def test_cut_images(manager, value, ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    manager.save(str(path), value)
    data = path.read_bytes()
    assert manager.deserialize(data) is not None
    for size in (len(data) // 2, len(data) - 30):
        with pytest.raises(sl.CorruptSample):
            manager.deserialize(data[:size])


def test_a_bomb_of_pixels_is_refused():
    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (60_000).to_bytes(4, "big")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x08\0\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0"))
    for manager in (sl.PillowDataManager(), sl.OpenCVDataManager()):
        with pytest.raises(sl.CorruptSample):
            manager.deserialize(data + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("manager", "name", "value"),
    [
        (sl.PillowDataManager(), "a.eps", Image.fromarray(COLOR)),
        (sl.PillowDataManager(), "a.pdf", Image.fromarray(COLOR)),
        (sl.PillowDataManager(), "a", Image.fromarray(COLOR)),
        (sl.PillowDataManager(), "a.jpg", Image.fromarray(ALPHA)),
        (sl.PillowDataManager(), "a.png", COLOR),
        (sl.PillowDataManager(save_options={"quality": "none"}), "a.jpg", Image.fromarray(COLOR)),
        (sl.OpenCVDataManager(), "a.png", Image.fromarray(COLOR)),
        (sl.OpenCVDataManager(), "a.png", REAL),  # OpenCV would write 8 bits
        (sl.OpenCVDataManager(), "a.jpg", GRAY16),
        (sl.OpenCVDataManager(), "a.tiff", GRAY.astype(np.int64)),
        (sl.OpenCVDataManager(), "a.png", GRAY > 100),
        (sl.OpenCVDataManager(), "a.png", np.zeros((0, 5), np.uint8)),
        (sl.OpenCVDataManager(), "a.png", np.zeros((4, 5, 2), np.uint8)),
        (sl.OpenCVDataManager(), "a.exr", REAL),
        (sl.OpenCVDataManager(), "a", GRAY),
    ],
)
def test_images_that_are_refused_leave_no_file(manager, name, value, tmp_path):
    with pytest.raises(sl.ConfigError):
        manager.save(str(tmp_path / name), value)
    assert list(tmp_path.iterdir()) == []


# --- OpenCV ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [GRAY, COLOR, ALPHA, GRAY16, COLOR16, REAL, REAL.astype(np.float64)])
def test_bytes_of_arrays_keep_everything(array):
    manager = sl.OpenCVDataManager(mode="unchanged")
    loaded = manager.deserialize(memoryview(manager.serialize(array)))
    assert same(loaded, array)
    assert loaded.flags.writeable
    assert pickle.loads(pickle.dumps(manager)) == manager


def test_arrays_are_loaded_as_opencv_loads_them(tmp_path):
    for name, array in (("gray.png", GRAY), ("color.png", COLOR), ("alpha.png", ALPHA), ("deep.png", GRAY16)):
        path = str(tmp_path / name)
        sl.OpenCVDataManager().save(path, array)
        for mode, flag in (("color", 1), ("grayscale", 0), ("unchanged", -1)):
            loaded = sl.OpenCVDataManager(mode=mode).load(path)
            assert same(loaded, cv2.imread(path, flag))
        assert same(sl.OpenCVDataManager().load(path), cv2.imread(path))
    assert same(sl.OpenCVDataManager().load(str(tmp_path / "color.png")), COLOR)
    with pytest.raises(sl.ConfigError, match="must be one of color"):
        sl.OpenCVDataManager(mode="rgb")


def test_other_layouts_of_memory(tmp_path):
    turned = COLOR[::-1, ::2]
    sl.OpenCVDataManager().save(str(tmp_path / "a.bmp"), turned)
    assert same(sl.OpenCVDataManager().load(str(tmp_path / "a.bmp")), np.ascontiguousarray(turned))


def test_both_managers_read_the_same_pixels(tmp_path):
    path = str(tmp_path / "a.png")
    sl.PillowDataManager().save(path, Image.fromarray(COLOR))
    assert same(sl.OpenCVDataManager().load(path), COLOR[..., ::-1].copy())
    assert same_image(sl.opencv_to_pil(sl.OpenCVDataManager().load(path)), Image.fromarray(COLOR))


@pytest.mark.parametrize("blocked", ["cv2", "PIL"])
def test_a_missing_package_is_named(blocked):
    extra, manager = {"cv2": ("opencv", "OpenCVDataManager"), "PIL": ("images", "PillowDataManager")}[blocked]
    program = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        f"import streamloader as sl\n"
        f"try: sl.{manager}().deserialize(b'')\n"
        f"except sl.MissingDependency as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert f"pip install streamloader[{extra}]" in done.stdout


# --- conversions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", np.asarray(image("L"))),
        ("RGB", np.asarray(image("RGB"))[..., ::-1]),
        ("RGBA", ALPHA[..., [2, 1, 0, 3]]),
        ("I;16", GRAY16),
        ("I", GRAY16.astype(np.int32)),
        ("F", REAL),
        ("1", np.asarray(image("1").convert("L"))),
        ("P", np.asarray(image("P").convert("RGB"))[..., ::-1]),
        ("LA", np.asarray(image("LA").convert("RGBA"))[..., [2, 1, 0, 3]]),
        ("CMYK", np.asarray(image("CMYK").convert("RGB"))[..., ::-1]),
        ("YCbCr", np.asarray(image("YCbCr").convert("RGB"))[..., ::-1]),
    ],
)
def test_images_become_arrays(mode, expected):
    array = sl.pil_to_opencv(image(mode))
    assert same(array, np.ascontiguousarray(expected))
    assert array.flags.writeable
    assert array.flags.c_contiguous
    back = sl.opencv_to_pil(array)
    if mode in ("L", "RGB", "RGBA", "I;16", "I", "F"):
        assert same_image(back, image(mode))


def test_a_palette_with_transparency_keeps_it():
    buffer = io.BytesIO()
    image("P").save(buffer, "PNG", transparency=0)
    loaded = Image.open(io.BytesIO(buffer.getvalue()))
    assert same(sl.pil_to_opencv(loaded), np.asarray(loaded.convert("RGBA"))[..., [2, 1, 0, 3]].copy())


def test_sixteen_bits_in_the_other_byte_order():
    swapped = Image.frombytes("I;16B", (5, 7), GRAY16.astype(">u2").tobytes())
    assert same(sl.pil_to_opencv(swapped), GRAY16)
    assert same_image(sl.opencv_to_pil(GRAY16.astype(">u2")), image("I;16"))


def test_arrays_become_images():
    assert same_image(sl.opencv_to_pil(GRAY[..., None]), Image.fromarray(GRAY))
    assert same_image(sl.opencv_to_pil(COLOR[::-1, ::2]), Image.fromarray(np.ascontiguousarray(COLOR[::-1, ::2, ::-1])))
    array = COLOR.copy()
    converted = sl.opencv_to_pil(array)
    array[:] = 0
    assert np.array_equal(converted, COLOR[..., ::-1])


@pytest.mark.parametrize(
    "value",
    [COLOR16, REAL[..., None].repeat(3, 2), GRAY > 3, np.zeros(5, np.uint8), np.zeros((4, 5, 2), np.uint8), "text"],
)
def test_arrays_that_are_no_images(value):
    with pytest.raises(sl.ConfigError):
        sl.opencv_to_pil(value)
    with pytest.raises(sl.ConfigError, match="takes images of Pillow"):
        sl.pil_to_opencv(value)
