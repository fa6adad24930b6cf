"""Layers and channels of repeated blocks together."""

from __future__ import annotations

from dataclasses import replace

from onnxdecomp.record.families import SEVERAL, channel_families, layer_families
from onnxdecomp.record.schema.families import FamilyResult, Range
from onnxdecomp.record.schema.layers import Change, ChannelRecord, LayerRecord

KEPT = LayerRecord(
    name="",
    graph="",
    op="MatMul",
    status="kept",
    reason="better kept",
    method=None,
    options={},
    ranks=(),
    repaired=False,
    rel_error=None,
    lowering=None,
    loss=None,
    params=Change(100, 100),
    macs=Change(1000, 1000),
    weight=(10, 10),
    input=("N", 10),
)


def blocks(depth: int) -> list[LayerRecord]:
    """Queries and an output projection each; some of these are decomposed."""
    made = []
    for block in range(depth):
        rank = 2 + block
        svd = replace(
            KEPT,
            status="decomposed",
            reason=f"rank {rank} of block.{block}",
            method="svd",
            ranks=(rank,),
            rel_error=rank / 100,
            params=Change(100, 20 * rank),
        )
        made += [
            replace(KEPT, name=f"block.{block}/query"),
            replace(svd if block % 2 else KEPT, name=f"block.{block}/output"),
        ]
    return made


def test_few_layers_and_layers_that_are_all_different_stay_apart() -> None:
    assert layer_families(blocks(SEVERAL // 2)) is None
    different = [replace(layer, weight=(10, k)) for k, layer in enumerate(blocks(20))]
    assert layer_families(different) is None


def test_a_family_tells_what_happened_to_how_many() -> None:
    layers = [*blocks(20), replace(KEPT, name="head", macs=Change(None, None))]
    found = layer_families(layers)
    assert found is not None
    query, output, head = found
    assert (query.name, query.layers, query.params) == ("block.*/query", 20, Change(2000, 2000))
    assert (head.name, head.layers, head.macs) == ("head", 1, Change(None, None))
    ranks = [2 + block for block in range(1, 20, 2)]
    assert output.results == (
        FamilyResult(
            members=10,
            method="svd",
            ranks=(Range(3, 21),),
            left=None,
            repaired=False,
            reasons=("rank 3 to 21 of block.*",),
        ),
        FamilyResult(members=10, method=None, ranks=(), left=None, repaired=False, reasons=("better kept",)),
    )
    assert output.params == Change(2000, 1000 + 20 * sum(ranks))
    assert output.rel_error == Range(0.03, 0.21)


def test_layers_of_another_shape_or_operator_are_others() -> None:
    layers = blocks(20)
    layers[0] = replace(layers[0], op="Gemm")
    layers[2] = replace(layers[2], weight=(20, 10))
    found = layer_families(layers)
    assert found is not None
    assert [family.layers for family in found] == [1, 20, 1, 18]


def test_a_graph_of_its_own_is_part_of_the_name() -> None:
    found = layer_families([replace(layer, graph="then") for layer in blocks(20)])
    assert found is not None
    assert [family.name for family in found] == ["then/block.*/query", "then/block.*/output"]


def channel(block: int, *, cut: bool, width: int = 64) -> ChannelRecord:
    return ChannelRecord(
        name=f"block.{block}/up",
        status="cut" if cut else "kept",
        reason="",
        method="width" if cut else None,
        width=width,
        kept=8 * block + 8 if cut else width,
        producers=(f"block.{block}/up", f"block.{block}/gate"),
        readers=(f"block.{block}/down",),
        loss=0.1 * block if cut else None,
        held_out=None,
        check=None,
        params=Change(100, 50),
        macs=Change(100, 50),
    )


def test_channels_of_blocks() -> None:
    broken = [channel(100 + block, cut=False, width=1) for block in range(20)]
    channels = [channel(block, cut=block > 6) for block in range(10)]
    assert channel_families(channels[: SEVERAL // 3]) is None
    found = channel_families([*broken, *channels])
    assert found is not None
    (family,) = found
    assert (family.name, family.producers, family.readers) == (
        *("block.*/up", "block.*/{up, gate}", "block.*/down"),
    )
    cut, whole = family.results
    assert (cut.members, cut.method, cut.left) == (3, "width", (Range(64, 80),))
    assert (whole.members, whole.method, whole.left) == (7, None, None)
    assert family.macs == Change(1000, 500)
