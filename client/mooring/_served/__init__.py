"""Text to token ids and logits to answers: what a served pipeline does beside its engine.

It exists once and runs in two places. Publishing copies these modules into the version folders of the
Python models that Triton runs, and ``client.task(..., tokenize="client")`` runs them in the caller's process,
which is why both give the same answers. So they import nothing but the standard library, numpy, pillow,
tokenizers and one another (relatively), and run on every Python from 3.10 on.
"""
