"""A slice of the campaign: damaged models end in one clear line, or in a whole valid file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.builders.commands import environment
from tests.conftest import ROOT
from tests.fuzz.run import case

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def test_a_hundred_damaged_models() -> None:
    """In a process of its own, which has no threads when it forks."""
    line = [sys.executable, "-m", "tests.fuzz", "--n", "100", "--seed", "1"]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert done.stdout.startswith("100 cases, seed 1: exit codes ")


def test_a_case_is_made_of_its_number_alone() -> None:
    assert case(3, 17) == case(3, 17)
    assert case(3, 17).files != case(3, 18).files
    assert len({case(3, number).line[0] for number in range(40)}) == 3
