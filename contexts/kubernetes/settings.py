"""What the context for Kubernetes is given, checked; and where a cluster is, as another process may be told."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from wfl.contexts import settings
from wfl.errors import InvalidArgumentError, nearest

PULL = ("always", "missing", "never")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the cluster is, who asks it, and how long an answer may take (seconds). It holds no secrets."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    impersonate: str | None = None
    impersonate_groups: tuple[str, ...] = ()
    timeout: float = 60.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        """What `to_dict` has written."""
        return cls(**{**said, "impersonate_groups": tuple(said["impersonate_groups"])})


def check_settings(
    *,
    image: str | None,
    kubeconfig: str | os.PathLike[str] | None,
    context: str | None,
    namespace: str | None,
    impersonate: str | None,
    impersonate_groups: Sequence[str] = (),
    timeout: float,
    pull: str | None,
    shell: str | None,
    helper_image: str | None,
    patience: float,
    suspend_restarts: bool = False,
) -> None:
    """Refuse by name what cannot be meant."""
    settings.text("image", image)
    settings.text("kubeconfig", os.fspath(kubeconfig) if isinstance(kubeconfig, os.PathLike) else kubeconfig)
    settings.text("context", context)
    settings.text("namespace", namespace)
    if namespace is not None and not _LABEL.fullmatch(namespace):
        expected = "expected a-z, 0-9 and '-', at most 63 of them, with no '-' at the ends"
        raise InvalidArgumentError(f"namespace is {namespace!r}, {expected}")
    settings.text("impersonate", impersonate)
    _check_groups(impersonate_groups, impersonate)
    settings.seconds("timeout", timeout)
    if pull is not None and pull not in PULL:
        raise InvalidArgumentError(f"pull is {pull!r}:{nearest(str(pull), PULL)}")
    settings.text("shell", shell)
    if shell is not None and not shell.startswith("/"):
        raise InvalidArgumentError(f"shell is {shell!r}, expected an absolute path in the image, such as '/bin/sh'")
    settings.text("helper_image", helper_image)
    settings.seconds("patience", patience, endless=True)
    settings.flag("suspend_restarts", suspend_restarts)


def _check_groups(groups: Sequence[str], user: str | None) -> None:
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise settings.wrong("impersonate_groups", groups, "a list or tuple of str")
    for group in groups:
        if group is None:
            raise settings.wrong("impersonate_groups", groups, "a list or tuple of str")
        settings.text("an item of impersonate_groups", group)
    if groups and user is None:
        raise InvalidArgumentError("impersonate_groups are given without a user: set impersonate, too")
