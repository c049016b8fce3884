"""Keeps what Beam finds out about the class of a DoFn, because the suite runs some thousand pipelines.

Beam looks at the signature of each method of each DoFn eight times a job, for state and timers. That was a quarter of
the CPU time of a small job. The answer depends on the class alone, unless an instance has a method of its own.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any


def keep() -> None:
    """Let Beam remember the answers, if it has been imported."""
    userstate = sys.modules.get("apache_beam.transforms.userstate")
    if userstate is None or hasattr(userstate.get_dofn_specs, "kept"):
        return
    find, kept = userstate.get_dofn_specs, {}

    def get_dofn_specs(dofn: Any) -> tuple[set[Any], set[Any]]:
        if any(isinstance(value, MethodType) for value in vars(dofn).values()):
            return find(dofn)
        if type(dofn) not in kept:
            kept[type(dofn)] = find(dofn)
        states, timers = kept[type(dofn)]
        return set(states), set(timers)

    get_dofn_specs.kept = kept
    userstate.get_dofn_specs = get_dofn_specs
