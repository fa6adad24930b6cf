"""What records hold: a frozen dataclass for each part, from which the JSON and its JSON Schema are made.

A key of the JSON is a field; `json_schema.py` makes the schema of them, `reading.py` a value of JSON. Types
say what the schema demands, `markers.py` what types cannot, and the docstrings become its descriptions.
"""
