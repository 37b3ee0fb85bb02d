"""Kubernetes' names: which workload a pod is of."""

from __future__ import annotations

import re

# As the pods of a Deployment, a DaemonSet and a StatefulSet are named; the letters are those of Kubernetes' random names.
_POD = re.compile(r"(.{1,200}?)(?:(?:-[bcdfghjklmnpqrstvwxz2456789]{6,10})?-[bcdfghjklmnpqrstvwxz2456789]{5}|-\d{1,4})")


def workload_of(pod: str) -> str:
    """The name of the Deployment, DaemonSet or StatefulSet that a pod's name tells of; empty where it tells of none."""
    found = _POD.fullmatch(pod)
    return found.group(1) if found else ""
