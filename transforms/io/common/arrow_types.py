"""Small questions about Arrow types that several systems ask."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as at


def is_bytes(kind: pa.DataType) -> bool:
    """Bytes of any kind: of any length or of a fixed one, and views."""
    variable = at.is_binary(kind) or at.is_large_binary(kind) or at.is_binary_view(kind)
    return bool(variable or at.is_fixed_size_binary(kind))
