"""Write the JSON Schema of records from their dataclasses: python docs/record_schema.py.

With --check nothing is written, and the exit code is 1 where the file is out of date.
"""

from __future__ import annotations

import json
import sys

from generated import write_or_check

from onnxdecomp.record.schema.json_schema import json_schema
from onnxdecomp.report import SCHEMA

if __name__ == "__main__":
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    sys.exit(write_or_check({SCHEMA: text}))
