"""Virtual environments for peers that can't be installed beside tagstream. uv makes them in `.cache/benchmarks`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.children import CACHE


def same(package: str) -> str:
    """A requirement for the version that is installed here, so that both contestants run the same library."""
    return f"{package}=={version(package).partition('+')[0]}"


def environment(name: str, requirements: list[str]) -> Path:
    """The Python of an environment with these requirements. Builds it if it does not exist. Raises SystemExit."""
    folder = CACHE / name
    python, stamp = folder / "bin" / "python", folder / "requirements.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == requirements:
        return python
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is missing: pip install uv")
    print(f"building {folder} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
    stamp.write_text(json.dumps(requirements))
    return python
