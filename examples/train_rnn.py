"""How do I use a fused RNN, which cannot be reset inside a window? With `switch="align"`.

A character model on text. Streams start only on window boundaries, so `reset[:, 0]` is sufficient, and `valid` masks
the padding in the loss.
"""

from __future__ import annotations

import torch
from torch.nn import functional

import streamloader as sl

verses = [f"{count} little boats went out to sea; {count - 1} came back. " * 12 for count in range(2, 34)]

with sl.MultiStreamer(sl.TextStreams.from_texts(verses), 8, 32, switch="align", layout="TBCHW") as loader:
    embed = torch.nn.Embedding(256, 32)
    rnn = torch.nn.GRU(32, 128)  # time first, like the layout
    head = torch.nn.Linear(128, 256)
    optimizer = torch.optim.Adam([*embed.parameters(), *rnn.parameters(), *head.parameters()], lr=3e-3)
    hidden = torch.zeros(1, 8, 128)
    for epoch in range(6):
        total, counted = 0.0, 0
        for batch in loader:
            text, valid = batch.data.long(), batch.valid
            hidden = hidden.detach() * batch.keep[0][None, :, None]
            output, hidden = rnn(embed(text), hidden)
            scored = valid[1:]  # each letter except the first of a window is predicted from those before it
            loss = functional.cross_entropy(head(output[:-1])[scored], text[1:][scored])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, counted = total + loss.item(), counted + 1
        print(f"epoch {epoch}: {total / counted / 0.6931:.2f} bits per letter, {counted} batches of {len(loader)}")
