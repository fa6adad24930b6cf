"""What it brings that frozen weights are no inputs of a file any more.

    python -m bench.frozen [--corpus FOLDER]

Networks of the corpus whose weights a caller may override, against what `--freeze-initializers` makes of them
with nothing decomposed: one thread, interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.corpus import add_option
from bench.provenance import markdown, provenance, write
from bench.realised import simplified

MODELS = ("nanodet_m", "ultraface_version-RFB-320")

_SECONDS = 10.0
"""Of timing, for each network."""


def main() -> None:
    """Measure and write bench/results/frozen.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        source = options.corpus.model(name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, source.name)
            simplified(source, file)
            timed = onnxdecomp.bench([source, file], threads=(1,), duration=_SECONDS, memory=False)
        before, after = timed.settings[0].models
        assert after.ratio is not None
        rows.append(
            {
                "model": name,
                "ms": [before.latency.p50, after.latency.p50],
                "faster": [1 / after.ratio.value, 1 / after.ratio.high, 1 / after.ratio.low],
            }
        )
    head = ("model", "as it comes", "frozen", "faster")
    cells = [
        (
            row["model"],
            *(f"{ms:.2f} ms" for ms in row["ms"]),
            "{:.2f}x ({:.2f} to {:.2f})".format(*row["faster"]),
        )
        for row in rows
    ]
    write("frozen", {**provenance(), "rows": rows}, markdown(head, cells))


if __name__ == "__main__":
    main()
