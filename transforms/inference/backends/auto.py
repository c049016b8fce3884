"""`backend: auto`: what `tagstream optimize` certified for this model, or fp32 with a notice."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter

from tagstream.schemas.spec import AutoBackend, Backend, Classifier, PyTorchBackend
from tagstream.transforms.inference.backends import registry as backends
from tagstream.transforms.inference.backends.contracts import Backend as LoadedBackend
from tagstream.transforms.inference.backends.huggingface import files_of
from tagstream.transforms.inference.certificate import FILE, Certificate
from tagstream.transforms.runtime.machine import cpu_name
from tagstream.transforms.runtime.metrics import METRICS


class Choice(NamedTuple):
    """backend: as in a SPEC; notice: why it is fp32; rows_per_s: of the engine alone, as measured on this machine."""

    backend: dict[str, Any]
    notice: str | None = None
    rows_per_s: float | None = None


def load(classifier: Classifier) -> LoadedBackend:
    """The backend that the certificate names. Raises ModelError for a certificate that does not hold."""
    return backends.load_backend(resolve(classifier))


def identity(classifier: Classifier) -> dict[str, Any]:
    """That of the backend that runs."""
    return backends.identify(resolve(classifier))


def resolve(classifier: Classifier) -> Classifier:
    """The classifier with the certified backend in place of `auto`."""
    chosen = _choose(classifier.model_dump_json())
    if chosen.notice:
        METRICS.note(chosen.notice)
    return _with(classifier, chosen.backend)


def certified_rows_per_s(classifier: Classifier) -> float | None:
    """Of the engine alone, if its certificate is this machine's. Raises ModelError for one that does not hold."""
    return _choose(classifier.model_dump_json()).rows_per_s


def _with(classifier: Classifier, backend: dict[str, Any]) -> Classifier:
    return classifier.model_copy(update={"backend": TypeAdapter(Backend).validate_python(backend)})


def certificate_folder(classifier: Classifier) -> Path:
    """Where the classifier's certificate lies: the SPEC's folder, or one of the model's cache folder."""
    if isinstance(auto := classifier.backend, AutoBackend) and auto.certificate:
        return Path(auto.certificate).expanduser()
    name = f"{classifier.max_length or 'window'}-{classifier.long_text}"
    if classifier.thresholds:  # they decide where labels change
        name += f"-{hashlib.sha256(json.dumps(classifier.thresholds, sort_keys=True).encode()).hexdigest()[:8]}"
    return files_of(classifier).cache_folder() / name


@cache
def _choose(classifier_json: str) -> Choice:
    classifier = Classifier.model_validate_json(classifier_json)
    spec = cast("AutoBackend", classifier.backend)
    files = files_of(classifier)
    folder = certificate_folder(classifier)
    fp32 = PyTorchBackend(precision="fp32").model_dump(mode="json")
    certificate = Certificate.read(folder)
    if certificate is None:
        what = "SPEC" if classifier.thresholds else files.name  # they decide how many labels change
        notice = f"{files.name}: no certificate, so fp32 it is; `tagstream optimize {what}` may make it faster"
        return Choice(fp32, notice)
    certificate.check(folder, files, classifier, spec.min_agreement)
    chosen = dict(certificate.backend)
    here = backends.device_kind(_with(classifier, chosen))
    if certificate.device != here:
        there = certificate.device or "a device that it does not name"
        notice = f"{files.name}: {folder / FILE} was measured on {there}, and here it would run on {here}"
        return Choice(fp32, f"{notice}, so fp32 it is; `tagstream optimize` on this machine may make it faster")
    same_machine = certificate.machine == cpu_name()
    if not same_machine:
        chosen["token_budget"] = None  # the fastest there may be far from it here
    if certificate.file is not None:
        chosen["file"] = str(folder / certificate.file)
    return Choice(chosen, rows_per_s=certificate.rows_per_s if same_machine else None)
