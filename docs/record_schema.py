"""Write the JSON Schema of records from their dataclasses: python docs/record_schema.py.

With --check nothing is written, and the exit code is 1 where the file is out of date.
"""

from __future__ import annotations

import json
import sys

from onnxdecomp.record.schema.json_schema import json_schema
from onnxdecomp.report import SCHEMA


def main() -> int:
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not SCHEMA.is_file() or SCHEMA.read_text(encoding="utf-8") != text)
    SCHEMA.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
