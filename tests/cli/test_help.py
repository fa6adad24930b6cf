"""Help in sections, recipes, and what a shell completes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxdecomp
from onnxdecomp.cli.compress import _asked
from onnxdecomp.cli.help import brief
from onnxdecomp.workflow.config import GROUPS
from onnxdecomp.workflow.config_checks import checked
from onnxdecomp.workflow.recipes import registry
from tests.builders.commands import command, environment

Capsys = pytest.CaptureFixture[str]


def test_help_has_sections_and_leaves_the_methods_options_to_help_all(capsys: Capsys) -> None:
    short = command(capsys, "compress", "--help").out
    whole = command(capsys, "compress", "--help-all").out
    assert all(f"\n{title}:\n" in short for title in GROUPS.values())
    assert "--tt-shape" not in short
    assert "--tt-shape" in whole
    assert "\nOptions of tt:\n" in whole
    options = [set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)) for text in (short, whole)]
    assert {"--target", "--debug", "--help-all"} <= options[0] < options[1]


def test_an_option_keeps_its_default_in_short() -> None:
    assert brief("Of it. More of it  [default: as 'x'].") == "Of it  [default: as 'x']"
    assert brief("macs=2x … 0.5. 'y' too.") == "macs=2x … 0.5"


@pytest.mark.parametrize("name", registry.names())
def test_a_recipe_is_a_configuration(name: str) -> None:
    found = registry.recipe(name)
    assert checked(onnxdecomp.CompressConfig.of(found.config, {"calib": "inputs.npz"}))
    assert registry.recipe(f"{name}@{found.version}") == found
    assert found.summary


def test_what_is_said_beside_a_recipe_wins() -> None:
    for said, wanted in (({}, 0.01), ({"max_error": 0.2}, 0.2)):
        asked = _asked(dict(said), None, None, recipe="safest", told=False, json=False)
        assert (asked.max_error, asked.allow_slower) == (wanted, False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--recipe", "cnn-cpuu"), "did you mean 'cnn-cpu'?"),
        (("--recipe", "cnn-cpu@99"), "--recipe cnn-cpu@99"),
        (("--recipe", "cnn-cpu", "--config", "own.toml"), "--config own.toml"),
    ],
)
def test_a_recipe_that_cannot_be_taken(
    given: tuple[str, ...], told: str, model: Path, capsys: Capsys
) -> None:
    command(capsys, "compress", model, *given).is_error(2, told)


def test_recipes_are_listed(capsys: Capsys) -> None:
    listed = json.loads(command(capsys, "recipes", "--json", "-").out)
    assert [one["name"] for one in listed] == registry.names()
    text = command(capsys, "recipes").out
    assert "--max-error 0.01 --never-slower" in text


@pytest.mark.parametrize(
    ("words", "wanted"), [("onnxdecomp comp", "compress"), ("onnxdecomp compress --recipe sm", "smallest")]
)
def test_shells_complete(words: str, wanted: str) -> None:
    asked = {
        "_ONNXDECOMP_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    line = [sys.executable, "-m", "onnxdecomp.cli.main"]
    done = subprocess.run(line, env=environment() | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"plain,{wanted}"]
