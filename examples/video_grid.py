"""How do I look at what my videos become: a grid of rows that play side by side, and where do streams begin?

It needs the extra "demo", for the pictures. Each tile of the grid is a row of the batch. It plays one video after the
other, and has an orange border on the first steps of each. Give it videos or a folder:

    python examples/video_grid.py [VIDEOS...] [--save GRID.gif|GRID.mp4] [--sheet SHEET.png] [--show]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import streamloader as sl
from streamloader.demo.clips import fetch_clips
from streamloader.viz.contact_sheet import contact_sheet

BORDER_PX, CAPTION_PX, BORDER_STEPS = 4, 14, 8
BACKGROUND, ORANGE, GREY = (24, 26, 31), (255, 159, 28), (208, 212, 220)


def draw_steps(batch: sl.Batch, names: list[str], columns: int) -> Iterator[np.ndarray]:
    """Yield the grid (H, W, 3) of each step of a batch."""
    marks = batch.numpy()
    lanes, window, height, width, _ = marks["data"].shape
    cell_height, cell_width = height + 2 * BORDER_PX + CAPTION_PX, width + 2 * BORDER_PX
    for number in range(window):
        grid = Image.new("RGB", (columns * cell_width, math.ceil(lanes / columns) * cell_height), BACKGROUND)
        draw = ImageDraw.Draw(grid)
        for lane in range(lanes):
            if not marks["valid"][lane, number]:
                continue  # the lane has played all of its streams
            left, top = lane % columns * cell_width, lane // columns * cell_height
            step = int(marks["step"][lane, number])
            if step < BORDER_STEPS:
                colour = blend(ORANGE, BACKGROUND, step / BORDER_STEPS)
                draw.rectangle((left, top, left + cell_width - 1, top + height + 2 * BORDER_PX - 1), colour)
            tile = Image.fromarray(marks["data"][lane, number])
            grid.paste(tile, (left + BORDER_PX, top + BORDER_PX))
            caption = f"{names[marks['stream'][lane, number]]}  {marks['time'][lane, number]:.1f} s"
            at = (left + BORDER_PX, top + height + 2 * BORDER_PX)
            draw.text(at, caption, ORANGE if step < BORDER_STEPS else GREY, font_size=10)
        yield np.asarray(grid)


def blend(first: tuple[int, ...], second: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Return a colour between two others."""
    return tuple(round(a + share * (b - a)) for a, b in zip(first, second, strict=True))


def save_gif(grids: list[np.ndarray], path: Path, rate: float) -> None:
    """Save an animation, with one palette for all of its pictures, so that colours do not flicker."""
    palette = Image.fromarray(np.concatenate(grids[:: max(1, len(grids) // 8)])).quantize(255)
    pictures = [Image.fromarray(grid).quantize(palette=palette, dither=Image.Dither.NONE) for grid in grids]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0)


def save_mp4(grids: list[np.ndarray], path: Path, rate: float) -> None:
    """Save an H.264 video, whose sides have even numbers of pixels."""
    import av

    height, width = (size // 2 * 2 for size in grids[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", Fraction(rate).limit_denominator(1000), options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for grid in grids:
            picture = np.ascontiguousarray(grid[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def show(grids: Iterable[np.ndarray], rate: float) -> None:
    """Play grids in a window until it is closed, if there is a screen."""
    try:
        import tkinter as tk
    except ImportError as error:
        print(f"no window can be opened by this Python: {error}")
        return
    try:
        window = tk.Tk()
    except tk.TclError as error:
        print(f"no window can be opened here: {error}")
        return
    window.title("video grid")
    label = tk.Label(window, borderwidth=0)
    label.pack()
    remaining = iter(grids)

    def show_next() -> None:
        grid = next(remaining, None)
        if grid is None:
            window.destroy()
            return
        header = f"P6 {grid.shape[1]} {grid.shape[0]} 255 ".encode()
        label.picture = tk.PhotoImage(data=header + grid.tobytes())  # type: ignore[attr-defined]
        label.configure(image=label.picture)  # type: ignore[attr-defined]
        window.after(round(1000 / rate), show_next)

    show_next()
    window.mainloop()


def main() -> None:
    """Play, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", help="videos, patterns or folders (default: the clips of the demo)")
    parser.add_argument("--rows", type=int, default=4, help="rows of the batch")
    parser.add_argument("--size", type=int, nargs=2, default=(135, 240), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--stride", type=int, default=3, help="frames from one step to the next")
    parser.add_argument("--batches", type=int, default=12, help="batches of eight steps to be played")
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second")
    parser.add_argument("--save", type=Path, default=Path("video_grid.gif"), help=".gif or .mp4")
    parser.add_argument("--sheet", type=Path, default=Path("video_grid.png"))
    parser.add_argument("--show", action="store_true", help="open a window")
    options = parser.parse_args()
    videos = options.videos or [str(path) for path in fetch_clips().values()]

    dataset = sl.VideoStreams(videos, size=tuple(options.size), stride=options.stride)
    # With tail="cycle", rows that have played all of their videos start over, until the last one has.
    with sl.MultiStreamer(dataset, options.rows, window=8, num_workers=2, tail="cycle", layout="BTHWC") as loader:
        names = [Path(info.key).stem for info in loader.streams]
        batches = [batch for batch, _ in zip(loader, range(options.batches), strict=False)]
    columns = math.ceil(math.sqrt(options.rows))
    grids = [grid for batch in batches for grid in draw_steps(batch, names, columns)]
    starts = sum(int(batch.reset.sum()) for batch in batches)

    (save_mp4 if options.save.suffix == ".mp4" else save_gif)(grids, options.save, options.rate)
    every = max(1, len(grids) // 12)
    contact_sheet([batch.numpy() for batch in batches], names=names, every=every, height=64).save(options.sheet)
    print(f"{len(names)} streams in {options.rows} rows: {len(grids)} steps, on which {starts} streams start")
    print(f"saved {options.save} and {options.sheet}")
    if options.show:
        show(grids, options.rate)


if __name__ == "__main__":
    main()
