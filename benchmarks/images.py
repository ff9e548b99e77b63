"""How fast are folders of images? 1,000 folders of 100 JPEGs of 640x480, scaled to 224x224, as coherent batches.

``python -m benchmarks.images [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.contenders import STREAMLOADER, STREAMLOADER_PLANAR, Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.image_folders import IMAGES, image_folders
from benchmarks.job import Job

_SIZE = 224
_TUNED = "tuned DataLoader"


def _tuned(name: str, label: str, decoder: str, family: str = _TUNED) -> Contender:
    options = {"decoder": decoder, "prefetch": 4, "keep_memory": True}
    return Contender(f"DataLoader/{name}", f"DataLoader tuned: {label}", "dataloader", options, family=family)


CONTENDERS = (
    _tuned("Pillow", "Pillow, draft() at 1/2 of the size", "pillow-draft"),
    _tuned("OpenCV", "OpenCV, from the full size", "opencv-image"),
    _tuned("OpenCV reduced", "OpenCV, decoded at 1/2 of the size", "opencv-reduced"),
    _tuned("simplejpeg", "the decoder and the filter of streamloader", "turbo", "same decoder"),
    STREAMLOADER,
    STREAMLOADER_PLANAR,
)
COLUMNS = (Column("steps_per_s", "images/s"), Column("cpu_ms_per_step", "CPU ms/image", 2, less_is_better=True))
_NOTE = (
    f"Coherent batches (8, 8, {_SIZE}, {_SIZE}, 3) of uint8 with a reset mask, from the same images in 2 workers. All "
    "contenders read a file at once and decode in one thread a worker. Those of DataLoader write rows into shared "
    "memory, with prefetch_factor=4, and malloc keeps their memory. The files are in the page cache."
)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    folders = tuple(image_folders(16 if quick else 1000))
    job = Job("images", (_SIZE, _SIZE, 3), paths=folders)
    playing = Table(
        "playing",
        f"{len(folders):,} folders of {IMAGES} JPEGs, 640x480 to {_SIZE}x{_SIZE}",
        _NOTE,
        job,
        "throughput",
        {"warm": 2, "batches": 12} if quick else {"warm": 8, "batches": 64},
        CONTENDERS,
        COLUMNS,
        (
            Bar("best tuned DataLoader", "streamloader", (_TUNED,), "steps_per_s", 1.5),
            Bar("DataLoader with the same decoder", "streamloader", ("same decoder",), "steps_per_s", 1.25),
        ),
    )
    starting = Table(
        "index",
        f"Start with {len(folders) * IMAGES:,} images in {len(folders):,} folders",
        "Seconds until the loader is built (all folders are listed, and the size of every file is read), and until its "
        "first batch is there.",
        job,
        "first",
        {},
        (STREAMLOADER,),
        (
            Column("created_s", "built, s", 2, less_is_better=True),
            Column("first_s", "first batch, s", 2, less_is_better=True),
        ),
        (Bar("2 s", "streamloader", (), "created_s", 2.0, at_most=True),),
    )
    return Question("images", "Images", (playing, starting))


if __name__ == "__main__":
    main(question)
