"""A small recurrent model that predicts the next frame: what a loader of coherent batches is for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NextFrame", "State"]

State = tuple[torch.Tensor, torch.Tensor]

_REACH = 0.1  # of the half width of a frame that an output of 1 moves a pixel by
_CHANGE = 0.1  # of full brightness that an output of 1 adds


class NextFrame(nn.Module):
    """A convolutional GRU that sees one frame at a time and predicts the one after it.

    The prediction is the last frame, moved by a field of motion and corrected. The motion cannot be seen in one frame:
    it is in the state. That state, the hidden map and the last frame, goes from batch to batch, and `keep` clears
    it where a stream begins.

    Args:
        size: (height, width) of the frames, multiples of `patch`.
        hidden: channels of the hidden map.
        patch: pixels across of the patches that become one position of the map.
    """

    def __init__(self, size: tuple[int, int], hidden: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.size, self.hidden, self.patch = size, hidden, patch
        pixels = 3 * patch**2
        self.encode = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(pixels, hidden, 3, padding=1), nn.SiLU())
        self.from_input = nn.Conv2d(hidden, 3 * hidden, 3, padding=1)
        self.to_gates = nn.Conv2d(hidden, 2 * hidden, 3, padding=1, bias=False)
        self.to_candidate = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.decode = nn.Sequential(
            nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(2 * hidden, 2 + pixels, 3, padding=1)
        )

    def start(self, lanes: int) -> State:
        """Return the state before anything was seen."""
        height, width = self.size
        hidden = torch.zeros(lanes, self.hidden, height // self.patch, width // self.patch)
        return hidden, torch.zeros(lanes, 3, height, width)

    def forward(
        self, frames: torch.Tensor, keep: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Predict every frame from those before it.

        Args:
            frames: float (B, T, 3, H, W) in 0..1.
            keep: float (B, T): 0.0 on the first step of a stream.
            state: what the previous batch returned.

        Returns:
            the predictions and the frames just before them (both shaped as `frames`), and the state for the next batch.
        """
        lanes, window = frames.shape[:2]
        hidden, last = state
        before = torch.cat([last[:, None], frames[:, :-1]], 1) * keep[:, :, None, None, None]
        seen = self.encode(4 * (before - 0.5 * keep[:, :, None, None, None]).flatten(0, 1))
        inputs = self.from_input(seen).unflatten(0, (lanes, window))
        states = []
        for step in range(window):
            hidden = hidden * keep[:, step, None, None, None]  # a new stream begins with an empty memory
            for_gates, for_candidate = inputs[:, step].split([2 * self.hidden, self.hidden], 1)
            update, clear = torch.sigmoid(for_gates + self.to_gates(hidden)).chunk(2, 1)
            candidate = torch.tanh(for_candidate + self.to_candidate(clear * hidden))
            hidden = hidden + update * (candidate - hidden)
            states.append(hidden)
        decoded = self.decode(torch.cat([torch.stack(states, 1).flatten(0, 1), seen], 1))
        motion, correction = decoded.split([2, 3 * self.patch**2], 1)
        predicted = self._moved(before.flatten(0, 1), motion) + _CHANGE * functional.pixel_shuffle(
            correction, self.patch
        )
        return predicted.unflatten(0, (lanes, window)), before, (hidden.detach(), frames[:, -1].clone())

    def _moved(self, frames: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Move the pixels of (N, 3, H, W) frames by a coarse field of motion (N, 2, H / patch, W / patch)."""
        # Where each pixel comes from, in the coordinates of grid_sample: -1 and 1 are the borders of the frame.
        still = functional.affine_grid(torch.eye(2, 3)[None], [1, 1, *self.size], align_corners=False)
        moves = functional.interpolate(motion, size=self.size, mode="bilinear", align_corners=False)
        places = still + _REACH * moves.permute(0, 2, 3, 1)
        return functional.grid_sample(frames, places, padding_mode="border", align_corners=False)
