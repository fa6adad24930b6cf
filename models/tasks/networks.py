"""The networks, in PyTorch; each says what its inputs and outputs are."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.tasks.data import BINS, CONTEXT, LENGTH, TOKENS, WORDS


class Upscaler(nn.Module):  # type: ignore[misc]
    """A picture [N, 1, H, W] to one of twice the height and width: a residual to the bilinear one."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        inner = [layer for _ in range(3) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *inner, nn.Conv2d(width, 4, 3, padding=1)
        )

    def forward(self, small: Any) -> Any:
        plain = functional.interpolate(small, scale_factor=2.0, mode="bilinear")
        return plain + functional.pixel_shuffle(self.body(small), 2)


class Detector(nn.Module):  # type: ignore[misc]
    """A picture [N, 1, 32, 32] to scores [N, 11, 8, 8]: which digit is in each cell; the last is none."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 64, 64)
        layers: list[Any] = []
        for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 2 if k in (1, 2) else 1
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 11, 1))

    def forward(self, image: Any) -> Any:
        return self.body(image)


class Reader(nn.Module):  # type: ignore[misc]
    """A line [N, 1, 8, 48] to scores [N, 24, 11] for each second column: a digit, or the last, a blank."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.memory = nn.LSTM(128, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 11)

    def forward(self, line: Any) -> Any:
        seen = self.eyes(line).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.memory(seen)[0])


class Enhancer(nn.Module):  # type: ignore[misc]
    """Log spectra [N, T, 65] in noise to log spectra without it: a mask by recurrent layers."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.before = nn.Linear(BINS, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.after = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, BINS))

    def forward(self, spectra: Any) -> Any:
        states = self.memory(functional.relu(self.before(spectra)))[0]
        return spectra * torch.sigmoid(self.after(states))


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        q, k, v = (
            each(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / (q.shape[-1] ** 0.5)
        if self.causal:
            hidden = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -1e4)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.relu(self.up(self.norm2(x))))


class Encoder(nn.Module):  # type: ignore[misc]
    """Words [N, 16] to a direction [N, 64] of length 1: sentences of one topic lie together."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.Sequential(*(_Block(width, 4, causal=False) for _ in range(2)))

    def forward(self, input_ids: Any) -> Any:
        states = self.blocks(self.words(input_ids) + self.places)
        return functional.normalize(states.mean(1), dim=1)


class Decoder(nn.Module):  # type: ignore[misc]
    """Characters [N, 48] to logits [N, 48, 96] of the next of each."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(TOKENS, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(_Block(width, 4, causal=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS)

    def forward(self, input_ids: Any) -> Any:
        return self.head(self.norm(self.blocks(self.words(input_ids) + self.places)))
