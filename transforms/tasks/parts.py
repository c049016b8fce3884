"""A row's texts as one string, for tasks whose sequences are made of several texts (a question and its answer).

The engine looks at each row as one string: it finds equal rows, remembers answers, and tries rows one at a time. So
two texts are joined to a string that says how many characters the first has: `5:helloworld` is (hello, world).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def join_parts(first: pa.Array, second: pa.Array) -> pa.LargeStringArray:
    """One string for each row. `first`, `second`: valid strings without nulls."""
    lengths = pc.utf8_length(first).cast(pa.large_string())
    first, second = first.cast(pa.large_string()), second.cast(pa.large_string())
    colon, nothing = (pa.scalar(text, pa.large_string()) for text in (":", ""))
    return pc.binary_join_element_wise(lengths, colon, first, second, nothing)


def split_parts(joined: pa.LargeStringArray) -> tuple[list[str], list[str]]:
    """The first and the second text of each row. A string that `join_parts` has not made counts as a first text."""
    firsts, seconds = [], []
    for text in joined.to_pylist():
        length, _, texts = text.partition(":")
        if length.isdecimal():
            firsts.append(texts[: int(length)])
            seconds.append(texts[int(length) :])
        else:
            firsts.append(text)
            seconds.append("")
    return firsts, seconds
