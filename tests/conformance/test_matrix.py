"""Matrix: one template in every combination of values."""

from __future__ import annotations

import pytest

from wfl import Capability, InvalidArgumentError, Job, Replacement, Workflow, shell
from wfl.testing.conformance.site import Site, Trait, needs


def names(job: Job) -> list[str | None]:
    """The job names of all tasks."""
    return [task.template.job_name for task in job.tasks]


def test_two_dimensions(site: Site, flow: Workflow) -> None:
    """Every combination is submitted; the first replacement is outermost."""
    template = site.succeed().replace(job_name="X-Y")
    job = flow.run_matrix(template, Replacement("X", ["a", "b"]), Replacement("Y", [1, 2, 3]))
    assert names(job) == ["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"]
    assert not job.synchronize().any_failed()


def test_three_dimensions(site: Site, flow: Workflow) -> None:
    """`run_matrix` takes any number of replacements."""
    template = site.succeed().replace(job_name="XYZ")
    job = flow.run_matrix(template, *(Replacement(letter, ["0", "1"]) for letter in "XYZ"))
    assert names(job) == [f"{number:03b}" for number in range(8)]


def test_one_dimension(site: Site, flow: Workflow) -> None:
    """One replacement makes one task per value; numbers become text."""
    job = flow.run_matrix(site.succeed().replace(job_name="N"), Replacement("N", [1, 0.5, "x"]))
    assert names(job) == ["1", "0.5", "x"]


def test_no_replacement(site: Site, flow: Workflow) -> None:
    """Without a replacement there is one combination: the template itself."""
    assert flow.run_matrix(site.succeed()).success()


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_everywhere(flow: Workflow) -> None:
    """Without `fields` the pattern is replaced in every text field: arguments, names and values of variables."""
    template = shell('echo V; env | grep "^KEY_"', job_environment={"KEY_V": "is V"})
    job = flow.run_matrix(template, Replacement("V", ["one", "two"]))
    assert list(job.outputs().values()) == ["one\nKEY_one=is one", "two\nKEY_two=is two"]


def test_in_fields(site: Site, flow: Workflow) -> None:
    """With `fields` it is replaced there and nowhere else."""
    template = site.succeed().replace(job_name="V", job_environment={"A": "V"})
    job = flow.run_matrix(template, Replacement("V", ["x"], ["job_name"]))
    assert names(job) == ["x"]
    assert job.tasks[0].template.job_environment == {"A": "V"}


def test_nested(site: Site, flow: Workflow) -> None:
    """A later replacement finds its pattern in what an earlier one put in."""
    template = site.succeed().replace(job_name="OUTER")
    job = flow.run_matrix(template, Replacement("OUTER", ["a-INNER", "b"]), Replacement("INNER", ["1", "2"]))
    assert names(job) == ["a-1", "a-2", "b", "b"]


def test_pattern_nowhere(site: Site, flow: Workflow) -> None:
    """A pattern that occurs nowhere is refused at once; nothing is submitted."""
    with pytest.raises(InvalidArgumentError, match="MISSING"):
        flow.run_matrix(site.succeed(), Replacement("MISSING", [1]))
    assert flow.jobs() == []


def test_matrix_after_run(site: Site, flow: Workflow) -> None:
    """`Job.run_matrix` adds its tasks to the chain; "last" is the last combination."""
    job = flow.run(site.succeed()).run_matrix(site.succeed().replace(job_name="N"), Replacement("N", [1, 2]))
    assert names(job) == [None, "1", "2"]
    assert job.template is not None
    assert job.template.job_name == "2"
    assert len(job.synchronize().infos()) == 3
