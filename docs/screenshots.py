"""Pictures of the report's page, for docs/guides/reports.md: python docs/screenshots.py [FOLDER].

The page is that of a plan, of widths and chains together, for an encoder of 50 blocks with random weights:
300 products; the one of rewritten layers is that of a run on a smaller encoder of as many blocks. A headless
Chromium looks at them, the system's, driven by Playwright. Nothing holds the pictures to the code; make them
anew when the page changes. FOLDER keeps the models and the records.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from models.encoder import encoder
from onnxdecomp import compress, inspect
from onnxdecomp.report import html

PICTURES = Path(__file__).with_name("guides")
View: TypeAlias = tuple[str, int, int, str]
"""A picture's name, its width and height in pixels, and the place in the page that it begins at."""

OF_A_PLAN: Sequence[View] = (
    ("report-top", 1200, 900, ""),
    ("report-layers", 1200, 900, "#layers"),
    ("report-phone", 390, 844, ""),
)
OF_A_RUN: Sequence[View] = (("report-rewritten", 1200, 700, "#rewritten"),)


def main() -> None:
    """Plan, and take the pictures."""
    if len(sys.argv) > 1:
        taken(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            taken(Path(folder))


def taken(folder: Path) -> None:
    """The pictures of a plan and a run in a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, small = folder / "encoder.onnx", folder / "small.onnx"
    if not (record := folder / "plan.json").exists():
        ir.save(encoder(layers=50, width=64, heads=4, vocabulary=500, longest=64), model)
        made = inspect(model, method="width,svd", rank="0.5", details=True, threads=1)
        record.write_text(json.dumps(made.record), encoding="utf-8")
    photographed(record, OF_A_PLAN)
    if not (record := folder / "run.json").exists():
        ir.save(encoder(layers=50, width=32, heads=2, vocabulary=100, longest=32), small)
        made = compress(small, method="svd", rank="0.375", details=True, threads=1, bench=False)
        record.write_text(json.dumps(made.record), encoding="utf-8")
    photographed(record, OF_A_RUN)


def photographed(record: Path, views: Sequence[View]) -> None:
    """Pictures of a record's page."""
    from playwright.sync_api import sync_playwright

    page = record.with_suffix(".html")
    page.write_text(html(json.loads(record.read_text(encoding="utf-8"))), encoding="utf-8")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, place in views:
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(f"{page.resolve().as_uri()}{place}")
            tab.screenshot(path=PICTURES / f"{name}.png")
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()
