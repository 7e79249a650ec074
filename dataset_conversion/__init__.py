"""Converters: one file a published layout, each with `FORMAT` and `convert(source, destination, options)`.

A new layout is one new file here: it lists the cases of its source and declares names, labels and channels;
`writing_dataset.write_dataset` reads, checks and writes them.
"""
