"""The multiple of channels that kernels work in: found by timing, by kind, on a clock that has steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onnxdecomp.latency.quantum import WIDTHS, measured_quanta, quantum_of
from onnxdecomp.latency.roofline import QUANTA, Roof, Roofline
from onnxdecomp.runtime.setting import Setting
from tests.builders.fake_device import FakeDevice, install


def test_every_width_has_its_next_multiple() -> None:
    for quantum in QUANTA:
        assert {-(-width // quantum) * quantum for width in WIDTHS} <= set(WIDTHS)


@pytest.mark.parametrize("quantum", [1, *QUANTA])
def test_steps_are_found(quantum: int) -> None:
    assert quantum_of({width: -(-width // quantum) * quantum for width in WIDTHS}) == quantum


def test_what_is_slower_between_multiples_is_rounded_to_them() -> None:
    """As products are that tensor cores do not take."""
    assert quantum_of({width: width * (1 if width % 8 == 0 else 3) for width in WIDTHS}) == 8


def test_timings_of_a_card_are_noisy() -> None:
    """Convolutions in half precision on an H100, milliseconds: tiles of 64 channels."""
    ms = (191, 206, 220, 198, 195, 200, 196, 191, 197, 189, 348, 330, 338, 331, 349)
    assert quantum_of({width: own / 1e4 for width, own in zip(WIDTHS, ms, strict=True)}) == 64


def test_each_kind_has_its_own_and_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roofs = {"product": Roof(1e-5, 1 / 60e3, 8), "convolution": Roof(1e-5, 1 / 30e3, 32)}
    fake = install(monkeypatch, FakeDevice(Roofline(100.0, roofs)))  # type: ignore[arg-type]
    on = Setting("cuda")
    assert measured_quanta(on, cache=tmp_path / "timings") == {"product": 8, "convolution": 32}
    loads = fake.loads
    assert loads <= 3
    assert measured_quanta(on, cache=tmp_path / "timings") == {"product": 8, "convolution": 32}
    assert fake.loads == loads
    measured_quanta(replace(on, precision="tf32"), cache=tmp_path / "timings")
    assert fake.loads > loads
