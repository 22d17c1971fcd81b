"""Placeholders: what they become, where, and that nothing else is touched."""

import itertools
import os
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import TEXT_FIELDS, JobTemplate
from wfl.errors import InvalidArgumentError
from wfl.placeholders import fill, has_placeholders

HOME = os.path.expanduser("~")
STRING_FIELDS = [name for name in TEXT_FIELDS if name not in {"args", "email", "candidate_machines"}]
PATHS = ["input_path", "output_path", "error_path"]
PLACEHOLDERS = ["$DRMAA2_INDEX$", "$DRMAA2_HOME_DIR$", "$DRMAA2_WORKING_DIR$"]
words = st.text(st.characters(codec="utf-8", exclude_characters="\0$={}"), min_size=1)


@dataclass
class Numbers:
    """Running task numbers, and how many were drawn."""

    drawn: int = 0
    _count: Any = field(default_factory=lambda: itertools.count(41))

    def __call__(self) -> int:
        """The next one."""
        self.drawn += 1
        return int(next(self._count))


def filled(template: JobTemplate, index: int | None = None) -> JobTemplate:
    """A template with its placeholders replaced."""
    return fill(template, index, Numbers())


def value_of(name: str, text: str) -> Any:
    """A value with this text in it, of the kind that the field takes."""
    return {"a": text} if name in {"job_environment", "extensions", "stage_in_files", "stage_out_files"} else text


def template_with(name: str, value: Any) -> JobTemplate:
    """A template of which one field is set."""
    return JobTemplate(**cast("Any", {name: value}))


@pytest.mark.parametrize("name", STRING_FIELDS)
def test_every_text_field_is_searched(name: str) -> None:
    """The index is put in wherever a template holds text, also in the values of mappings."""
    template = filled(template_with(name, value_of(name, "a$DRMAA2_INDEX$b")), 7)
    assert getattr(template, name) == value_of(name, "a7b")


@pytest.mark.parametrize("name", ["args", "email", "candidate_machines"])
def test_every_item_is_searched(name: str) -> None:
    """Each string of a sequence is searched; the others stay as they are."""
    assert getattr(filled(template_with(name, ["x", "$DRMAA2_INDEX$.$DRMAA2_INDEX$"]), 3), name) == ("x", "3.3")


def test_keys_of_mappings_are_searched() -> None:
    """A staging target may carry the index."""
    template = filled(JobTemplate(stage_in_files={"part.$DRMAA2_INDEX$": "/data/$DRMAA2_INDEX$"}), 2)
    assert template.stage_in_files == {"part.2": "/data/2"}


def test_keys_that_become_one_are_refused() -> None:
    """Two keys that are the same after replacement would lose a value."""
    with pytest.raises(InvalidArgumentError, match="two keys become one"):
        filled(JobTemplate(job_environment={"$DRMAA2_INDEX$": "a", "2": "b"}), 2)


def test_outside_of_an_array_the_index_is_empty() -> None:
    """A single job has no index; the placeholder goes away."""
    assert filled(JobTemplate(job_name="part$DRMAA2_INDEX$")).job_name == "part"


def test_index_zero_is_an_index() -> None:
    """0 is a number like any other."""
    assert filled(JobTemplate(job_name="$DRMAA2_INDEX$"), 0).job_name == "0"


def test_home_directory() -> None:
    """$DRMAA2_HOME_DIR$ is the user's home."""
    assert filled(JobTemplate(args=["$DRMAA2_HOME_DIR$/x"])).args == (f"{HOME}/x",)


def test_working_directory_is_the_templates() -> None:
    """$DRMAA2_WORKING_DIR$ is the job's working directory, itself perhaps below the home."""
    template = filled(JobTemplate(working_directory="$DRMAA2_HOME_DIR$/w", output_path="$DRMAA2_WORKING_DIR$/out"))
    assert template.working_directory == f"{HOME}/w"
    assert template.output_path == f"{HOME}/w/out"


def test_working_directory_is_else_the_programs() -> None:
    """Without one it is the directory that the program is in."""
    assert filled(JobTemplate(output_path="$DRMAA2_WORKING_DIR$/out")).output_path == f"{os.getcwd()}/out"


@pytest.mark.parametrize("text", ["{{.ID}}", "{{ .ID }}", "{{  .ID}}"])
@pytest.mark.parametrize("name", PATHS)
def test_task_number_in_paths(name: str, text: str) -> None:
    """{{.ID}} in a path is the context's running number; space inside the braces does not matter."""
    assert getattr(filled(template_with(name, f"/tmp/o-{text}.txt")), name) == "/tmp/o-41.txt"


def test_one_number_for_all_paths_of_a_job() -> None:
    """Output and error output of one job carry the same number; the next job has the next."""
    numbers = Numbers()
    template = JobTemplate(output_path="o{{.ID}}", error_path="e{{.ID}}")
    for number in (41, 42):
        job = fill(template, None, numbers)
        assert (job.output_path, job.error_path) == (f"o{number}", f"e{number}")


def test_task_number_is_for_paths_alone() -> None:
    """Elsewhere {{.ID}} is text: it may be meant for a template language of the job's own."""
    assert filled(JobTemplate(remote_command="echo", args=["{{.ID}}"])).args == ("{{.ID}}",)


def test_no_number_is_used_up_in_vain() -> None:
    """Jobs without {{.ID}} take no number."""
    numbers = Numbers()
    fill(JobTemplate(remote_command="a", args=["$DRMAA2_INDEX$"]), 1, numbers)
    assert not numbers.drawn


def test_template_itself_comes_back_when_nothing_is_to_do() -> None:
    """A template without placeholders is not copied."""
    template = JobTemplate(remote_command="a", args=["b"], job_environment={"C": "d"})
    assert filled(template, 1) is template


@given(st.lists(words), words, st.integers(0))
def test_other_text_is_untouched(args: list[str], name: str, index: int) -> None:
    """Text that holds no placeholder is passed on as it is, whatever it is."""
    template = JobTemplate(remote_command="x", args=args, job_name=name, output_path=name)
    assert filled(template, index) == template


@given(words, st.sampled_from(PLACEHOLDERS), words, st.integers(0))
def test_text_around_a_placeholder_stays(before: str, placeholder: str, after: str, index: int) -> None:
    """What stands before and behind a placeholder is kept, and nothing of the placeholder is left."""
    (text,) = filled(JobTemplate(args=[before + placeholder + after]), index).args or ()
    assert text.startswith(before)
    assert text.endswith(after)
    assert "DRMAA2" not in text.removeprefix(before).removesuffix(after)


@given(st.sampled_from(STRING_FIELDS), st.sampled_from([*PLACEHOLDERS, ""]))
def test_placeholders_are_seen_in_every_field(name: str, placeholder: str) -> None:
    """The quick look finds a placeholder in whichever field it is, and none where there is none."""
    template = template_with(name, value_of(name, f"a{placeholder}"))
    assert has_placeholders(template) is bool(placeholder)
    assert (filled(template, 1) != template) is bool(placeholder)
