"""Sources of the Python models that Triton runs: text to token ids, logits to answers.

Publishing copies these modules into version folders, so they import nothing but numpy, tokenizers and
one another (relatively), and run on every Python from 3.10 on. ``*_model`` modules are the entry points
and the only ones that import Triton; the others hold the logic, shared with training and verification.
"""
