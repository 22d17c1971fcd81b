"""What the context for Kubernetes is given: what cannot be meant is refused, and a place survives JSON. No cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wfl.contexts.kubernetes.settings import Place, check_settings
from wfl.errors import InvalidArgumentError

PLAIN: dict[str, Any] = {
    "image": "busybox:1",
    "kubeconfig": None,
    "context": None,
    "namespace": None,
    "impersonate": None,
    "timeout": 60.0,
    "pull": None,
    "shell": "/bin/sh",
    "helper_image": None,
    "patience": 300.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", None),
        ("kubeconfig", "~/.kube/other"),
        ("kubeconfig", Path("/a/b")),
        ("context", "kind-kind"),
        ("context", "arn:aws:eks:eu-1:1:cluster/x"),
        ("namespace", "a"),
        ("namespace", "team-1" + "x" * 57),
        ("impersonate", "system:serviceaccount:ns:name"),
        ("timeout", 1),
        ("pull", "always"),
        ("pull", "missing"),
        ("pull", "never"),
        ("shell", None),
        ("patience", float("inf")),
        ("suspend_restarts", True),
    ],
)
def test_what_can_be_meant_is_taken(name: str, value: object) -> None:
    """Every setting may be left out or have a value of its kind."""
    check_settings(**{**PLAIN, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", ""),
        ("image", "a\nb"),
        ("kubeconfig", ""),
        ("kubeconfig", "a\0b"),
        ("context", ""),
        ("namespace", ""),
        ("namespace", "Team"),
        ("namespace", "-a"),
        ("namespace", "a-"),
        ("namespace", "a.b"),
        ("namespace", "a" * 64),
        ("namespace", "a\n"),
        ("impersonate", ""),
        ("impersonate", "a\r\nX-Other: b"),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("pull", "allways"),
        ("shell", ""),
        ("shell", "sh"),
        ("helper_image", ""),
        ("patience", 0),
        ("patience", float("nan")),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: object) -> None:
    """A value that can never work is refused with its setting's name and what is expected."""
    with pytest.raises(InvalidArgumentError, match=f"^{name} (is|has) ?"):
        check_settings(**{**PLAIN, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", 1),
        ("kubeconfig", 1),
        ("context", b"a"),
        ("namespace", 1),
        ("impersonate", ["a"]),
        ("impersonate_groups", "a"),
        ("impersonate_groups", None),
        ("impersonate_groups", [None]),
        ("timeout", "60"),
        ("timeout", None),
        ("timeout", True),
        ("shell", 1),
        ("patience", None),
        ("suspend_restarts", 1),
    ],
)
def test_a_wrong_type_is_a_type_error(name: str, value: object) -> None:
    """A value of another type is Python's own TypeError, and it names the setting."""
    with pytest.raises(TypeError, match=name):
        check_settings(**{**PLAIN, "impersonate": "ann", name: value})


def test_groups_need_a_user() -> None:
    """The API knows no impersonation of groups alone."""
    check_settings(**PLAIN | {"impersonate": "ann", "impersonate_groups": ["a", "b"]})
    with pytest.raises(InvalidArgumentError, match="impersonate_groups"):
        check_settings(**PLAIN, impersonate_groups=["a"])


def test_a_wrong_pull_says_what_was_meant() -> None:
    """A near miss is answered with the word that exists."""
    with pytest.raises(InvalidArgumentError, match="did you mean 'always'"):
        check_settings(**{**PLAIN, "pull": "allways"})


def test_a_place_survives_json() -> None:
    """A helper process is told the same place, and it can be hashed there as here."""
    place = Place(
        kubeconfig="/a", context="b", namespace="c", impersonate="d", impersonate_groups=("e", "f"), timeout=3
    )
    told = Place.from_dict(json.loads(json.dumps(place.to_dict())))
    assert told == place
    assert hash(told) == hash(place)
    assert Place.from_dict(json.loads(json.dumps(Place().to_dict()))) == Place()
