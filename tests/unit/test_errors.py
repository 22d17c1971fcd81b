"""The error tree: what each error also is, that all can be pickled, and the help for wrong names."""

import builtins
import inspect
import pickle
from typing import Any, cast

import pytest

from wfl import errors

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
NAMES = (
    "WflError DeniedByDrmsError DrmCommunicationError TryLaterError SessionManagementError TimeoutError "
    "InternalError InvalidArgumentError InvalidSessionError InvalidStateError OutOfResourceError "
    "UnsupportedAttributeError UnsupportedOperationError ImplementationSpecificError JobFailedError"
)


def test_tree_holds_every_drmaa2_error_and_our_own() -> None:
    """The tree has the root, DRMAA2's thirteen errors and JobFailedError, and nothing else."""
    assert " ".join(error.__name__ for error in ALL) == NAMES


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_the_root_and_stands_in_the_drawing(error: type[Exception]) -> None:
    """Catching WflError catches everything, and the module's docstring shows each error."""
    assert issubclass(error, errors.WflError)
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("error", ALL)
def test_errors_survive_pickling(error: type[Exception]) -> None:
    """An error that comes out of another process has its type, text and notes."""
    before = error("disk full")
    before.add_note("on node7")
    after = pickle.loads(pickle.dumps(before))  # noqa: S301 - our own bytes
    assert type(after) is error
    assert str(after) == "disk full"
    assert after.__notes__ == ["on node7"]


def test_builtins_catch_their_likes() -> None:
    """A time-out is Python's TimeoutError, an impossible value is Python's ValueError."""
    assert issubclass(errors.TimeoutError, builtins.TimeoutError)
    assert issubclass(errors.InvalidArgumentError, ValueError)


def test_timeout_error_shows_its_text_only() -> None:
    """The text of a time-out is not turned into an error number, as OSError does with two values."""
    assert str(errors.TimeoutError("no job within 3 s")) == "no job within 3 s"


def test_job_failed_error_holds_tasks_and_leaves_them_behind() -> None:
    """Failed tasks are at hand on the error; as live handles they do not travel with it."""
    task = cast("Any", lambda: None)  # cannot be pickled, like a real task
    error = errors.JobFailedError("job 7 failed", tasks=[task])
    assert error.tasks == (task,)
    after = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(after), after.tasks) == ("job 7 failed", ())


def test_nearest_names_the_closest() -> None:
    """A name with a typing mistake is answered with the right one."""
    assert errors.nearest("agrs", ["args", "email"]) == " did you mean 'args'?"


def test_nearest_lists_the_valid_names_in_order_when_none_is_close() -> None:
    """A name like no other is answered with all that exist."""
    assert errors.nearest("xyz", iter(["email", "args"])) == " valid are args, email"


def test_nearest_without_choices_says_so() -> None:
    """Where there is nothing to choose from, the message says that."""
    assert errors.nearest("xyz", []) == " valid are none at all"
