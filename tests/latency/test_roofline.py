"""Kernels counted in graphs and chains, and the roofline found again from the times that it made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.chain_model import chain_model
from onnxdecomp.latency.few_timings import MOST, FewTimings
from onnxdecomp.latency.kernels import Kernel, chain_kernels, demand, kernels_of
from onnxdecomp.latency.roofline import QUANTA, Roof, Roofline, fitted, padded
from tests.builders.layers import hollow_conv, hollow_linear
from tests.builders.models import thin_middle


def test_the_kernels_of_a_graph() -> None:
    """Activation functions belong to the layer before them, and what says how numbers lie is none."""
    kernels = kernels_of(thin_middle(), {"x": (2, 8, 6, 6)})
    assert [kernel.kind for kernel in kernels] == ["convolution", "convolution", "other", "product"]
    one, two, _, head = kernels
    assert one.flops == 2 * (2 * 16 * 6 * 6) * (8 * 9)
    assert one.bytes == 4 * (2 * 8 * 36 + 16 * 8 * 9 + 2 * 16 * 36)
    assert (two.inputs, two.outputs) == (16, 24)
    assert (head.flops, head.inputs, head.outputs) == (2 * 2 * 24 * 20, 24, 20)
    total = demand(kernels)
    assert total.launches == 4
    assert total.intensity == pytest.approx(total.flops / total.bytes)
    assert demand(()).intensity == 0.0


@pytest.mark.parametrize("rank", [4, 16])
def test_a_chain_has_the_kernels_of_its_graph(rank: int) -> None:
    """Two counts of the same: from the steps, and from the nodes that they become."""
    conv, linear = hollow_conv(32, 48), hollow_linear(64, 40)
    cases = [
        (outline(get("tucker"), conv, (rank, rank)), conv, (2, 32, 6, 6)),
        (outline(get("svd"), linear, (rank,)), linear, (10, 40)),
        (dense_chain(conv), conv, (2, 32, 6, 6)),
    ]
    for chain, layer, shape in cases:
        made = chain_model(chain, layer, shape)
        assert not isinstance(made, str)
        graph = kernels_of(onnx.load_model_from_string(made.model))
        own = [kernel for kernel in graph if kernel.kind != "other"]
        found = chain_kernels(chain, shape)
        assert [k.kind for k in found] == [k.kind for k in own]
        assert [k.flops for k in found] == [k.flops for k in own]
        assert [(k.inputs, k.outputs) for k in found] == [(k.inputs, k.outputs) for k in own]


def some_kernels(seed: int, count: int, step: int = 8) -> list[tuple[Kernel, ...]]:
    rng = np.random.default_rng(seed)

    def one() -> Kernel:
        inputs, outputs = (step * int(size) for size in rng.integers(1, 40, 2))
        rows = int(4 ** rng.uniform(2, 8))
        moved = 4.0 * (rows * (inputs + outputs) + inputs * outputs)
        kind = ("product", "convolution")[int(rng.integers(2))]
        return Kernel(kind, 2.0 * rows * inputs * outputs, moved, inputs, outputs)  # type: ignore[arg-type]

    return [tuple(one() for _ in range(int(rng.integers(1, 4)))) for _ in range(count)]


@given(
    seed=st.integers(0, 50),
    launch=st.floats(1, 20),
    bytes_a_us=st.floats(1e5, 3e6),
    flops_a_us=st.floats(1e6, 5e8),
)
def test_a_roofline_is_found_from_the_times_that_it_made(
    seed: int, launch: float, bytes_a_us: float, flops_a_us: float
) -> None:
    """Also where nothing is bound by one of the two; of chains that it was not fitted to."""
    roof = Roof(1 / bytes_a_us, 1 / flops_a_us)
    real = Roofline(launch, {"product": roof, "convolution": roof})
    points = [(kernels, real.us(kernels)) for kernels in some_kernels(seed, 40)]
    line = fitted(points[:30])
    errors = [abs(line.us(kernels) / us - 1) for kernels, us in points[30:]]
    assert np.median(errors) < 0.1


def test_nothing_measured_costs_nothing() -> None:
    assert fitted([]).us(some_kernels(0, 1)[0]) == 0.0


def test_tiles_are_whole() -> None:
    kernel = Kernel("product", 100.0, 1.0, 8, 12)
    assert padded(kernel, 1) == 100.0
    assert padded(kernel, 8) == pytest.approx(100 * 16 / 12)
    assert padded(Kernel("other", 100.0, 1.0, 3, 3), 8) == 100.0


@pytest.mark.parametrize("quantum", [1, *QUANTA])
def test_the_multiple_of_tiles_is_found_from_times(quantum: int) -> None:
    """Of chains whose ranks are not on it, with as much noise as timings have."""
    real = Roofline(5.0, {"product": Roof(1e-7, 1e-6, quantum), "convolution": Roof(1e-7, 1e-6, quantum)})
    rng = np.random.default_rng(quantum)
    points = [(kernels, real.us(kernels)) for kernels in some_kernels(quantum, 40, step=4)]
    noisy = [(kernels, us * (1 + 0.01 * rng.standard_normal())) for kernels, us in points]
    assert {roof.quantum for roof in fitted(noisy).roofs.values()} == {max(quantum, 1)}


@dataclass(frozen=True)
class Job:
    key: str
    group: str
    kernels: tuple[Kernel, ...]
    own: tuple[Kernel, ...]


def test_few_are_timed_and_the_others_guessed_from_them() -> None:
    """Of chains that three launches make slower than their layer none is timed, once that can be known."""
    real = Roofline(5.0, {"convolution": Roof(1e-6, 1e-7), "product": Roof(1e-6, 1e-7)})
    few = FewTimings()

    def jobs(width: int, positions: int) -> list[Job]:
        layer, shape = hollow_conv(width, width), (1, width, positions, positions)
        own = chain_kernels(dense_chain(layer), shape)
        chains = [outline(get("tucker"), layer, (rank, rank)) for rank in range(4, width, 4)]
        return [Job(f"{width} {k}", str(width), chain_kernels(c, shape), own) for k, c in enumerate(chains)]

    large, small = jobs(128, 28), jobs(16, 4)
    asked = few.worth(large)
    assert len(asked) == MOST < len(large)
    assert asked[0].kernels == large[0].kernels
    assert asked[-1].kernels == large[-1].kernels
    times = {job.key: (real.us(job.own) / 1e3, real.us(job.kernels) / real.us(job.own)) for job in asked}
    few.learn(asked, times)
    rest = [job for job in large if job.key not in times]
    guesses = [few.guess(job, [(one, times[one.key][1]) for one in asked]) for job in rest]
    truth = [real.us(job.kernels) / real.us(job.own) for job in rest]
    np.testing.assert_allclose(guesses, truth, rtol=0.1)
    few.learn(jobs(64, 14), {})
    few.points += [(job.kernels, real.us(job.kernels)) for job in jobs(32, 7)]
    few.line = fitted(few.points)
    assert few.worth(small) == []


def test_the_models_own_shapes_do_not_stay() -> None:
    """What a file declares of other sizes says nothing of these."""
    model = thin_middle()
    stale = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 16, 99, 99])
    model.graph.value_info.append(stale)
    assert kernels_of(model, {"x": (2, 8, 6, 6)}) == kernels_of(thin_middle(), {"x": (2, 8, 6, 6)})
