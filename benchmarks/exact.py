"""Who delivers the frames that were asked for? Every kind of clip of the tests, 60 frames each, by number, at random.

``python -m benchmarks.exact [--quick] [--json FILE]``

What is right is a linear decode with PyAV, upright. A frame is wrong if it looks more like another frame of the clip
than like the one asked for (all look different), has another shape, or does not come at all. The readers run each in a
process of its own, which is begun anew behind a clip that kills it or takes too long.
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

from benchmarks.harness import ROOT, machine

_ASKED: Final = 60
_TIMEOUT: Final = 60.0  # seconds for one clip
_BLOCK: Final = 4  # pixels: frames are compared by means of such squares, to which other scalers matter little
_SAME: Final = 12.0  # levels of 255, mean difference of a frame from itself in another decoder's conversion, at most

READERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "streamloader": ("archive", {}),
    "PyAV with an index": ("pyav", {}),
    "torchcodec exact": ("torchcodec", {}),
    "torchcodec approximate": ("torchcodec", {"mode": "approximate"}),
    "decord": ("decord", {}),
    "OpenCV": ("opencv", {}),
}


_NOTE: Final = (
    f"Of {_ASKED} frames that were asked for at random, one by one, how many were not those of a linear decode: other "
    "frames of the clip, turned or of another shape, or none at all (in brackets: how many of these calls raised an "
    "error, or the opening did). Readers with their default settings. The clips are those of the project's tests: 40 "
    "small frames that all look different, of the kind that their names say."
)


@dataclasses.dataclass(frozen=True)
class ExactQuestion:
    """The question about exactness: its table has a row for each clip and a column for each reader."""

    name: str = "exact"
    title: str = "Exactness"
    quick: bool = False

    def run(self) -> dict[str, Any]:
        """Ask everybody; return a plain dictionary of everything that was found."""
        with tempfile.TemporaryDirectory() as folder:
            names = list(_make(Path(folder), quick=self.quick))
            found = {reader: dict(_ask(reader, Path(folder), names)) for reader in READERS}
        return {"question": self.name, "machine": machine(), "rounds": 1, "clips": names, "found": found}

    def render(self, found: dict[str, Any]) -> str:
        """Return the table as Markdown."""
        lines = [
            "### Wrong frames, random access by number",
            "",
            _NOTE,
            "",
            "| clip | " + " | ".join(READERS) + " |",
            "| --- |" + " ---: |" * len(READERS),
        ]
        clips = found["clips"]
        for clip in clips:
            cells = [_cell(found["found"][reader][clip]) for reader in READERS]
            lines.append(f"| {clip} | " + " | ".join(cells) + " |")
        sums = [sum(found["found"][reader][clip]["wrong"] for clip in clips) for reader in READERS]
        spoilt = [sum(found["found"][reader][clip]["wrong"] > 0 for clip in clips) for reader in READERS]
        asked = _ASKED * len(clips)
        lines.append(f"| **wrong of {asked:,}** | " + " | ".join(f"**{total:,}**" for total in sums) + " |")
        lines.append(f"| clips with wrong frames, of {len(clips)} | " + " | ".join(map(str, spoilt)) + " |")
        return "\n".join(lines)


def _cell(result: dict[str, Any]) -> str:
    if result["died"]:
        return f"{result['wrong']} ({result['died']})"
    return f"{result['wrong']} ({result['refused']})" if result["refused"] else str(result["wrong"])


def question(quick: bool) -> ExactQuestion:
    """Describe the question."""
    return ExactQuestion(quick=quick)


# --- the clips -------------------------------------------------------------------------------------------------------


def variants() -> dict[str, Callable[[Path], Path]]:
    """Return name -> what makes the clip in a folder: those of the tests, and more pairs of codec and container."""
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


def _make(folder: Path, *, quick: bool) -> Iterator[str]:
    """Make the clips and their truth in `folder`; yield the name of each as it is there."""
    for name, make in list(variants().items())[:: 9 if quick else 1]:
        home = folder / name
        home.mkdir()
        (home / "path").write_text(str(make(home)))
        np.save(home / "truth.npy", _truth(Path((home / "path").read_text())))
        yield name


def _truth(path: Path) -> Any:
    """Return all frames (n, H, W, 3) of a linear decode, the right way up."""
    import av

    from streamloader.media.video.indexer import index_video

    turn = index_video(str(path)).turn
    with av.open(str(path)) as container:
        frames = [turn.view(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.stack(frames)


# --- the readers -----------------------------------------------------------------------------------------------------


def _ask(reader: str, folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (clip, what came of it) for all clips, from as many processes as it takes."""
    left = list(names)
    while left:
        command = [sys.executable, "-m", "benchmarks.exact", "--ask", reader, str(folder), *left]
        with (
            tempfile.TemporaryFile("w+") as complaints,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True) as process,
        ):
            assert process.stdout is not None
            timer = _Alarm(process)
            for line in process.stdout:
                if line.startswith("{"):
                    timer.again()
                    yield left.pop(0), json.loads(line)
            timer.stop()
            process.wait()
        if left and (process.returncode or timer.rang):
            why = "hung" if timer.rang else f"died of signal {-process.returncode}"
            if process.returncode > 0 and not timer.rang:
                complaints.seek(0)
                raise RuntimeError(f"{reader}: {complaints.read()[-2000:]}")
            print(f"{reader}: {left[0]}: {why}", file=sys.stderr)
            yield left.pop(0), {"wrong": _ASKED, "refused": 0, "died": why}


