"""Adapters as linear algebra on files: a package's change of weights as low-rank factors, and what is done with them.

`delta` reads factors, `combine` makes one set of several packages' by the rules of catalog/combinations.py,
`normal_form` writes a set as a plain LoRA, `bind` finds the tensors of a checkpoint that it changes, `fuse` streams
the changed checkpoint to disk with the arithmetic of `rows` and the copying of `copying`. numpy, no torch; whoever
reads headers alone (`delta`, `combine`, `bind`) does not import numpy either.
"""
