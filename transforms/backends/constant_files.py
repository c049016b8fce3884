"""What the constant backend writes, known without running it."""

from __future__ import annotations

from typing import Any, cast

from schemas.spec import Classifier, ConstantBackend
from transforms.labels import Head


def describe(classifier: Classifier) -> tuple[Head, dict[str, Any]]:
    """Head with the one label, and what identifies it."""
    spec = cast("ConstantBackend", classifier.backend)
    head = Head.of(classifier, [spec.label], "softmax", f"constant:{spec.label}")
    return head, {"backend": "constant", "label": spec.label}