class _Alarm:
    """Kills a process that says nothing for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._new = process, threading.Timer
        self.rang = False
        self._timer = self._new(_TIMEOUT, self._ring)
        self._timer.start()

    def again(self) -> None:
        """Wait anew."""
        self._timer.cancel()
        self._timer = self._new(_TIMEOUT, self._ring)
        self._timer.start()

    def stop(self) -> None:
        """Do not kill it."""
        self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self._process.kill()


def ask(reader: str, home: Path) -> dict[str, Any]:
    """Ask one reader for frames of one clip, and judge what comes."""
    truth = np.load(home / "truth.npy")
    coarse = np.stack([_coarse(image) for image in truth])
    numbers = [random.Random(number).randrange(len(truth)) for number in range(_ASKED)]
    wrong = refused = 0
    try:
        opened = _open(reader, (home / "path").read_text())
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is what came of it
        print(f"{reader}: {home.name}: {error}", file=sys.stderr)
        return {"wrong": _ASKED, "refused": _ASKED, "died": "", "error": str(error)[:200]}
    why = ""
    for number in numbers:
        try:
            image = opened.get([number])[0]
        except Exception as error:  # noqa: BLE001 - the same
            wrong, refused, why = wrong + 1, refused + 1, str(error)[:200]
            continue
        wrong += not _right(image, number, truth, coarse)
    opened.close()
    return {"wrong": wrong, "refused": refused, "died": "", "error": why}


def _open(reader: str, path: str) -> Any:
    kind, options = READERS[reader]
    if kind == "archive":
        return _OneVideo(path)
    return importlib.import_module("benchmarks.peers.random_readers").READERS[kind](path, **options)


class _OneVideo:
    """An archive of one clip, in chunks of a few key frames each."""

    def __init__(self, path: str) -> None:
        from streamloader.archive.archive import Archive

        self._folder = tempfile.TemporaryDirectory()
        self._archive = Archive.create(self._folder.name)
        self._archive.add(path, chunk_frames=15, jobs=0)

    def get(self, numbers: list[int]) -> Any:
        """Return a frame."""
        return self._archive[numbers].numpy()

    def close(self) -> None:
        """Remove it."""
        self._archive.close()
        self._folder.cleanup()


def _right(image: Any, number: int, truth: Any, coarse: Any) -> bool:
    if image.shape != truth.shape[1:]:
        return False
    if np.array_equal(image, truth[number]):
        return True
    apart = np.abs(coarse - _coarse(image)).mean((1, 2, 3))
    return bool(apart[number] <= apart.min() and apart[number] < _SAME)


def _coarse(image: Any) -> Any:
    height, width = (size // _BLOCK * _BLOCK for size in image.shape[:2])
    blocks = image[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3)
    return blocks.mean((1, 3))


def main() -> None:
    """The command line: ask everybody and print the table; or, for itself, ask one reader."""
    if sys.argv[1:2] == ["--ask"]:
        reader, folder, *names = sys.argv[2:]
        for name in names:
            print(json.dumps(ask(reader, Path(folder) / name)), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every ninth clip: shows that it works")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found")
    chosen = parser.parse_args()
    asked = question(chosen.quick)
    begin = time.perf_counter()
    found = asked.run()
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found, indent=1))
    print(asked.render(found))
    print(f"({time.perf_counter() - begin:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
