"""Names in a sentence: hundreds of layers do not flood it."""

from __future__ import annotations

import pytest

from onnxdecomp.core.names import MOST, alike, braced, in_common, some, told_together


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "n0"),
        (MOST + 1, "n0, n1, n2, n3, n4, n5, n6"),
        (MOST + 2, "n0, n1, n2, n3, n4, n5 and 2 more"),
        (2 * MOST - 1, "n0, n1, n2, n3, n4, n5 and 5 more"),
        (300, "300 of n*"),
    ],
)
def test_first_names_and_a_count(count: int, text: str) -> None:
    assert some([f"n{index}" for index in range(count)]) == text


def test_names_of_blocks_by_what_they_have_in_common() -> None:
    parts = ("self/query", "self/key", "output/dense")
    names = [f"/m/layer.{block}/attention/{part}/MatMul" for block in range(4) for part in parts]
    assert some(names) == "12 of /m/layer.*/attention/{self/query, self/key, output/dense}/MatMul"
    # Nothing in common: there is no shorter way to say it.
    assert some([letter * 3 for letter in "abcdefghijklm"]) == "aaa, bbb, ccc, ddd, eee, fff and 7 more"


def test_few_long_names_are_told_by_what_they_have_in_common() -> None:
    names = [f"/model/encoder/layer.{at}/attention/self/query/MatMul:blocks" for at in range(4)]
    assert some(names) == "4 of /model/encoder/layer.*/attention/self/query/MatMul:blocks"
    assert some(names[:2]) == ", ".join(names[:2])
    different = [f"/model/{letter * 50}/MatMul" for letter in "abcd"]
    assert some(different) == ", ".join(different)


def test_numbers_that_do_not_differ_stay() -> None:
    names = ["resnet50/layer.1/conv1", "resnet50/layer.12/conv1", "resnet50/layer.2/conv2"]
    assert alike(names) == [[0, 1, 2]]
    assert in_common(names) == "resnet50/layer.*/conv*"
    assert in_common(names[:2]) == "resnet50/layer.*/conv1"
    assert alike(names, [1, 2, 1]) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a/b"], "a/b"),
        (["MatMul", "Gemm"], "MatMul, Gemm"),
        (["l.*/self/MatMul", "l.*/self/MatMul_1"], "l.*/self/{MatMul, MatMul_1}"),
        (["a/MatMul", "b/c/MatMul"], "{a, b/c}/MatMul"),
    ],
)
def test_what_names_begin_and_end_with_is_told_once(names: list[str], text: str) -> None:
    assert braced(names) == text


def test_sentences_that_differ_in_numbers_alone() -> None:
    told = [
        *(
            "svd at rank 12 needs 1.02x the MACs of layer.3/q",
            "svd at rank 3 needs 1.1x the MACs of layer.4/q",
        ),
        *("better kept", "svd at rank 7 needs 1.02x the MACs of layer.5/q"),
    ]
    assert told_together(told) == [
        "svd at rank 3 to 12 needs 1.02 to 1.1x the MACs of layer.*/q",
        "better kept",
    ]
