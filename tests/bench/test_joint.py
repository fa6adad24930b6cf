"""The table of chains and pairs: what each step found stays beside where it comes from."""

import json
from pathlib import Path

import pytest

from bench import joint


def test_each_step_keeps_its_own_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later step adds to a row; a file that was made anew has nothing of what was measured before."""
    monkeypatch.setattr("bench.provenance.RESULTS", tmp_path)
    monkeypatch.setattr(joint, "RESULTS", tmp_path)
    key = joint.row_of("net", "macs=2x", "both", False)

    def step(name: str, **found: object) -> dict[str, object]:
        monkeypatch.setattr("sys.argv", ["joint.py", "--steps", name])
        joint._keep([{**key, **found, **joint._done(key, name)}])
        rows = json.loads((tmp_path / "joint.json").read_text())["rows"]
        assert len(rows) == 1
        return dict(rows[0])

    step("compress", seconds=1.0)
    row = step("time", p50_ms=3.0)
    steps = row["provenance"]
    assert isinstance(steps, dict)
    assert {name: origin["command"].split()[-1] for name, origin in steps.items()} == {
        "compress": "compress",
        "time": "time",
    }
    assert (row["seconds"], row["p50_ms"]) == (1.0, 3.0)
    row = step("compress", seconds=2.0)
    assert list(row["provenance"]) == ["compress"]  # type: ignore[call-overload]
    assert "p50_ms" not in row
