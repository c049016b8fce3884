"""The recipe of the bundled classifiers: `python -m models.train spam|sentiment`.

Decides which rows are used, how the encoder is shrunk, how it learns and how it is measured. Only training needs this
package; nothing imports it at run time.
"""
