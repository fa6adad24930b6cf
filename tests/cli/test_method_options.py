"""The methods' own options on the command line, in the configuration and in the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxdecomp.cli.inspect import command
from onnxdecomp.decompositions.registry import names, options
from onnxdecomp.errors import UsageError
from tests.builders.models import two_convolutions


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "net.onnx"
    path.write_bytes(two_convolutions().SerializeToString())
    return str(path)


def test_every_option_of_every_method_is_in_the_help() -> None:
    text = CliRunner().invoke(command, ["--help-all"]).output
    for method in names():
        for option in options(method):
            assert f"--{method}-{option.name.replace('_', '-')}" in text
            assert option.help, f"{method}.{option.name} has no description"


def test_an_option_reaches_the_plan(model: str) -> None:
    arguments = [model, "--method", "svd", "--svd-order", "channel-first", "--rank", "4", "--json", "-"]
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None, result.exception
    choices = {choice["layer"]: choice for choice in json.loads(result.output)["plan"]["choices"]}
    assert choices["conv2"]["options"] == {"order": "channel-first"}


def test_the_configuration_says_the_same(model: str, tmp_path: Path) -> None:
    config = tmp_path / "pipeline.toml"
    config.write_text(
        '[decompose]\nmethod = "svd"\nrank = "4"\n[decompose.options.svd]\norder = "channel-first"\n'
    )
    result = CliRunner().invoke(command, [model, "--config", str(config), "--json", "-"])
    assert result.exception is None, result.exception
    choices = {choice["layer"]: choice for choice in json.loads(result.output)["plan"]["choices"]}
    assert choices["conv2"]["options"] == {"order": "channel-first"}


def test_a_value_that_is_none(model: str) -> None:
    result = CliRunner().invoke(command, [model, "--method", "svd", "--svd-order", "sideways"])
    assert isinstance(result.exception, UsageError)
    assert (
        str(result.exception) == "order of method svd must be auto|kernel-first|channel-first, not 'sideways'"
    )
