"""Which readers return exactly the requested frames? 60 random frames by number, of every kind of clip of the tests.

``python -m benchmarks.exact [--quick] [--json FILE]``

The reference is a linear decode with PyAV, in upright orientation. A frame is wrong if it resembles another frame of
the clip more than the requested one (all frames differ), has another shape, or is not returned at all. Each reader runs
in a separate process, which is restarted after a clip that kills it or takes too long.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness import ROOT, describe_machine

_REQUESTED_FRAMES: Final = 60  # of each clip
_CLIP_TIMEOUT_S: Final = 60.0
_BLOCK_PX: Final = 4  # frames are compared by means of such squares, on which the scaler has little influence
_MAX_DIFFERENCE: Final = 12.0  # mean levels of 255 between conversions of the same frame by two decoders

READERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "streamloader": ("archive", {}),
    "PyAV with an index": ("pyav", {}),
    "torchcodec exact": ("torchcodec", {}),
    "torchcodec approximate": ("torchcodec", {"mode": "approximate"}),
    "decord": ("decord", {}),
    "OpenCV": ("opencv", {}),
}


_NOTE: Final = (
    f"Number of frames, of {_REQUESTED_FRAMES} that were requested at random, one by one, that differ from a linear "
    "decode: other frames of the clip, frames with another orientation or shape, or none at all (in brackets: number "
    "of these calls that raised an error, or all if opening failed). Readers have their default settings. The clips "
    "are those of the project's tests: 40 small frames that all differ, of the kind that the name describes."
)


@dataclasses.dataclass(frozen=True)
class ExactQuestion:
    """The question about exactness. Its table has a row for each clip and a column for each reader."""

    name: str = "exact"
    title: str = "Exactness"
    quick: bool = False

    def run(self) -> dict[str, Any]:
        """Test all readers, and return all results as a plain dictionary."""
        with tempfile.TemporaryDirectory() as folder:
            names = list(_create_clips(Path(folder), quick=self.quick))
            results = {reader: dict(_evaluate_reader(reader, Path(folder), names)) for reader in READERS}
        return {"question": self.name, "machine": describe_machine(), "rounds": 1, "clips": names, "found": results}

    def render(self, results: dict[str, Any]) -> str:
        """Return the table as Markdown."""
        lines = [
            "### Wrong frames, random access by number",
            "",
            _NOTE,
            "",
            "| clip | " + " | ".join(READERS) + " |",
            "| --- |" + " ---: |" * len(READERS),
        ]
        clips = results["clips"]
        for clip in clips:
            cells = [_cell(results["found"][reader][clip]) for reader in READERS]
            lines.append(f"| {clip} | " + " | ".join(cells) + " |")
        sums = [sum(results["found"][reader][clip]["wrong"] for clip in clips) for reader in READERS]
        clip_counts = [sum(results["found"][reader][clip]["wrong"] > 0 for clip in clips) for reader in READERS]
        requested = _REQUESTED_FRAMES * len(clips)
        lines.append(f"| **wrong of {requested:,}** | " + " | ".join(f"**{total:,}**" for total in sums) + " |")
        lines.append(f"| clips with wrong frames, of {len(clips)} | " + " | ".join(map(str, clip_counts)) + " |")
        return "\n".join(lines)


def _cell(result: dict[str, Any]) -> str:
    if result["died"]:
        return f"{result['wrong']} ({result['died']})"
    return f"{result['wrong']} ({result['refused']})" if result["refused"] else str(result["wrong"])


def question(quick: bool) -> ExactQuestion:
    """Return the question."""
    return ExactQuestion(quick=quick)


# --- the clips -------------------------------------------------------------------------------------------------------


def variants() -> dict[str, Callable[[Path], Path]]:
    """Return the function that creates each clip in a folder, by name: the tests' clips, and further combinations."""
    sys.path.insert(0, str(ROOT / "tests"))
    import made_clips as made

    hevc = {"x265-params": "log-level=0:open-gop=1:keyint=10:min-keyint=10"}
    vp9 = {"deadline": "realtime", "cpu-used": "8"}
    more: dict[str, Callable[[Path], Path]] = {
        "av1.mkv": lambda f: made.make_clip(f / "av1.mkv", "libsvtav1", height=64, options={"preset": "11"}),
        "av1.webm": lambda f: made.make_clip(f / "av1.webm", "libsvtav1", height=64, options={"preset": "11"}),
        "vp9.mp4": lambda f: made.make_clip(f / "vp9.mp4", "libvpx-vp9", options=vp9),
        "vp9.mkv": lambda f: made.make_clip(f / "vp9.mkv", "libvpx-vp9", options=vp9),
        "vp9_b_frames.webm": lambda f: made.make_clip(
            f / "vp9_b_frames.webm", "libvpx-vp9", options={"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "5"}
        ),
        "hevc.ts": lambda f: made.make_clip(f / "hevc.ts", "libx265", options=hevc),
        "hevc_late_start.ts": lambda f: made.make_clip(
            f / "hevc_late_start.ts", "libx265", options=hevc, ticks=lambda k: k + 125
        ),
        "rotated.mkv": lambda f: made.make_clip(f / "rotated.mkv", rotation=180),
        "rotated_270.mov": lambda f: made.make_clip(f / "rotated_270.mov", rotation=-90),
    }
    return made.VARIANTS | more


def _create_clips(folder: Path, *, quick: bool) -> Iterator[str]:
    """Create the clips and their reference frames in `folder`, and yield the name of each."""
    for name, make in list(variants().items())[:: 9 if quick else 1]:
        home = folder / name
        home.mkdir()
        (home / "path").write_text(str(make(home)))
        np.save(home / "truth.npy", _decode_reference(Path((home / "path").read_text())))
        yield name


def _decode_reference(path: Path) -> Any:
    """Return all frames (n, H, W, 3) of a linear decode, in upright orientation."""
    import av

    from streamloader.media.video.indexer import index_video

    orientation = index_video(str(path)).orientation
    with av.open(str(path)) as container:
        frames = [orientation.apply_to_image(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.stack(frames)


# --- the readers -----------------------------------------------------------------------------------------------------


def _evaluate_reader(reader: str, folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (clip, result) for all clips, and start another process whenever one dies."""
    remaining = list(names)
    while remaining:
        command = [sys.executable, "-m", "benchmarks.exact", "--ask", reader, str(folder), *remaining]
        with (
            tempfile.TemporaryFile("w+") as error_output,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=error_output, text=True) as process,
        ):
            assert process.stdout is not None
            watchdog = _Watchdog(process)
            for line in process.stdout:
                if line.startswith("{"):
                    watchdog.restart()
                    yield remaining.pop(0), json.loads(line)
            watchdog.stop()
            process.wait()
        if remaining and (process.returncode or watchdog.expired):
            reason = "hung" if watchdog.expired else f"died of signal {-process.returncode}"
            if process.returncode > 0 and not watchdog.expired:
                error_output.seek(0)
                raise RuntimeError(f"{reader}: {error_output.read()[-2000:]}")
            print(f"{reader}: {remaining[0]}: {reason}", file=sys.stderr)
            yield remaining.pop(0), {"wrong": _REQUESTED_FRAMES, "refused": 0, "died": reason}


class _Watchdog:
    """Kills a process that prints nothing for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.expired = False
        self._timer = threading.Timer(_CLIP_TIMEOUT_S, self._expire)
        self._timer.start()

    def restart(self) -> None:
        """Restart the timeout."""
        self._timer.cancel()
        self._timer = threading.Timer(_CLIP_TIMEOUT_S, self._expire)
        self._timer.start()

    def stop(self) -> None:
        """Stop watching the process."""
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._process.kill()


def evaluate_clip(reader: str, home: Path) -> dict[str, Any]:
    """Read frames of one clip with one reader, and count the wrong ones."""
    truth = np.load(home / "truth.npy")
    coarse = np.stack([_block_means(image) for image in truth])
    numbers = [random.Random(number).randrange(len(truth)) for number in range(_REQUESTED_FRAMES)]
    wrong = refused = 0
    try:
        clip = _open_clip(reader, (home / "path").read_text())
    except Exception as error:  # noqa: BLE001 - any error of a reader is a result
        print(f"{reader}: {home.name}: {error}", file=sys.stderr)
        return {"wrong": _REQUESTED_FRAMES, "refused": _REQUESTED_FRAMES, "died": "", "error": str(error)[:200]}
    message = ""
    for number in numbers:
        try:
            image = clip.get([number])[0]
        except Exception as error:  # noqa: BLE001 - any error of a reader is a result
            wrong, refused, message = wrong + 1, refused + 1, str(error)[:200]
            continue
        wrong += not _is_correct(image, number, truth, coarse)
    clip.close()
    return {"wrong": wrong, "refused": refused, "died": "", "error": message}


def _open_clip(reader: str, path: str) -> Any:
    kind, options = READERS[reader]
    if kind == "archive":
        return _OneVideo(path)
    return importlib.import_module("benchmarks.peers.random_readers").READERS[kind](path, **options)


class _OneVideo:
    """An archive of one clip, in chunks with a few key frames each."""

    def __init__(self, path: str) -> None:
        from streamloader.archive.archive import Archive

        self._folder = tempfile.TemporaryDirectory()
        self._archive = Archive.create(self._folder.name)
        self._archive.add(path, chunk_frames=15, jobs=0)

    def get(self, numbers: list[int]) -> Any:
        """Return the frames with these numbers."""
        return self._archive[numbers].numpy()

    def close(self) -> None:
        """Close and remove the archive."""
        self._archive.close()
        self._folder.cleanup()


def _is_correct(image: Any, number: int, truth: Any, coarse: Any) -> bool:
    if image.shape != truth.shape[1:]:
        return False
    if np.array_equal(image, truth[number]):
        return True
    differences = np.abs(coarse - _block_means(image)).mean((1, 2, 3))
    return bool(differences[number] <= differences.min() and differences[number] < _MAX_DIFFERENCE)


def _block_means(image: Any) -> Any:
    height, width = (size // _BLOCK_PX * _BLOCK_PX for size in image.shape[:2])
    blocks = image[:height, :width].reshape(height // _BLOCK_PX, _BLOCK_PX, width // _BLOCK_PX, _BLOCK_PX, 3)
    return blocks.mean((1, 3))


def main() -> None:
    """Run the command line: test all readers and print the table. With ``--ask`` (internal), test one reader."""
    if sys.argv[1:2] == ["--ask"]:
        reader, folder, *names = sys.argv[2:]
        for name in names:
            print(json.dumps(evaluate_clip(reader, Path(folder) / name)), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every ninth clip: shows that it works")
    parser.add_argument("--json", metavar="FILE", help="write all results to FILE")
    arguments = parser.parse_args()
    exactness = question(arguments.quick)
    start = time.perf_counter()
    results = exactness.run()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(exactness.render(results))
    print(f"({time.perf_counter() - start:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
