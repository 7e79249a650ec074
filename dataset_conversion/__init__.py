"""Converters: one file a published layout.

Each has `FORMAT` (what it reads), `convert(source, destination, options)` and `make_fake_source(folder)`, which writes
a tiny synthetic example of the layout and returns the options to convert it: the contract tests run on that.
A new layout is one new file here: it lists the cases of its source and declares names, labels and channels;
`writing_dataset.write_dataset` reads, checks and writes them.
"""
