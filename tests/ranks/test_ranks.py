from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import UsageError
from onnxdecomp.ranks.evbmf import evbmf
from onnxdecomp.ranks.rounding import round_to_multiple
from onnxdecomp.ranks.spec import RankSpec, check, choose, parse
from onnxdecomp.runtime.providers import quantum
from tests.builders.layers import conv_layer, error_of, linear_layer


def spectrum(rows: int, cols: int, rank: int, noise: float, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))
    values: Array = scipy.linalg.svdvals(signal + noise * rng.standard_normal((rows, cols)))
    return values


@pytest.mark.parametrize(("rows", "cols", "rank"), [(100, 300, 7), (300, 100, 7), (64, 64, 5), (80, 900, 20)])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.1, 0.5])
def test_evbmf_finds_planted_ranks(rows: int, cols: int, rank: int, noise: float) -> None:
    values = spectrum(rows, cols, rank, noise)
    assert evbmf(values, rows, cols) == rank
    assert evbmf(values * 1e-20, rows, cols) == rank
    if noise:
        assert evbmf(values, cols, rows, variance=noise**2) == rank


@pytest.mark.parametrize("shape", [(50, 60), (30, 400), (1, 9), (128, 128)])
@pytest.mark.parametrize("seed", range(5))
def test_evbmf_sees_nothing_in_noise(shape: tuple[int, int], seed: int) -> None:
    assert evbmf(spectrum(*shape, 0, 1.0, seed), *shape) == 0


def test_evbmf_threshold_is_the_published_one() -> None:
    # A single component against known noise: kept exactly above sigma * sqrt(M x), x = (1 + t)(1 + a/t).
    rows, cols, variance = 40, 160, 0.3
    alpha, tau = 0.25, 2.5129 * math.sqrt(0.25)
    limit = math.sqrt(variance * cols * (1 + tau) * (1 + alpha / tau))
    values = np.zeros(rows)
    for factor, rank in ((0.999, 0), (1.001, 1)):
        values[0] = limit * factor
        assert evbmf(values, rows, cols, variance) == rank
    # It lies above the edge of the noise's spectrum (Marchenko and Pastur): sqrt(M) + sqrt(L).
    assert limit > math.sqrt(variance) * (math.sqrt(rows) + math.sqrt(cols))


def test_evbmf_wants_the_whole_spectrum() -> None:
    with pytest.raises(ValueError, match="give all 4"):
        evbmf(np.ones(3), 4, 5)
    assert evbmf(np.zeros(4), 4, 5) == 0


@given(rank=st.integers(1, 600), multiple=st.integers(1, 64), full=st.integers(1, 600), up=st.booleans())
def test_round_to_multiple(rank: int, multiple: int, full: int, up: bool) -> None:
    rank = min(rank, full)
    rounded = round_to_multiple(rank, multiple, full, up=up)
    assert 1 <= rounded <= full
    assert rounded == full or rounded % multiple == 0
    if rank == full:
        assert rounded == full
    elif rounded < full:
        assert rounded == multiple or 2 * abs(rounded - rank) <= multiple or up
        assert not up or rank <= rounded < rank + multiple


def test_quantum_is_a_block_of_channels() -> None:
    assert quantum("cpu") in (8, 16)
    assert quantum("cuda") == 8


SPECS = st.one_of(
    st.lists(st.integers(1, 999), min_size=1, max_size=4).map(lambda r: RankSpec("ranks", tuple(r))),
    st.builds(
        RankSpec,
        st.sampled_from(["fraction", "energy", "error"]),
        amount=st.floats(0, 1, exclude_min=True),
    ),
    st.just(RankSpec("evbmf")),
)


@given(spec=SPECS)
def test_parse_round_trips(spec: RankSpec) -> None:
    assert parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["16", "16,32", "0.5", "1.0", "energy=0.95", "error=0.05", "evbmf"])
