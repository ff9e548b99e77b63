"""How do texts become batches whose rows continue where the previous batch stopped?

27 texts, "a_0;a_1;...", "b_0;b_1;...", are streamed in 8 lanes with windows of 12 bytes. Each column of the output is a
lane, which continues its text from line to line. A ">" marks the first step of a text, where a recurrent model clears
its state.
"""

from __future__ import annotations

import streamloader as sl

NAMES = [*"abcdefghijklmnopqrstuvwxyz", "A"]


def main() -> None:
    """Print all batches of one epoch, one per line."""
    texts = ["".join(f"{name}_{number};" for number in range(9)) for name in NAMES]
    dataset = sl.TextStreams.from_texts(texts)
    with sl.MultiStreamer(dataset, batch_size=8, window=12, num_workers=2, shuffle=False) as loader:
        print(f"{len(texts)} texts in 8 lanes: {len(loader)} batches of 8 x 12 bytes\n")
        for batch in loader:
            arrays = batch.numpy()
            rows = zip(arrays["data"], arrays["valid"], arrays["reset"][:, 0], strict=True)
            cells = [(">" if starts else " ") + bytes(data[valid]).decode() for data, valid, starts in rows]
            print(" ".join(f"{cell:13}" for cell in cells).rstrip())


if __name__ == "__main__":
    main()
