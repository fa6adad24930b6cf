"""Moments: sums over rows of a layer's input and wanted output, from which every loss can be computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.tensor.blas_threads import threads_for
from onnxdecomp.tensor.device_product import inner

_COPIES = 12
"""How many times the moments are held at once, as measured (7 to 14)."""

_ROWS = 32
"""Of a matrix of sums, moved to another origin at once."""

_OUTPUTS = 4096
"""Of a layer, whose energies are computed at once."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n rows x [D] of the input and y [T/g] of the wanted output, each group for itself.

    Attributes:
        count: n, the same for all groups.
        xx: [g, D, D], the sum of x xT; [g, 0, 0] where it was not asked for.
        yx: [g, T/g, D], the sum of y xT.
        x: [g, D], the sum of x.
        y: [T], the sum of y.
        yy: [T], the sum of y².
    """

    count: int
    xx: Array
    yx: Array
    x: Array
    y: Array
    yy: Array

    @property
    def usable(self) -> bool:
        """Whether there were rows, and they were finite, and what the layer made of them."""
        return self.count > 0 and self.finite

    @property
    def finite(self) -> bool:
        """Whether the rows were finite, and what the layer made of them."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = [self.x.sum(), self.y.sum(), self.yy.sum(), np.einsum("gdd->", self.xx), self.yx.sum()]
        return bool(np.isfinite(sums).all())

    def of_layer(self, weight: Array, bias: Array | None) -> Moments:
        """The same rows where a weight [g, T/g, D] and a bias [T] make what is wanted of them."""
        return Moments(self.count, self.xx, self.xx, self.x, self.x.reshape(-1), self.yy).through(
            weight, bias, self.xx
        )

    def through(self, weight: Array, bias: Array | None, second: Array) -> Moments:
        """The same rows where what a weight [g, T/g, D] and a bias [T] make of the wanted z is wanted.

        `second` is the sum of z zT, [g, D, D].
        """
        weight = weight.astype(np.float64)
        z = self.y.reshape(len(weight), -1)
        yx, y = weight @ self.yx, np.einsum("gtd,gd->gt", weight, z)
        yy = np.zeros(y.shape)
        for rows in _parts(weight.shape[1], _OUTPUTS):
            own = yx[:, rows] if second is self.yx else weight[:, rows] @ second
            yy[:, rows] = np.einsum("gtd,gtd->gt", own, weight[:, rows])
        if bias is not None:
            own = bias.astype(np.float64).reshape(y.shape)
            yx += own[:, :, None] * self.x[:, None, :]
            yy += 2 * own * y + self.count * own**2
            y = y + self.count * own
        return Moments(self.count, self.xx, yx, self.x, y.reshape(-1), yy.reshape(-1))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.xx + other.xx,
            self.yx + other.yx,
            self.x + other.x,
            self.y + other.y,
            self.yy + other.yy,
        )


def merged(train: Moments, held_out: Moments | None) -> Moments:
    """The moments of all rows, where some may have been held out."""
    return train if held_out is None else train + held_out


def features(layer: Layer) -> int:
    """D: the length of a row of one group."""
    return int(layer.weight.size) // (layer.outputs)


def needed(layer: Layer) -> int:
    """Bytes that a fit to the layer's moments takes, about.

    There are moments of rows fitted to, of held-out ones and of both, problems and their solutions.
    """
    d = features(layer)
    return _COPIES * 8 * d * (layer.groups * d + layer.outputs)


@dataclass(eq=False)
class Gatherer:
    """Adds rows up in place: memory is that of the moments, however many rows there are.

    Without `second` the sum of x xT is left out. Products are computed on torch's `device`, see `inner`.
    """

    groups: int
    outputs: int
    features: int
    second: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        g, d, t = self.groups, self.features, self.outputs
        self._count = 0
        self._xx = np.zeros((g, d, d) if self.second else (g, 0, 0))
        self._yx = np.zeros((g, t // g, d))
        self._x, self._y, self._yy = np.zeros((g, d)), np.zeros(t), np.zeros(t)
        # Sums are taken around the first rows' mean: products in float32 drown a variance far below it.
        self._origin: tuple[Array, Array] | None = None

    def add(self, rows: Array, wanted: Array) -> None:
        """Rows [g, n, D] in float32 or float64 and what the layer should make of them, [n, T]."""
        g, n, _ = rows.shape
        if n == 0:
            return
        if self._origin is None:
            means = rows.mean(1, dtype=np.float64), wanted.mean(0, dtype=np.float64)
            self._origin = means[0].astype(rows.dtype), means[1].astype(wanted.dtype)
        at_x, at_y = self._origin
        self._count += n
        wanted = wanted - at_y
        for group in range(g):
            x = rows[group] - at_x[group]
            y = wanted[:, group * (self.outputs // g) : (group + 1) * (self.outputs // g)]
            with threads_for(self.features):
                if self.second:
                    self._xx[group] += inner(x, x, self.device)
                self._yx[group] += inner(y, x, self.device)
            # As exact as the products above: around the mean, in the rows' own type within a batch.
            self._x[group] += np.ones(n, x.dtype) @ x
        self._y += wanted.sum(0, dtype=np.float64)
        self._yy += np.square(wanted, dtype=np.float64).sum(0)

    def moments(self) -> Moments:
        """What was gathered so far; not to be added to any more."""
        if self._origin is not None:
            self._around_zero(self._origin[0].astype(np.float64), self._origin[1].astype(np.float64))
            self._origin = None
        return Moments(self._count, self._xx, self._yx, self._x, self._y, self._yy)

    def _around_zero(self, at_x: Array, at_y: Array) -> None:
        """The sums of x + at_x and y + at_y, in place and some rows at a time: they may be large."""
        n = self._count
        self._yy += 2 * at_y * self._y + n * at_y**2
        outputs, means = self._y.reshape(self.groups, -1), at_y.reshape(self.groups, -1)
        for group, a in enumerate(at_x):
            x = self._x[group].copy()
            total = x + n * a
            for rows in _parts(self.features if self.second else 0):
                self._xx[group, rows] += x[rows, None] * a + a[rows, None] * total
            for rows in _parts(len(means[group])):
                self._yx[group, rows] += outputs[group, rows, None] * a + means[group, rows, None] * total
            self._x[group] = total
        self._y += n * at_y


def _parts(count: int, step: int = _ROWS) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))
