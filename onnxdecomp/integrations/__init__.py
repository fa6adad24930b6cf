"""Other tools' plug-ins: what they ask of one, in terms of `compress` and of its record.

Each module imports its tool, which is an extra of this package; nothing here is imported unless that tool,
or an option that names it, asks for it.
"""