def test_documented_forms_round_trip(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-3",
        "16,0",
        "1.5",
        "0.0",
        "-0.5",
        "nan",
        "energy=nan",
        "error=inf",
        "energy=",
        "energy",
        "",
        "16,",
        "0.5,0.5",
        "error=-0.1",
        "rank=3",
        "abc",
        "evbmf=2",
        "1e400",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rank"):
        parse(text)


CONV = conv_layer(24, 20, (3, 3))
LINEAR = linear_layer(32, 48)


def test_choose_given_ranks() -> None:
    svd, tucker, tt = get("svd"), get("tucker"), get("tt")
    assert choose(tucker, CONV, parse("7,9")) == (7, 9)
    assert choose(tucker, CONV, parse("22")) == (22, 20)
    assert choose(tucker, CONV, parse("25")) == "rank 25 is above the full ranks 24,20"
    assert choose(tucker, CONV, parse("7,21")) == "rank 21 is above the full rank 20"
    assert choose(svd, LINEAR, parse("33")) == "rank 33 is above the full rank 32"
    assert choose(svd, LINEAR, parse("7,9")) == "2 ranks were given and this layer has 1"
    assert choose(tucker, LINEAR, parse("7")) == "on such a layer it is svd: use that"
    assert choose(tt, LINEAR, parse("7")) == (7,)
    assert choose(svd, LINEAR, parse("13"), multiple=8) == (16,)
    with pytest.raises(UsageError, match="--rank-multiple 0"):
        choose(svd, LINEAR, parse("13"), multiple=0)


def test_check_counts_ranks() -> None:
    check(get("tucker"), parse("7,9"))
    check(get("tt"), parse("7,9,3"))
    check(get("svd"), parse("0.5"))
    with pytest.raises(UsageError, match="takes one number or 2"):
        check(get("tucker"), parse("7,9,3"))
    with pytest.raises(UsageError, match="--rank 7,9"):
        check(get("svd"), parse("7,9"))


@pytest.mark.parametrize("name", ["svd", "tucker", "cp", "tt"])
def test_choose_rules(name: str) -> None:
    method = get(name)
    full = method.full_ranks(CONV)
    assert choose(method, CONV, parse("1.0"), multiple=16) == full
    assert choose(method, CONV, parse("0.5")) == method.fraction_ranks(CONV, 0.5)
    ranks = choose(method, CONV, parse("error=0.4"), multiple=4)
    assert not isinstance(ranks, str)
    assert all(r % 4 == 0 or r == f for r, f in zip(ranks, full, strict=True))
    assert error_of(method, CONV, ranks) <= 0.4
    some = [choose(method, CONV, RankSpec("energy", amount=e)) for e in (0.3, 0.6, 0.9)]
    assert some == sorted(some, key=lambda r: r[0])
    assert some[0] != some[2]


@settings(max_examples=20, deadline=None)
@given(energy=st.floats(0.05, 1.0))
def test_energy_keeps_that_energy(energy: float) -> None:
    svd = get("svd")
    ranks = choose(svd, LINEAR, RankSpec("energy", amount=energy))
    assert not isinstance(ranks, str)
    assert 1 - error_of(svd, LINEAR, ranks) ** 2 >= energy - 1e-6
    if ranks[0] > 1:
        assert 1 - error_of(svd, LINEAR, (ranks[0] - 1,)) ** 2 < energy


@pytest.mark.parametrize("groups", [1, 2])
def test_evbmf_of_layers(groups: int) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((groups, 60, 6)), rng.standard_normal((groups, 6, 50))
    core = np.einsum("gar,grb->gab", left, right)[..., None] * rng.standard_normal(3)
    weight = (core + 0.3 * rng.standard_normal(core.shape)).reshape(groups * 60, 50, 3).astype(np.float32)
    layer = conv_layer(groups * 60, groups * 50, (3,), groups=groups, weight=weight)
    assert choose(get("tucker"), layer, parse("evbmf")) == (6, 6)
    assert choose(get("tt"), layer, parse("evbmf")) == (6, 6)
    assert choose(get("cp"), layer, parse("evbmf")) == (6,)
    noise = linear_layer(40, 60)
    assert choose(get("svd"), noise, parse("evbmf")) == (1,)


@pytest.mark.parametrize("name", ["btt", "tproduct", "kronecker", "svd"])
def test_evbmf_of_methods_that_cut_the_matrix(name: str) -> None:
    layer, method = linear_layer(256, 192), get(name)
    planted = method.assemble(layer, method.fit(layer, (4,))).dense()
    noise = np.random.default_rng(1).standard_normal(planted.shape, dtype=np.float32)
    noisy = replace(layer, weight=planted / planted.std() + 0.2 * noise)
    assert choose(method, noisy, parse("evbmf")) == (4,)
