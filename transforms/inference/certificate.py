"""The certificate of a faster backend: how well its labels agree with fp32, on which sample, for which weights.

`tagstream optimize` writes the certificate beside the optimised model. Without one, `backend: auto` runs fp32.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import CERTIFIED_SETTINGS

if TYPE_CHECKING:
    from tagstream.transforms.model_files import ModelFiles
    from tagstream.transforms.tasks.head import Head

FILE = "certificate.json"


@dataclass(frozen=True)
class Certificate:
    """What was measured, and for what the measurement holds.

    `agreement`: share of labels equal to fp32's, 0 to 1. `drift_p99`, `drift_max`: 99th percentile and maximum, over
    the rows, of a row's largest score difference. Both are measured on `sample_rows` texts that the search did not
    see; `sample` is their hash. `rows_per_s`: the engine alone, without reading and writing. `max_length`, `long_text`,
    `thresholds` and `function_to_apply`: the entry's settings; `task`: others that its task uses. `device`: cpu, cuda
    or mps. `file`: name of the optimised model beside the certificate. `file_hash`: its SHA-256.
    """

    weights: str
    tokenizer: str
    max_length: int | None
    long_text: str
    backend: dict[str, Any]
    file: str | None
    file_hash: str | None
    sample: str
    sample_rows: int
    agreement: float
    drift_p99: float
    drift_max: float
    rows_per_s: float
    fp32_rows_per_s: float
    machine: str
    versions: dict[str, str]
    date: str
    thresholds: dict[str, float] = field(default_factory=dict)
    device: str = ""
    function_to_apply: str | None = None
    task: str = ""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tmp = folder / f".{FILE}"
        tmp.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        tmp.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The certificate in `folder`; None if there is none. Raises ModelError if it can't be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{folder / FILE}: damaged certificate: {error}; run `tagstream optimize` again") from None

    def check(self, folder: Path, files: ModelFiles, head: Head, min_agreement: float) -> None:
        """Raises ModelError if the certificate is not for this model, this head, or the optimised file beside it."""
        weights, tokenizer = files.weights_hash(), files.tokenizer_hash()
        again = "run `tagstream optimize` again"
        if self.weights != weights:
            raise ModelError(f"{folder / FILE} is for weights {self.weights}, this model has {weights}; {again}")
        if self.tokenizer != tokenizer:
            raise ModelError(f"{folder / FILE} is for tokenizer {self.tokenizer}, this model has {tokenizer}; {again}")
        for name in CERTIFIED_SETTINGS:
            asked = head.long_text if name == "long_text" else getattr(head.entry, name)
            if (measured := getattr(self, name)) != asked:
                raise ModelError(f"{folder / FILE} was measured with {name} {measured}, the SPEC has {asked}; {again}")
        if self.task != head.certified:
            said = f"{self.task}, not {head.certified}"
            raise ModelError(f"{folder / FILE} was measured with other settings: {said}; {again}")
        if self.agreement < min_agreement:
            raise ModelError(
                f"{folder / FILE}: labels agree with fp32 in {self.agreement:.2%} of the sample, "
                f"but min_agreement is {min_agreement:.2%}; {again}, or lower min_agreement"
            )
        if self.file is not None and hash_file(folder / self.file) != self.file_hash:
            raise ModelError(f"{folder / self.file} is not the file that the certificate was made for; {again}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file; an empty string if there is no such file."""
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
