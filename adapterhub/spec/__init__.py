"""The format: immutable values, read and written without touching a disk, a network or a tensor.

Every value has `from_data(data, where=…)` (plain JSON data in, every fault at once as one InvalidFileError) and
`to_data()` (plain JSON data out); `from_data(x.to_data()) == x`. The rules are told in docs/format.md.
"""
