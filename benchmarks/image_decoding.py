"""How fast do libraries decode images of 640x480 on one core? ``python -m benchmarks.image_decoding``

Decoders that are not installed are left out. Each image is decoded several times in turn, and its fastest time counts,
because other programs on the machine only make it slower. The last column is the distance from scaling the whole image
with an exact bilinear (averaging) filter, in dB.
"""

from __future__ import annotations

import glob
import io
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.image_folders import image_folders

Array = np.ndarray[Any, Any]
Decoder = Callable[[bytes], Any]
_SIZE = 224
_IMAGES, _ROUNDS = 24, 8


def pillow_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    from PIL import Image

    def decode(data: bytes) -> Array:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def scale(data: bytes) -> Array:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))

    def draft(data: bytes) -> Array:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (_SIZE, _SIZE))
        return np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))

    for format_ in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield format_, "Pillow", decode
        yield format_, f"Pillow, {_SIZE}x{_SIZE}", scale
    yield "JPEG", f"Pillow, draft(), {_SIZE}x{_SIZE}", draft


def opencv_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    import cv2

    cv2.setNumThreads(1)

    def decode(data: bytes) -> Array:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    def scale(data: bytes) -> Array:
        return cv2.resize(decode(data), (_SIZE, _SIZE), interpolation=cv2.INTER_LINEAR)

    def average(data: bytes) -> Array:
        return cv2.resize(decode(data), (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)

    def reduce(data: bytes) -> Array:
        half = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
        return cv2.cvtColor(cv2.resize(half, (_SIZE, _SIZE)), cv2.COLOR_BGR2RGB)

    for format_ in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield format_, "OpenCV", decode
        yield format_, f"OpenCV, INTER_LINEAR, {_SIZE}x{_SIZE}", scale
        yield format_, f"OpenCV, INTER_AREA, {_SIZE}x{_SIZE}", average
    yield "JPEG", f"OpenCV, reduced to 1/2, {_SIZE}x{_SIZE}", reduce


def simplejpeg_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    import cv2
    import simplejpeg

    def half(data: bytes) -> Array:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=_SIZE, min_width=_SIZE, min_factor=2)

    yield "JPEG", "simplejpeg", lambda data: simplejpeg.decode_jpeg(data, "RGB")
    yield "JPEG", "simplejpeg, reduced to 320x240", half
    yield "JPEG", f"simplejpeg, reduced, OpenCV, {_SIZE}x{_SIZE}", lambda data: cv2.resize(half(data), (_SIZE, _SIZE))


def pyav_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    from av.codec.context import CodecContext
    from av.packet import Packet
    from av.video.reformatter import VideoReformatter

    def frame(codec: str, data: bytes) -> Any:
        context = CodecContext.create(codec, "r")
        context.thread_count = 1
        packet = Packet(data)
        packet.is_keyframe = True
        return context.decode(packet)[0]

    for format_, codec in (("JPEG", "mjpeg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tiff")):
        reformat = VideoReformatter().reformat
        yield (
            format_,
            "PyAV",
            lambda data, codec=codec, reformat=reformat: reformat(
                frame(codec, data), 640, 480, "rgb24", threads=1
            ).to_ndarray(),
        )
        yield (
            format_,
            f"PyAV, {_SIZE}x{_SIZE}",
            lambda data, codec=codec, reformat=reformat: reformat(
                frame(codec, data), _SIZE, _SIZE, "rgb24", threads=1
            ).to_ndarray(),
        )


def other_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    import imagecodecs

    yield "JPEG", "imagecodecs", imagecodecs.jpeg8_decode
    yield "PNG", "imagecodecs", imagecodecs.png_decode
    yield "WEBP", "imagecodecs", imagecodecs.webp_decode
    yield "TIFF", "imagecodecs", imagecodecs.tiff_decode


def streamloader_decoders() -> Iterable[tuple[str, str, Decoder]]:
    """Yield format, description and function of each decoder."""
    from streamloader.media.image.decoder import EncodedImage, ImageDecoder

    for text, size in (("", (480, 640)), (f", {_SIZE}x{_SIZE}", (_SIZE, _SIZE))):
        decoder = ImageDecoder("rgb24", *size, 1 << 26, scales=True)
        out = np.empty((1, *size, 3), np.uint8)
        outputs = decoder.wrap_outputs([out])

        def decode(data: bytes, decoder=decoder, outputs=outputs, out=out) -> Array:
            decoder.convert_into(EncodedImage(data, "", "", 0), outputs, 0)
            return out[0]

        for format_ in ("JPEG", "PNG", "WEBP", "TIFF"):
            yield format_, f"streamloader{text}", decode


def encode_images() -> tuple[dict[str, list[bytes]], list[Array]]:
    """Return the images of the benchmark in each format, and scaled exactly."""
    from PIL import Image

    paths = [path for folder in image_folders(6) for path in sorted(glob.glob(f"{folder}/*.jpg"))[::25]][:_IMAGES]
    images: dict[str, list[bytes]] = {"JPEG": [], "PNG": [], "WEBP": [], "TIFF": []}
    exact = []
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        exact.append(np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)))
        for format_, options in (("PNG", {}), ("WEBP", {"quality": 85}), ("TIFF", {"compression": "tiff_lzw"})):
            buffer = io.BytesIO()
            image.save(buffer, format_, **options)
            images[format_].append(buffer.getvalue())
        images["JPEG"].append(data)
    return images, exact


def measure(decode: Decoder, images: list[bytes], exact: list[Array]) -> tuple[float, float | None]:
    """Return the mean of the fastest times in ms, and the PSNR of scaled images."""
    best = [float("inf")] * len(images)
    for _ in range(_ROUNDS):
        for number, data in enumerate(images):
            start = time.perf_counter()
            decode(data)
            best[number] = min(best[number], time.perf_counter() - start)
    results = [np.array(decode(data)) for data in images[:8]]
    if results[0].shape != exact[0].shape:
        return 1000 * statistics.fmean(best), None
    errors = [np.mean((one.astype(float) - other) ** 2) for one, other in zip(results, exact, strict=False)]
    return 1000 * statistics.fmean(best), statistics.fmean(10 * np.log10(255**2 / max(e, 1e-6)) for e in errors)


def main() -> None:
    """Measure all decoders, and print a table."""
    images, exact = encode_images()
    rows: dict[str, list[str]] = {format_: [] for format_ in images}
    sources = (
        pillow_decoders, opencv_decoders, simplejpeg_decoders, pyav_decoders, other_decoders, streamloader_decoders,
    )  # fmt: skip
    for source in sources:
        try:
            for format_, name, decode in source():
                milliseconds, psnr = measure(decode, images[format_], exact)
                quality = "" if psnr is None else "exact" if psnr > 90 else f"{psnr:.1f}"
                rows[format_].append(f"| {name} | {milliseconds:.2f} | {1000 / milliseconds:,.0f} | {quality} |")
        except ImportError as error:
            print(f"left out: {error}")
    for format_, lines in rows.items():
        size = statistics.fmean(map(len, images[format_])) / 1000
        print(f"\n| {format_}, {size:.0f} KB | ms/image | images/s | PSNR, dB |\n|---|---:|---:|---:|")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
