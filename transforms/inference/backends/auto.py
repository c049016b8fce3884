"""`backend: auto`: the backend that `tagstream optimize` certified for this model, or else fp32 with a notice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter

from tagstream.schemas.spec import AutoBackend, Backend, InferEntry, PyTorchBackend
from tagstream.transforms.inference.backends import registry as backends
from tagstream.transforms.inference.backends.contracts import Backend as LoadedBackend
from tagstream.transforms.inference.backends.huggingface import files_of
from tagstream.transforms.inference.certificate import FILE, Certificate
from tagstream.transforms.runtime.machine import cpu_name


class Choice(NamedTuple):
    """`backend`: as a SPEC writes it. `notice`: why fp32 was chosen, if it was for lack of a certificate.

    `rows_per_s`: the engine alone; None if it was measured on another machine.
    """

    backend: dict[str, Any]
    notice: str | None = None
    rows_per_s: float | None = None


def load(entry: InferEntry) -> LoadedBackend:
    """The chosen backend, loaded. Raises ModelError for a certificate that does not fit the model or the entry."""
    return backends.load_backend(resolve(entry)[0])


def identity(entry: InferEntry) -> dict[str, Any]:
    """The identity of the chosen backend."""
    return backends.identify(resolve(entry)[0])


def resolve(entry: InferEntry) -> tuple[InferEntry, str | None]:
    """The entry with the certified backend in place of `auto`, and why this backend is fp32, if it is."""
    chosen = _choose(entry)
    return _with(entry, chosen.backend), chosen.notice


def certified_rows_per_s(entry: InferEntry) -> float | None:
    """The certified speed of the engine alone; None without a certificate from this machine.

    Raises ModelError for a certificate that does not fit the model or the entry.
    """
    return _choose(entry).rows_per_s


def _with(entry: InferEntry, backend: dict[str, Any]) -> InferEntry:
    return entry.model_copy(update={"backend": TypeAdapter(Backend).validate_python(backend)})


def certificate_folder(entry: InferEntry) -> Path:
    """The folder of the entry's certificate: named by the SPEC, or else a subfolder of the model's cache folder."""
    if isinstance(auto := entry.backend, AutoBackend) and auto.certificate:
        return Path(auto.certificate).expanduser()
    head = backends.describe(entry)[0]
    name = f"{entry.max_length or 'window'}-{head.long_text}"
    # thresholds change labels, so agreement holds only for the same thresholds
    for settings in (head.certified, json.dumps(entry.thresholds, sort_keys=True) if entry.thresholds else ""):
        if settings:
            name += f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    if entry.function_to_apply:
        name += f"-{entry.function_to_apply}"
    return files_of(entry).cache_folder() / name


def _choose(entry: InferEntry) -> Choice:
    spec = cast("AutoBackend", entry.backend)
    files = files_of(entry)
    folder = certificate_folder(entry)
    fp32 = PyTorchBackend(precision="fp32").model_dump(mode="json")
    certificate = Certificate.read(folder)
    if certificate is None:
        settings = entry.thresholds or entry.function_to_apply  # only a SPEC can hold those to certify with
        what = "SPEC" if settings else files.name
        notice = f"{files.name}: runs in fp32, without a certificate; `tagstream optimize {what}` may make it faster"
        return Choice(fp32, notice)
    certificate.check(folder, files, backends.describe(entry)[0], spec.min_agreement)
    chosen = dict(certificate.backend)
    here = backends.device_kind(_with(entry, chosen))
    if certificate.device != here:
        there = certificate.device or "an unnamed device"
        notice = f"{files.name}: runs in fp32, because {folder / FILE} was measured on {there}, not on {here}"
        return Choice(fp32, f"{notice}; `tagstream optimize` on this machine may make it faster")
    same_machine = certificate.machine == cpu_name()
    if not same_machine:
        chosen["token_budget"] = None  # the fastest budget of that machine may be slow here
    if certificate.file is not None:
        chosen["file"] = str(folder / certificate.file)
    return Choice(chosen, rows_per_s=certificate.rows_per_s if same_machine else None)
