"""A small recurrent model that predicts the next frame, a typical user of coherent batches."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NextFrame", "State"]

State = tuple[torch.Tensor, torch.Tensor]

_MOTION_SCALE = 0.1  # displacement for an output of 1, as a share of half the frame size
_CORRECTION_SCALE = 0.1  # change of brightness for an output of 1, as a share of full brightness


class NextFrame(nn.Module):
    """A convolutional GRU that reads one frame at a time and predicts the frame after it.

    The prediction is the last frame, warped by a motion field and corrected. One frame does not show motion, so the
    motion must come from the state. The state, which is the hidden map and the last frame, is carried from batch to
    batch, and `keep` clears it where a stream starts.

    Args:
        size: Height and width of the frames in pixels, multiples of `patch`.
        hidden: Number of channels of the hidden map.
        patch: Side in pixels of the patch that becomes one position of the map.
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

    def initial_state(self, lanes: int) -> State:
        """Return the initial state."""
        height, width = self.size
        hidden = torch.zeros(lanes, self.hidden, height // self.patch, width // self.patch)
        return hidden, torch.zeros(lanes, 3, height, width)

    def forward(
        self, frames: torch.Tensor, keep: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Predict every frame from the frames before it.

        Args:
            frames: Frames in 0..1, float (B, T, 3, H, W).
            keep: 0.0 on the first step of a stream and 1.0 elsewhere, float (B, T).
            state: State returned for the previous batch.

        Returns:
            The predictions, the frames just before them (both shaped like `frames`), and the state for the next batch.
        """
        lanes, window = frames.shape[:2]
        hidden, last = state
        before = torch.cat([last[:, None], frames[:, :-1]], 1) * keep[:, :, None, None, None]
        encoded = self.encode(4 * (before - 0.5 * keep[:, :, None, None, None]).flatten(0, 1))
        inputs = self.from_input(encoded).unflatten(0, (lanes, window))
        states = []
        for step in range(window):
            hidden = hidden * keep[:, step, None, None, None]  # clear the state where a stream starts
            for_gates, for_candidate = inputs[:, step].split([2 * self.hidden, self.hidden], 1)
            update, clear = torch.sigmoid(for_gates + self.to_gates(hidden)).chunk(2, 1)
            candidate = torch.tanh(for_candidate + self.to_candidate(clear * hidden))
            hidden = hidden + update * (candidate - hidden)
            states.append(hidden)
        decoded = self.decode(torch.cat([torch.stack(states, 1).flatten(0, 1), encoded], 1))
        motion, correction = decoded.split([2, 3 * self.patch**2], 1)
        predicted = self._warp(before.flatten(0, 1), motion) + _CORRECTION_SCALE * functional.pixel_shuffle(
            correction, self.patch
        )
        return predicted.unflatten(0, (lanes, window)), before, (hidden.detach(), frames[:, -1].clone())

    def _warp(self, frames: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Warp (N, 3, H, W) frames by a coarse motion field (N, 2, H / patch, W / patch)."""
        # Origin of each pixel in the coordinates of grid_sample, in which -1 and 1 are the borders of the frame.
        identity = functional.affine_grid(torch.eye(2, 3)[None], [1, 1, *self.size], align_corners=False)
        displacement = functional.interpolate(motion, size=self.size, mode="bilinear", align_corners=False)
        grid = identity + _MOTION_SCALE * displacement.permute(0, 2, 3, 1)
        return functional.grid_sample(frames, grid, padding_mode="border", align_corners=False)
