"""Pictures of the report's page, for docs/guides/reports.md: python docs/screenshots.py [FOLDER].

The page is that of a plan, of widths and chains together, for an encoder of 50 blocks with random weights:
300 products. A headless Chromium looks at it, the system's, driven by Playwright. Nothing holds the pictures
to the code; make them anew when the page changes. FOLDER keeps the model and the record.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir

from models.encoder import encoder
from onnxdecomp import inspect
from onnxdecomp.report import html

PICTURES = Path(__file__).with_name("guides")
VIEWS = (
    ("report-top", 1200, 900, ""),
    ("report-layers", 1200, 900, "#layers"),
    ("report-phone", 390, 844, ""),
)
"""A picture's name, its width and height in pixels, and the place in the page that it begins at."""


def main() -> None:
    """Plan, and take the pictures."""
    if len(sys.argv) > 1:
        taken(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            taken(Path(folder))


def taken(folder: Path) -> None:
    """The pictures of the run in a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, record = folder / "encoder.onnx", folder / "run.json"
    if not record.exists():
        ir.save(encoder(layers=50, width=64, heads=4, vocabulary=500, longest=64), model)
        made = inspect(model, method="width,svd", rank="0.5", details=True, threads=1)
        record.write_text(json.dumps(made.record), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(html(json.loads(record.read_text(encoding="utf-8"))), encoding="utf-8")
    photographed(page)


def photographed(page: Path) -> None:
    """Pictures of a page."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, place in VIEWS:
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(f"{page.resolve().as_uri()}{place}")
            tab.screenshot(path=PICTURES / f"{name}.png")
            tab.close()
        browser.close()


if __name__ == "__main__":
    main()
