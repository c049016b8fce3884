"""The recipe of the bundled classifiers: `python -m models.train spam|sentiment`.

Owns how they are made: which rows, how the encoder is shrunk, how it learns, how it is measured. Needed for training
only; nothing at run time imports this package.
"""
