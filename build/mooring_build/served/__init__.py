"""Entry points of the Python models that Triton runs: text to token ids, logits to answers.

Publishing copies one of them as ``model.py`` into each version folder, beside the modules of
``mooring._served`` that it imports (relatively). They import nothing but these, numpy and Triton's own
module, and run on every Python from 3.10 on.
"""
