"""Virtual cameras that move in front of planar images, with the exact geometry of their motion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import numpy as np
from typing_extensions import override

from streamloader.arguments import check_callable, check_options
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.media.image.plane import BORDERS, INTERPOLATIONS, Border, FlowWriter, Interpolation, PlaneRenderer
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.media.video.selection import Selection, as_int
from streamloader.stores.addresses import Addresses
from streamloader.stores.search import Unreadable
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import StreamTransform, Transform
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skips_unreadable
from streamloader.streams.camera_images import ArrayImages, FetchedImage, FileImages, PlaneImages, StepImages
from streamloader.streams.camera_motion import (
    CameraMotion,
    ImagePlacement,
    MotionOptions,
    make_camera_matrix,
    parse_camera,
)
from streamloader.streams.corpus import clamp_step
from streamloader.streams.frames import transform_field, validate_size
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.lane_thread import decode_in_lane_thread, in_lane_thread
from streamloader.streams.step_writer import qualified_name
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array, Field, StreamInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["CameraStreams"]

GroundTruth: TypeAlias = Literal["homography", "flow", "pose", "visible"]

_GROUND_TRUTH: Final = ("homography", "flow", "pose", "visible")
_PIX_FMTS: Final = ("rgb24", "gray")
_DEFAULT_FOV_DEGREES: Final = 60.0
_MAX_STEPS: Final = 10_000_000
_MAX_NUMBER: Final = 1e100  # squares of it are finite
_MASK_64_BITS: Final = (1 << 64) - 1


class CameraStreams(StreamDataset):
    r"""One stream for each image: what a camera sees that moves smoothly in front of the image, as if it were a poster.

    Fields: ``"data"``, (H, W, C) in the dtype of the image, and those of `ground_truth`:

    - ``"homography"``: float64 (3, 3), from the pixels of this step to those of the next one (or of the one before, see
      `flow_to`). Its last element is 1.
    - ``"flow"``: float32 (H, W, 2), the optical flow that it induces in pixels: what is at (x, y) in this step is at
      (x + flow[y, x, 0], y + flow[y, x, 1]) in the other one. Computed in double precision, and rounded once.
    - ``"pose"``: float64 (3, 4), the matrix [R|t] from the coordinates of the reference pose to those of the camera, in
      units of the distance from the reference pose to the image.
    - ``"visible"``: bool (H, W), whether a pixel shows the image, and not the border. With ``border="fit"``, all do.

    Pixel (x, y) is column x and row y, and its centre is at (x, y). The motion continues before the first step and
    after the last one, so both fields are exact in every step. On padding, all fields are zeros.

    In its reference pose, the camera faces the image at distance d: it is the plane with n\ :sup:`T` X + d = 0 and n =
    (0, 0, -1). In another pose [R|t], the plane induces the homography H = K (R - t n\ :sup:`T` / d) K\ :sup:`-1` from
    the reference view to the current one (Hartley and Zisserman, Multiple View Geometry in Computer Vision, second
    edition, section 13.1). Rotation, translation and distance are sums of sines with amplitudes, frequencies and phases
    that are drawn for each stream, and a steady drift is added. So the pose at a step is a function of its number, and
    a stream can be resumed at any step without rendering those before it.

    Args:
        images: A directory, a pattern, an address in a store or container, or a list of these, as for
            :class:`~streamloader.ImageStreams`; each image is a stream, of an animation its first frame. Or another
            dataset, such as ImageStreams or what :func:`~streamloader.find_streams` returns: each of its steps is an
            image. Or arrays (H, W, C) or (H, W): a list, or one array (n, H, W, C). Images of files and lists may
            differ in size.
        size: (height, width) of a frame in pixels.
        length: Number of steps of each stream. Defaults to 100.
        fps: Steps per second. Defaults to 25.
        pix_fmt: Pixel format of files: ``"rgb24"`` or ``"gray"``. Defaults to ``"rgb24"``.
        views: Number of streams for each image, with motions of their own. Defaults to 1.
        ground_truth: Names of the fields with ground truth. Defaults to none.
        flow_to: Step to which homography and flow lead from each step: ``"next"`` or ``"previous"``. Defaults to
            ``"next"``.
        max_rotation: Maximum angle between the camera and its reference pose in radians, about any axis; or the maxima
            of the three components (about x, y and z: pitch, yaw and roll) of the rotation vector. Defaults to 0.25.
        max_translation: Maximum distance of the sines' translation parallel to the image, in widths of the reference
            view. Defaults to 0.2.
        max_zoom: Maximum relative change of the distance to the image: 0.2 (the default) is 1/1.2 to 1.2 times d.
        max_drift: Maximum distance of the drift from the first to the last step, in widths of the reference view.
            Defaults to 0.2.
        speed: Minimum and maximum frequency of the sines in Hz. Defaults to (0.05, 0.4).
        fov: Horizontal field of view in degrees. Defaults to 60.
        camera_matrix: Matrix K (3, 3) instead of `fov`, in pixels of `size`.
        border: Surroundings of the image. ``"fit"`` (the default): none are seen, because the image is placed so that
            it covers what the camera sees in all steps. Otherwise, the image covers the reference view, and is
            continued by its mirror images (``"reflect"``), by copies (``"repeat"``), by its edge pixels (``"edge"``),
            or by `border_value` (``"constant"``).
        border_value: Value of all channels for ``border="constant"``. Defaults to 0.
        interpolation: ``"linear"`` (the default), ``"cubic"`` or ``"nearest"``. Images that have more pixels than
            frames show are scaled down first by averaging, but not for ``"nearest"``, which keeps labels intact.
        transform: Function ``transform(frames, rng)``, as for videos. It changes the frames, and not the ground truth.
        motion_seed: Seed of the motions, which are then the same in every epoch and for every seed of the loader.
            Defaults to None: the motion of a stream is drawn again in every epoch.
        max_pixels: Maximum number of pixels of an image file. Defaults to 2^26, which is 8192 x 8192.
        unreadable: ``"raise"`` raises one error that lists all images that cannot be accessed; ``"skip"`` leaves them
            out and lists them in :attr:`skipped`, as does ``on_error="skip"`` of a loader. None, the
            default, raises for them too, but leaves out directories that may not be read, with one warning.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    Raises:
        ConfigError: If the arguments contradict each other, the camera may look past the plane, or `images` are not
            images of an accepted type.
        MissingDependency: If the extra ``images`` is not installed.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no image (from :meth:`index`).
        UnreadableStream: If a file is not an image of an accepted format (when it is played, as the following ones).
        CorruptStream: If an image is truncated or damaged, or changed since it was indexed.
        MediaLimitExceeded: If an image exceeds `max_pixels`.
        StoreError: If a store fails to deliver bytes; ObjectChanged if an image in a store was replaced.
    """

    def __init__(
        self,
        images: Addresses | StreamDataset | Array | Sequence[Array],
        size: tuple[int, int],
        length: int = 100,
        fps: float | str | Fraction = 25,
        pix_fmt: Literal["rgb24", "gray"] | None = None,
        *,
        views: int = 1,
        ground_truth: GroundTruth | Iterable[GroundTruth] = (),
        flow_to: Literal["next", "previous"] = "next",
        max_rotation: float | Sequence[float] = 0.25,
        max_translation: float = 0.2,
        max_zoom: float = 0.2,
        max_drift: float = 0.2,
        speed: float | tuple[float, float] = (0.05, 0.4),
        fov: float | None = None,
        camera_matrix: Any = None,
        border: Border = "fit",
        border_value: float = 0,
        interpolation: Interpolation = "linear",
        transform: Transform | None = None,
        motion_seed: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._size = validate_size(size)
        self._length = _validate_count("length", length, _MAX_STEPS)
        self._views = _validate_count("views", views)
        self._fps = _parse_rate(fps)
        self._ground_truth = _parse_ground_truth(ground_truth)
        self._target = 1 if _validate_choice("flow_to", flow_to, ("next", "previous")) == "next" else -1
        self._motion = MotionOptions.from_arguments(max_rotation, max_translation, max_zoom, max_drift, speed)
        if fov is not None and camera_matrix is not None:
            raise ConfigError("fov and camera_matrix exclude each other: pass one of them")
        if camera_matrix is None:
            self._camera = make_camera_matrix(*self._size, _DEFAULT_FOV_DEGREES if fov is None else fov)
        else:
            self._camera = parse_camera(camera_matrix)
        self._motion.check_view(self._camera, *self._size)
        self._border: Border = cast("Border", _validate_choice("border", border, tuple(BORDERS)))
        self._border_value = _validate_number("border_value", border_value)
        self._interpolation = cast(
            "Interpolation", _validate_choice("interpolation", interpolation, tuple(INTERPOLATIONS))
        )
        self._transform = check_callable("transform", transform)
        if motion_seed is not None and (
            not isinstance(motion_seed, (int, np.integer)) or isinstance(motion_seed, bool)
        ):
            raise ConfigError(f"motion_seed must be a whole number or None, got {motion_seed!r}")
        self._motion_seed = None if motion_seed is None else int(motion_seed)
        self._unreadable = validate_unreadable(unreadable)
        self._images = _open_images(images, pix_fmt, validate_max_pixels(max_pixels), storage_options)
        self._image_table: StreamTable | None = None
        self._fields: dict[str, Field] | None = None

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        if self._fields is None:
            channels, dtype = self._images.pixel
            self._fields = self._make_fields(Field((*self._size, channels), dtype, axes="HWC"))
        return self._fields

    @property
    def camera_matrix(self) -> Array:
        """The camera matrix K, float64 (3, 3), in pixels of the frames."""
        return self._camera.copy()

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        return {
            "size": list(self._size),
            "length": self._length,
            "fps": str(self._fps),
            "views": self._views,
            "ground_truth": list(self._ground_truth),
            "flow_to": "next" if self._target == 1 else "previous",
            **self._motion.describe(),
            "camera_matrix": self._camera.tolist(),
            "border": self._border,
            "border_value": self._border_value,
            "interpolation": self._interpolation,
            "transform": None if self._transform is None else qualified_name(self._transform),
            "motion_seed": self._motion_seed,
            **self._images.describe(),
        }

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The images that the last call of :meth:`index` left out because they cannot be used, in their order."""
        return self._images.skipped

    @override
    async def index(self) -> Sequence[StreamInfo]:
        images = await self._images.index("skip" if skips_unreadable() else self._unreadable)
        self._image_table = images
        self._fields = None
        keys: Iterable[str] = (info.key for info in images)
        identities: Iterable[str] = images.identities
        if self._views > 1:
            keys = _name_views(keys, self._views)
            identities = _name_views(identities, self._views)
        numbers = np.arange(len(images) * self._views)
        columns: dict[str, Any] = {"image": numbers // self._views, "view": numbers % self._views}
        return StreamTable(keys, np.full(len(numbers), self._length), columns, identities)

    @override
    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        sources = self._images.measure(self._require_images())
        numbers = streams.extra_integers("image")
        return SourceSizes(sources.sizes[numbers], sources.remote[numbers])

    @override
    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        return await self._open_with(info, rng, None)

    @override
    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        image = self._require_images()[info.extra["image"]]
        fetched = await self._images.fetch(image, info.key)
        return None if fetched is None else _PreparedCamera(partial(self._open_with, info), fetched)

    async def _open_with(self, info: StreamInfo, rng: np.random.Generator, fetched: FetchedImage | None) -> Stream:
        keys = rng.integers(0, 1 << 64, (3, 2), np.uint64)  # of motion, transform and image
        try:
            motion, placement = await in_lane_thread(self._plan_motion, info, keys[0])
        except BaseException:
            if fetched is not None:
                fetched.release()
            raise
        image_rng = np.random.Generator(np.random.Philox(key=keys[2]))
        if fetched is None:
            image = self._require_images()[info.extra["image"]]
            pixels = await self._images.read(image, info.key, image_rng, placement.choose_size)
        else:
            pixels = await fetched.read(image_rng, placement.choose_size)
        transform = None
        if self._transform is not None:
            transform = StreamTransform(self._transform, keys[1], self.fields["data"], info.key)
        return _CameraStream(
            motion,
            placement.map_to_image(*pixels.shape[:2]),
            PlaneRenderer(pixels, self._size, self._interpolation, self._border, self._border_value),
            transform,
            key=info.key,
            length=self._length,
            fps=self._fps,
            target=self._target,
        )

    def _plan_motion(self, info: StreamInfo, key: Array) -> tuple[CameraMotion, ImagePlacement]:
        if self._motion_seed is not None:
            number = info.extra["image"] * self._views + info.extra["view"]
            key = np.array([self._motion_seed & _MASK_64_BITS, number], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        motion = CameraMotion(self._motion, self._camera, self._size, self._length, float(1 / self._fps), rng)
        across, down = rng.random(2)
        placement = ImagePlacement(
            motion.find_bounds(reference=self._border != "fit"),
            (float(across), float(down)),
            self._motion.find_density(self._camera),
            shrinks=self._interpolation != "nearest",
        )
        return motion, placement

    def _make_fields(self, frame: Field) -> dict[str, Field]:
        height, width = self._size
        fields = {"data": transform_field(frame, self._transform)}
        truths = {
            "homography": Field((3, 3), np.float64),
            "flow": Field((height, width, 2), np.float32, axes="HWC"),
            "pose": Field((3, 4), np.float64),
            "visible": Field((height, width), bool),
        }
        return fields | {name: truths[name] for name in self._ground_truth}

    def _require_images(self) -> StreamTable:
        if self._image_table is None:
            raise ConfigError("the images are unknown before index() was called")
        return self._image_table


class _PreparedCamera(PreparedStream):
    """A stream whose image is being fetched.

    Args:
        open_with: Function that opens the stream with a random generator and the image.
        fetched: Image that is being fetched.
    """

    def __init__(
        self, open_with: Callable[[np.random.Generator, FetchedImage], Awaitable[Stream]], fetched: FetchedImage
    ) -> None:
        self._open_with = open_with
        self._fetched = fetched

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._fetched.ready

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        return await self._open_with(rng, self._fetched)

    @override
    def release(self) -> None:
        self._fetched.release()


class _CameraStream(Stream):
    """Renders the frames of one camera.

    Args:
        motion: Motion of the camera.
        to_image: Homography (3, 3) from the plane to the pixels of the image.
        renderer: Renderer of the image.
        transform: The user's transform, or None.
        key: Key of the stream.
        length: Number of steps.
        fps: Steps per second.
        target: Step to which flow and homography lead, relative to each step: 1 or -1.
    """

    def __init__(
        self,
        motion: CameraMotion,
        to_image: Array,
        renderer: PlaneRenderer,
        transform: StreamTransform | None,
        *,
        key: str,
        length: int,
        fps: Fraction,
        target: int,
    ) -> None:
        self._motion = motion
        self._to_image = to_image
        self._renderer = renderer
        self._transform = transform
        self._key = key
        self._length = length
        self._fps = fps
        self._target = target
        self._step = 0
        self._error: StreamloaderError | None = None
        self._flow: FlowWriter | None = None  # made when it is needed
        self._frames = np.empty(0)  # before they are transformed

    @override
    async def read_into(self, out: Mapping[str, Array]) -> int:
        if self._error is not None:
            raise self._error
        count = min(len(out["data"]), self._length - self._step)
        return 0 if count <= 0 else await decode_in_lane_thread(self._read, out, count)

    @override
    async def seek(self, step: int) -> None:
        self._step = clamp_step(step, self._length, self._key)
        self._error = None

    @override
    def times(self, start: int, out: Array) -> None:
        out[:] = np.arange(start, start + len(out), dtype=np.float64) * self._fps.denominator / self._fps.numerator

    def _read(self, out: Mapping[str, Array], count: int) -> int:
        frames = out["data"] if self._transform is None else self._allocate_frames(count)
        row = 0
        try:
            while row < count:
                self._render(out, frames, row)
                row += 1
        except StreamloaderError as error:
            if row == 0:
                raise
            self._error = error  # raised by the next read
        if self._transform is not None:
            self._transform.apply(frames[:row], out["data"], self._step)
        self._step += row
        return row

    def _render(self, out: Mapping[str, Array], frames: Array, row: int) -> None:
        """Write the frame and the ground truth of one step into a row."""
        step = self._step + row
        block = self._motion.block_of(step)
        to_image = self._to_image @ block.to_plane(step)
        self._renderer.draw_into(frames[row], to_image)
        if "homography" in out or "flow" in out:
            homography = block.between(step, step + self._target)
            if not self._motion.is_visible_after(homography):
                raise ConfigError(
                    f"the camera of stream {self._key!r} moves so far within one step that it passes what it sees: "
                    "ground truth needs a lower speed, a smaller max_rotation, or a higher fps",
                    stream=self._key,
                    offset=step,
                )
            if "homography" in out:
                out["homography"][row] = homography
            if "flow" in out:
                self._flow = self._flow or FlowWriter(*self._renderer.size)
                self._flow.write_into(out["flow"][row], homography)
        if "pose" in out:
            out["pose"][row] = block.pose(step)
        if "visible" in out:
            self._renderer.mark_into(out["visible"][row], to_image)

    def _allocate_frames(self, count: int) -> Array:
        if len(self._frames) < count:
            image = self._renderer.image
            self._frames = np.empty((count, *self._renderer.size, image.shape[2]), image.dtype)
        return self._frames


def _open_images(
    images: Any, pix_fmt: str | None, max_pixels: int, storage_options: Mapping[str, Any] | None
) -> PlaneImages:
    """Return the images that the user has passed, of whatever kind."""
    is_list = isinstance(images, (list, tuple)) and bool(images) and all(isinstance(it, np.ndarray) for it in images)
    if isinstance(images, (StreamDataset, np.ndarray)) or is_list:
        if pix_fmt is not None or storage_options is not None:
            raise ConfigError(
                "pix_fmt and storage_options are options of image files: leave them out with other images"
            )
        if isinstance(images, StreamDataset):
            return StepImages(images)
        is_single = isinstance(images, np.ndarray) and images.ndim != 4  # noqa: PLR2004
        return ArrayImages([images] if is_single else list(images))
    form = _validate_choice("pix_fmt", "rgb24" if pix_fmt is None else pix_fmt, _PIX_FMTS)
    return FileImages(images, form, max_pixels, check_options("storage_options", storage_options))


def _name_views(names: Iterable[str], views: int) -> list[str]:
    return [f"{name}#view{view}" for name in names for view in range(views)]


def _parse_ground_truth(names: Any) -> tuple[str, ...]:
    """Return the names of ground truth in a fixed order."""
    try:
        chosen = {names} if isinstance(names, str) else set(names)
    except TypeError:
        raise ConfigError(f"ground_truth must be a list of names, got {names!r:.80}") from None
    if unknown := chosen - set(_GROUND_TRUTH):
        raise ConfigError(f"ground_truth must be of {', '.join(_GROUND_TRUTH)}, got {sorted(map(str, unknown))}")
    return tuple(name for name in _GROUND_TRUTH if name in chosen)


def _parse_rate(fps: Any) -> Fraction:
    rate = Selection.from_options(None, random_start=False, stride=1, fps=fps).fps
    if rate is None:
        raise ConfigError("fps must be a number of frames per second such as 25, got None")
    return rate


def _validate_choice(name: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _validate_count(name: str, value: object, limit: int | None = None) -> int:
    count = as_int(value)
    if count < 1 or (limit is not None and count > limit):
        at_most = "" if limit is None else f" and at most {limit:,}"
        raise ConfigError(f"{name} must be a whole number of at least 1{at_most}, got {value!r}")
    return count


def _validate_number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float, np.number)) or not -_MAX_NUMBER < value < _MAX_NUMBER:
        raise ConfigError(f"{name} must be a number, got {value!r}")
    return float(value)
