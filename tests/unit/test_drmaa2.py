"""The values: what they accept, what they refuse and with which words, how they compare, merge and travel."""

import copy
import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import (
    RESOURCE_LIMITS,
    SUB_STATES,
    TEXT_FIELDS,
    Capability,
    FrozenDict,
    JobInfo,
    JobState,
    JobTemplate,
    map_text,
)
from wfl.errors import InvalidArgumentError

# What a system can take: no NUL, but also file names that are not UTF-8 (lone surrogates, PEP 383).
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
escaped_bytes = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
texts = st.text(characters | escaped_bytes, max_size=8)
keys = st.text(characters, min_size=1, max_size=4)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1, max_size=4)
lists = st.lists(texts, max_size=4)
whole = st.integers(min_value=0, max_value=2**63)
year_2, year_2000, year_9000 = (datetime(year, 1, 1) for year in (2, 2000, 9000))  # noqa: DTZ001 - as st wants
zones = st.timezones()
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "args": lists,
    "email": lists,
    "candidate_machines": lists,
    "job_environment": st.dictionaries(names, texts, max_size=3),
    "stage_in_files": st.dictionaries(keys, keys, max_size=3),
    "stage_out_files": st.dictionaries(keys, keys, max_size=3),
    "extensions": st.dictionaries(keys, texts, max_size=3),
    "resource_limits": st.dictionaries(st.sampled_from(RESOURCE_LIMITS), whole.filter(bool), max_size=3),
    "submit_as_hold": st.booleans(),
    "rerunnable": st.booleans(),
    "email_on_started": st.booleans(),
    "email_on_terminated": st.booleans(),
    "join_files": st.booleans(),
    "min_slots": st.integers(1, 5),
    "max_slots": st.integers(5, 2**63),
    "priority": st.integers(-(2**63), 2**63),
    "min_phys_memory": whole,
    "start_time": st.datetimes(year_2, year_2000, timezones=zones),
    "deadline_time": st.datetimes(year_2000 + timedelta(2), year_9000, timezones=zones),
    "remote_command": texts,
    "working_directory": texts,
    "job_category": texts,
    "job_name": texts,
    "input_path": texts,
    "output_path": texts,
    "error_path": texts,
    "reservation_id": texts,
    "queue_name": texts,
    "machine_os": texts,
    "machine_arch": texts,
    "accounting_id": texts,
}
templates = st.fixed_dictionaries({}, optional=FIELDS).map(lambda fields: JobTemplate(**fields))

EVERYTHING = JobTemplate(
    remote_command="python",
    args=["train.py"],
    submit_as_hold=False,
    rerunnable=True,
    job_environment={"LR": "0.1"},
    working_directory="/work",
    job_category="python:3.13",
    email=["a@b.org"],
    email_on_started=True,
    email_on_terminated=False,
    job_name="train",
    input_path="/dev/null",
    output_path="out",
    error_path="err",
    join_files=True,
    reservation_id="r1",
    queue_name="gpu",
    min_slots=1,
    max_slots=4,
    priority=-3,
    candidate_machines=["n1", "n2"],
    min_phys_memory=2048,
    machine_os="Linux",
    machine_arch="x64",
    start_time=datetime(2030, 1, 2, 3, 4, 5, 600000, tzinfo=timezone(timedelta(hours=1))),
    deadline_time=datetime(2031, 1, 1, tzinfo=UTC),
    stage_in_files={"in": "/data/in"},
    stage_out_files={"/data/out": "out"},
    resource_limits={"OPEN_FILES": 64, "WALLCLOCK_TIME": timedelta(minutes=1, milliseconds=500)},
    accounting_id="p7",
    extensions={"gpus": "all"},
)
EVERYTHING_JSON = {
    "remoteCommand": "python",
    "args": ["train.py"],
    "submitAsHold": False,
    "rerunnable": True,
    "jobEnvironment": {"LR": "0.1"},
    "workingDirectory": "/work",
    "jobCategory": "python:3.13",
    "email": ["a@b.org"],
    "emailOnStarted": True,
    "emailOnTerminated": False,
    "jobName": "train",
    "inputPath": "/dev/null",
    "outputPath": "out",
    "errorPath": "err",
    "joinFiles": True,
    "reservationId": "r1",
    "queueName": "gpu",
    "minSlots": 1,
    "maxSlots": 4,
    "priority": -3,
    "candidateMachines": ["n1", "n2"],
    "minPhysMemory": 2048,
    "machineOs": "Linux",
    "machineArch": "x64",
    "startTime": "2030-01-02T02:04:05.600000Z",
    "deadlineTime": "2031-01-01T00:00:00Z",
    "stageInFiles": {"in": "/data/in"},
    "stageOutFiles": {"/data/out": "out"},
    "resourceLimits": {"OPEN_FILES": 64, "WALLCLOCK_TIME": 60.5},
    "accountingId": "p7",
    "extensions": {"gpus": "all"},
}


class TestJobState:
    """The nine states of DRMAA2."""

    def test_ended_and_started(self) -> None:
        """DONE and FAILED have ended; what runs, is suspended or has ended has started."""
        assert {state for state in JobState if state.ended} == {JobState.DONE, JobState.FAILED}
        assert {state.name for state in JobState if state.started} == {
            "RUNNING",
            "SUSPENDED",
            "DONE",
            "FAILED",
        }

    def test_text_is_the_drmaa2_name(self) -> None:
        """A state is its camelCase name: in comparisons, in JSON, and back."""
        assert {JobState.QUEUED_HELD: 1}["queuedHeld"] == 1  # type: ignore[index] # equal and of equal hash
        assert json.dumps(JobState.REQUEUED_HELD) == '"requeuedHeld"'
        assert JobState("requeuedHeld") is JobState.REQUEUED_HELD

    def test_there_are_nine_that_show_as_written(self) -> None:
        """The nine states show as in code, and survive pickling as themselves."""
        assert len(JobState) == 9
        assert repr(JobState.DONE) == "JobState.DONE"
        for state in JobState:
            assert pickle.loads(pickle.dumps(state)) is state  # noqa: S301 - our own bytes


def test_capabilities_hold_drmaa2s_thirteen_and_ours() -> None:
    """DRMAA2's thirteen capabilities keep their names; fourteen more have none there."""
    assert " ".join(capability.name for capability in Capability) == (
        "ADVANCE_RESERVATION RESERVE_SLOTS CALLBACK BULK_JOBS_MAXPARALLEL JT_EMAIL JT_STAGING JT_DEADLINE "
        "JT_MAXSLOTS JT_ACCOUNTINGID RT_STARTNOW RT_DURATION RT_MACHINEOS RT_MACHINEARCH "
        "SUSPEND HOLD TERMINATE OUTPUT STREAM NATIVE_ARRAYS MAX_PARALLEL REATTACH DETACH WALLCLOCK_LIMIT "
        "START_TIME DEADLINE RUSAGE PEAK_MEMORY"
    )
    assert Capability.SUSPEND.value == "suspend"


class TestFrozenDict:
    """The mapping inside of values."""

    def test_is_equal_to_a_dict_and_hashes_by_content(self) -> None:
        """The order of insertion counts for nothing, as with dict."""
        one, other = FrozenDict({"a": 1, "b": 2}), FrozenDict({"b": 2, "a": 1})
        assert one == other == {"a": 1, "b": 2}
        assert hash(one) == hash(other)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.update(a=2),
            lambda d: d.clear(),
            lambda d: d.pop("a"),
            lambda d: d.popitem(),
            lambda d: d.setdefault("b", 1),
            lambda d: d.__setitem__("a", 2),
            lambda d: d.__delitem__("a"),
            lambda d: d.__ior__({"b": 1}),
        ],
    )
    def test_cannot_be_changed(self, change: Any) -> None:
        """Every way to change a dict is a TypeError that tells what to do, and changes nothing."""
        frozen = FrozenDict(a=1)
        with pytest.raises(TypeError, match=r"\{\*\*old, key: value\}"):
            change(frozen)
        assert frozen == {"a": 1}

    def test_pickles_copies_and_joins(self) -> None:
        """Copies are equal and frozen; joining two makes a new dict."""
        frozen = FrozenDict(a=1)
        for again in (pickle.loads(pickle.dumps(frozen)), copy.copy(frozen), copy.deepcopy(frozen)):  # noqa: S301
            assert again == frozen
            assert type(again) is FrozenDict
        assert frozen | {"b": 2} == {"a": 1, "b": 2}


class TestMakingATemplate:
    """What JobTemplate(...) accepts and refuses."""

    def test_every_field_is_unset_by_default(self) -> None:
        """A template of nothing has None everywhere and shows nothing."""
        template = JobTemplate()
        assert all(getattr(template, name) is None for name in JobTemplate.__struct_fields__)
        assert repr(template) == "JobTemplate()"

    def test_fields_are_those_of_the_contract(self) -> None:
        """The example with everything sets every field there is, and its JSON names all."""
        assert all(getattr(EVERYTHING, name) is not None for name in JobTemplate.__struct_fields__)
        assert len(JobTemplate.__struct_fields__) == len(EVERYTHING_JSON) == len(FIELDS) == 31

    def test_lists_become_tuples_and_mappings_become_frozen(self) -> None:
        """What is handed over may change later; the template does not."""
        args, environment = ["a"], OrderedDict(A="1")
        template = JobTemplate(args=args, job_environment=environment)
        args.append("b")
        environment["B"] = "2"
        assert template.args == ("a",)
        assert template.job_environment == {"A": "1"}
        assert type(template.job_environment) is FrozenDict

    def test_environment_may_be_os_environ(self) -> None:
        """Any mapping is accepted."""
        assert JobTemplate(job_environment=os.environ).job_environment == dict(os.environ)

    def test_paths_become_text(self) -> None:
        """A Path is accepted wherever a file can be named."""
        path = Path("/a/b")
        template = JobTemplate(
            remote_command=path,
            args=["-f", path],
            working_directory=path,
            input_path=path,
            output_path=path,
            error_path=path,
            stage_in_files={"in": path},
        )
        assert template == JobTemplate(
            remote_command="/a/b",
            args=["-f", "/a/b"],
            working_directory="/a/b",
            input_path="/a/b",
            output_path="/a/b",
            error_path="/a/b",
            stage_in_files={"in": "/a/b"},
        )

    def test_subclasses_of_str_become_plain_text(self) -> None:
        """An enum's text is taken as text, so that every template can be written as JSON."""
        template = JobTemplate(job_name=JobState.DONE, args=[JobState.DONE])
        assert template.args is not None
        assert type(template.job_name) is type(template.args[0]) is str
        assert JobTemplate.from_json(template.to_json()) == template

    def test_empty_values_are_values(self) -> None:
        """Empty text, tuple and mapping, and 0 where it makes sense, are set, not unset."""
        template = JobTemplate(job_name="", args=[], job_environment={}, priority=0, min_phys_memory=0)
        assert template != JobTemplate()
        assert template.merged_with(EVERYTHING).args == ()

    @pytest.mark.parametrize(
        ("limit", "given", "kept"),
        [
            ("WALLCLOCK_TIME", timedelta(hours=1), 3600.0),
            ("CPU_TIME", 1.5, 1.5),
            ("CORE_FILE_SIZE", 0, 0),
            ("VIRTUAL_MEMORY", 2**40, 2**40),
        ],
    )
    def test_limits_are_numbers(self, limit: str, given: Any, kept: float) -> None:
        """Times are kept as seconds, whatever they were written as; sizes and counts are whole numbers."""
        assert JobTemplate(resource_limits={limit: given}).resource_limits == {limit: kept}

    def test_times_are_kept_in_utc(self) -> None:
        """The same instant is the same value in every zone, also in the hour that a clock repeats."""
        berlin = datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
        template = JobTemplate(start_time=berlin)
        assert template == JobTemplate(start_time=datetime(2030, 10, 27, 1, 30, tzinfo=UTC))
        assert template.start_time is not None
        assert template.start_time.tzinfo is UTC

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("remote_command", 1, "str"),
            ("remote_command", b"ls", "str"),
            ("job_name", Path("x"), "str"),
            ("args", "ls", "a list or tuple of str"),
            ("args", {"a", "b"}, "a list or tuple of str"),
            ("args", b"ls", "a list or tuple of str"),
            ("email", 5, "a list or tuple of str"),
            ("job_environment", ["A=1"], "a mapping of str to str"),
            ("resource_limits", [1], "a mapping of limit names to numbers"),
            ("join_files", 1, "True or False"),
            ("join_files", "yes", "True or False"),
            ("min_slots", True, "int"),
            ("min_slots", 1.0, "int"),
            ("priority", "1", "int"),
            ("start_time", "2030-01-01", "an aware datetime"),
            ("start_time", 0, "an aware datetime"),
        ],
    )
    def test_wrong_types_are_told_with_field_value_and_expected(self, field: str, value: Any, expected: str) -> None:
        """A wrong type is a TypeError with all that is needed to mend it."""
        with pytest.raises(TypeError) as caught:
            JobTemplate(**cast("Any", {field: value}))
        assert str(caught.value) == f"{field} is {value!r} ({type(value).__name__}), expected {expected}"

    @pytest.mark.parametrize(
        ("field", "value", "start"),
        [
            ("args", ["a", 1], "args[1] is 1 (int), expected str"),
            ("job_environment", {"A": 1}, "job_environment['A'] is 1 (int), expected str"),
            ("job_environment", {1: "A"}, "a key of job_environment is 1 (int), expected str"),
            (
                "resource_limits",
                {"OPEN_FILES": 1.5},
                "resource_limits['OPEN_FILES'] is 1.5 (float), expected int",
            ),
            ("resource_limits", {"OPEN_FILES": True}, "resource_limits['OPEN_FILES'] is True (bool)"),
            ("resource_limits", {"CPU_TIME": "1h"}, "resource_limits['CPU_TIME'] is '1h' (str)"),
        ],
    )
    def test_wrong_types_inside_are_told_with_their_place(self, field: str, value: Any, start: str) -> None:
        """The message says which item it is."""
        with pytest.raises(TypeError) as caught:
            JobTemplate(**cast("Any", {field: value}))
        assert str(caught.value).startswith(start)

    @pytest.mark.parametrize("field", TEXT_FIELDS)
    def test_nul_characters_are_refused_by_field(self, field: str) -> None:
        """No system takes a NUL; the first place that holds one is named."""
        kind = type(EVERYTHING_JSON[_camel(field)])
        candidates: list[object] = ["a\0b", ["ok", "a\0b"], {"K": "a\0b"}, {"a\0b": "v"}]
        for bad in [candidate for candidate in candidates if type(candidate) is kind]:
            with pytest.raises(InvalidArgumentError, match=rf"{field}\b.*NUL"):
                JobTemplate(**cast("Any", {field: bad}))

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"min_slots": 0}, "min_slots is 0, expected 1 or more"),
            ({"max_slots": -2}, "max_slots is -2, expected 1 or more"),
            ({"min_phys_memory": -1}, "min_phys_memory is -1"),
            ({"min_slots": 3, "max_slots": 2}, "max_slots is 2, below min_slots, which is 3"),
            ({"job_environment": {"": "1"}}, "job_environment has an empty key"),
            ({"job_environment": {"A=": "1"}}, "job_environment has the key 'A='"),
            ({"extensions": {"": "1"}}, "extensions has an empty key"),
            ({"stage_in_files": {"a": ""}}, "stage_in_files\\['a'\\] is empty"),
            ({"resource_limits": {"WALLCLOCK": 1}}, "no limit 'WALLCLOCK': did you mean 'WALLCLOCK_TIME'"),
            ({"resource_limits": {"cpu_time": 1}}, "did you mean 'CPU_TIME'"),
            ({"resource_limits": {"WALLCLOCK_TIME": 0}}, "WALLCLOCK_TIME'\\] is 0, expected a time above 0"),
            ({"resource_limits": {"CPU_TIME": -1}}, "CPU_TIME'\\] is -1"),
            ({"resource_limits": {"OPEN_FILES": -1}}, "OPEN_FILES'\\] is -1, expected 0 or more"),
            ({"start_time": datetime(2030, 1, 1)}, "start_time .* without a time zone"),  # noqa: DTZ001
            (
                {"start_time": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))},
                "start_time .* years 1",
            ),
            (
                {
                    "start_time": datetime(2030, 1, 2, tzinfo=UTC),
                    "deadline_time": datetime(2030, 1, 1, tzinfo=UTC),
                },
                "deadline_time is 2030-01-01 .* before start_time",
            ),
        ],
    )
    def test_values_that_can_never_work_are_refused(self, fields: dict[str, Any], text: str) -> None:
        """An impossible value is an InvalidArgumentError that names the field."""
        with pytest.raises(InvalidArgumentError, match=text):
            JobTemplate(**cast("Any", fields))

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("agrs", "args"),
            ("remoteCommand", "remote_command"),
            ("cpus", "min_slots"),
            ("env", "job_environment"),
            ("cwd", "working_directory"),
            ("name", "job_name"),
            ("image", "job_category"),
            ("stdout", "output_path"),
            ("walltime", 'resource_limits={"WALLCLOCK_TIME": seconds}'),
        ],
    )
    def test_unknown_fields_are_told_with_the_right_name(self, wrong: str, right: str) -> None:
        """A typing mistake and another tool's name both lead to the field, set to None or not."""
        for value in ("1", None):
            with pytest.raises(TypeError) as caught:
                JobTemplate(**cast("Any", {wrong: value}))
            assert str(caught.value) == f"JobTemplate has no field {wrong!r}: did you mean '{right}'?"

    def test_unknown_fields_like_no_other_are_told_with_all_names(self) -> None:
        """A name that resembles nothing is answered with what there is."""
        with pytest.raises(TypeError, match="no field 'zzz': valid are accounting_id, args, "):
            JobTemplate(**cast("Any", {"zzz": 1}))

    def test_fields_are_given_by_name(self) -> None:
        """There is no order of thirty fields to remember."""
        with pytest.raises(TypeError, match="positional"):
            JobTemplate("ls")  # type: ignore[call-arg] # the point of the test


class TestTemplateAsAValue:
    """Equality, hash, copies and changes."""

    def test_is_frozen(self) -> None:
        """No field can be assigned."""
        with pytest.raises(AttributeError):
            EVERYTHING.args = ()  # type: ignore[misc] # the point of the test

    @given(templates)
    def test_equal_content_is_equal_with_equal_hash(self, template: JobTemplate) -> None:
        """A copy by any means is the same value."""
        pickled = pickle.loads(pickle.dumps(template))  # noqa: S301 - our own bytes
        assert template == pickled == copy.copy(template) == copy.deepcopy(template)
        assert len({template, pickled, copy.deepcopy(template)}) == 1

    @given(templates, st.sampled_from(sorted(FIELDS)))
    def test_other_content_is_not_equal(self, template: JobTemplate, field: str) -> None:
        """A template that has one field more is another value."""
        if getattr(template, field) is None:
            assert template != template.replace(**cast("Any", {field: getattr(EVERYTHING, field)})) != EVERYTHING

    def test_replace_changes_some_and_none_unsets(self) -> None:
        """The other fields stay; the original too."""
        changed = EVERYTHING.replace(args=["a"], job_name=None)
        assert (changed.args, changed.job_name, changed.remote_command) == (("a",), None, "python")
        assert EVERYTHING.job_name == "train"

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"args": "ls"}, TypeError, "args is 'ls'"),
            ({"cpus": 2}, TypeError, "did you mean 'min_slots'"),
            ({"min_slots": 5}, InvalidArgumentError, "max_slots is 4, below min_slots, which is 5"),
        ],
    )
    def test_replace_checks_like_the_constructor(self, changes: Any, error: type[Exception], text: str) -> None:
        """A change is checked, also against the fields that stay."""
        with pytest.raises(error, match=text):
            EVERYTHING.replace(**changes)

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in Python 3.13")
    def test_copy_replace_checks_too(self) -> None:
        """Python's own way to change a value is the same as ours."""
        replace = cast("Any", copy).replace
        assert replace(EVERYTHING, args=["a"]) == EVERYTHING.replace(args=["a"])
        with pytest.raises(TypeError, match="args is 'ls'"):
            replace(EVERYTHING, args="ls")


class TestMerging:
    """merged_with: what a template lacks comes from the defaults."""

    def test_own_values_win_and_maps_are_joined(self) -> None:
        """Environment and staging are joined key by key, all else is taken whole."""
        own = JobTemplate(args=["x"], job_environment={"A": "own"}, stage_in_files={"i": "1"}, extensions={"own": "1"})
        defaults = JobTemplate(
            args=["y", "z"],
            job_name="default",
            job_environment={"A": "default", "B": "default"},
            stage_in_files={"i": "2", "j": "2"},
            stage_out_files={"o": "2"},
            extensions={"default": "2"},
        )
        assert own.merged_with(defaults) == JobTemplate(
            args=["x"],
            job_name="default",
            job_environment={"A": "own", "B": "default"},
            stage_in_files={"i": "1", "j": "2"},
            stage_out_files={"o": "2"},
            extensions={"own": "1"},
        )

    @given(templates)
    def test_nothing_is_neutral_on_both_sides(self, template: JobTemplate) -> None:
        """Empty defaults change nothing, and an empty template becomes its defaults."""
        assert template.merged_with(JobTemplate()) is template
        assert JobTemplate().merged_with(template) == template

    @given(templates)
    def test_merging_with_itself_changes_nothing(self, template: JobTemplate) -> None:
        """A template already has all of its own."""
        assert template.merged_with(template) == template

    @given(templates, templates, templates)
    def test_merging_is_associative(self, a: JobTemplate, b: JobTemplate, c: JobTemplate) -> None:
        """Defaults of defaults can be merged in any grouping."""
        assert a.merged_with(b).merged_with(c) == a.merged_with(b.merged_with(c))

    @given(templates, templates)
    def test_every_field_is_own_or_default_or_joined(self, own: JobTemplate, defaults: JobTemplate) -> None:
        """Field by field, the law of the contract; and the result can be hashed."""
        merged = own.merged_with(defaults)
        hash(merged)
        for name in JobTemplate.__struct_fields__:
            mine, theirs = getattr(own, name), getattr(defaults, name)
            expected = theirs if mine is None else mine
            if name in {"job_environment", "stage_in_files", "stage_out_files"} and mine is not None:
                expected = {**(theirs or {}), **mine}
            assert getattr(merged, name) == expected

    def test_values_that_do_not_fit_together_are_refused(self) -> None:
        """A default maximum below the own minimum is told, not dropped."""
        with pytest.raises(InvalidArgumentError, match="max_slots is 2, below min_slots, which is 3"):
            JobTemplate(min_slots=3).merged_with(JobTemplate(max_slots=2))


class TestTemplateJson:
    """JSON with DRMAA2's names."""

    def test_names_and_forms(self) -> None:
        """Every field has its camelCase name; times are RFC 3339 in UTC, limits of time are seconds."""
        assert json.loads(EVERYTHING.to_json()) == EVERYTHING_JSON
        assert JobTemplate.from_json(json.dumps(EVERYTHING_JSON)) == EVERYTHING

    def test_unset_fields_are_left_out_and_null_is_unset(self) -> None:
        """What is not set is not written; null reads as not set."""
        assert JobTemplate(args=()).to_json() == '{"args":[]}'
        assert JobTemplate.from_json('{"args":null,"startTime":null}') == JobTemplate()

    @given(templates)
    def test_round_trip_is_exact(self, template: JobTemplate) -> None:
        """Every template comes back equal, as text and as bytes, also with file names that are not UTF-8."""
        text = template.to_json()
        assert JobTemplate.from_json(text) == template
        assert JobTemplate.from_json(text.encode()) == template

    def test_other_spellings_are_read(self) -> None:
        """DRMAA2's ID and Id are both read."""
        read = JobTemplate.from_json('{"reservationID":"r","accountingID":"a"}')
        assert read == JobTemplate(reservation_id="r", accounting_id="a")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"remoteComand":"x"}', "no field 'remoteComand': did you mean 'remoteCommand'"),
            ('{"remote_command":"x"}', "did you mean 'remoteCommand'"),
            ('{"args":"x"}', "args is 'x'"),
            ('{"minSlots":1.0}', "min_slots is 1.0"),
            ('{"minSlots":true}', "min_slots is True"),
            ('{"minSlots":0}', "min_slots is 0"),
            ('{"jobName":"a\\u0000"}', "job_name contains a NUL"),
            ('{"startTime":"tomorrow"}', "startTime is 'tomorrow', expected a time like 2030"),
            ('{"startTime":"2030-01-01T00:00:00"}', "start_time .* without a time zone"),
            ('{"startTime":5}', "start_time is 5"),
            ('{"resourceLimits":{"CPU_TIME":NaN}}', "CPU_TIME"),
            ("[]", "not an object"),
            ("", "not JSON of JobTemplate"),
            ("{", "not JSON of JobTemplate"),
            (b'{"jobName":"\xff"}', "not JSON of JobTemplate"),
        ],
    )
    def test_mistakes_are_told(self, text: str | bytes, message: str) -> None:
        """Every mistake in a JSON text is an InvalidArgumentError that says where."""
        with pytest.raises(InvalidArgumentError, match=message):
            JobTemplate.from_json(text)


INFO = JobInfo(
    id="7",
    state=JobState.FAILED,
    sub_state="signaled",
    exit_status=137,
    terminating_signal="SIGKILL",
    annotation="killed\0by the system",
    allocated_machines=["n1", "n1"],
    submission_machine="login",
    job_owner="ada",
    slots=2,
    queue_name="gpu",
    wallclock_time=timedelta(seconds=1.5),
    cpu_time=timedelta(seconds=3),
    submission_time=datetime(2030, 1, 1, tzinfo=UTC),
    dispatch_time=datetime(2030, 1, 1, 0, 0, 1, tzinfo=UTC),
    finish_time=datetime(2030, 1, 1, 0, 0, 2, tzinfo=UTC),
    extensions={"host_pid": "12"},
)
INFO_JSON = {
    "id": "7",
    "state": "failed",
    "subState": "signaled",
    "exitStatus": 137,
    "terminatingSignal": "SIGKILL",
    "annotation": "killed\0by the system",
    "allocatedMachines": ["n1", "n1"],
    "submissionMachine": "login",
    "jobOwner": "ada",
    "slots": 2,
    "queueName": "gpu",
    "wallclockTime": 1.5,
    "cpuTime": 3.0,
    "submissionTime": "2030-01-01T00:00:00Z",
    "dispatchTime": "2030-01-01T00:00:01Z",
    "finishTime": "2030-01-01T00:00:02Z",
    "extensions": {"host_pid": "12"},
}


class TestJobInfo:
    """What is known about a job."""

    def test_knows_nothing_by_default(self) -> None:
        """Without facts the state is undetermined and everything else is empty or None."""
        info = JobInfo(id="7")
        assert info.state is JobState.UNDETERMINED
        assert (info.allocated_machines, info.extensions) == ((), {})
        assert {info.exit_status, info.sub_state, info.wallclock_time, info.finish_time} == {None}

    def test_json_names_and_forms(self) -> None:
        """Every field has its camelCase name; durations are seconds, times RFC 3339, the state its name."""
        assert json.loads(INFO.to_json()) == INFO_JSON
        assert JobInfo.from_json(json.dumps(INFO_JSON)) == INFO
        assert len(JobInfo.__struct_fields__) == len(INFO_JSON)

    @given(
        st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=20000)),
        st.sampled_from(JobState),
        st.sampled_from(sorted(SUB_STATES)) | st.none(),
        st.text(characters | escaped_bytes),
    )
    def test_json_round_trip_is_exact(self, span: timedelta, state: JobState, sub_state: Any, words: str) -> None:
        """Durations come back to the microsecond, the rest as it was."""
        info = JobInfo(id="1", state=state, sub_state=sub_state, annotation=words, wallclock_time=span)
        assert JobInfo.from_json(info.to_json()) == info

    def test_is_a_value(self) -> None:
        """Equal facts are equal, hash alike, survive pickling and cannot be changed."""
        assert len({INFO, pickle.loads(pickle.dumps(INFO)), copy.deepcopy(INFO), INFO.replace()}) == 1  # noqa: S301
        with pytest.raises(AttributeError):
            INFO.state = JobState.DONE  # type: ignore[misc] # the point of the test

    def test_replace(self) -> None:
        """Some facts change, the others stay, and changes are checked."""
        assert INFO.replace(state="done").state is JobState.DONE
        with pytest.raises(TypeError, match="JobInfo has no field 'exit_satus': did you mean 'exit_status'"):
            INFO.replace(exit_satus=0)

    @pytest.mark.parametrize(
        ("fields", "error", "text"),
        [
            ({"state": "dnoe"}, InvalidArgumentError, "state is 'dnoe': did you mean 'done'"),
            (
                {"sub_state": "time_out"},
                InvalidArgumentError,
                "sub_state is 'time_out': did you mean 'timeout'",
            ),
            ({"exit_status": "0"}, TypeError, "exit_status is '0'"),
            ({"wallclock_time": "1s"}, TypeError, "wallclock_time is '1s'"),
            ({"finish_time": datetime(2030, 1, 1)}, InvalidArgumentError, "without a time zone"),  # noqa: DTZ001
        ],
    )
    def test_wrong_facts_are_refused(self, fields: dict[str, Any], error: type[Exception], text: str) -> None:
        """A backend's mistake is told at once, by field."""
        with pytest.raises(error, match=text):
            JobInfo(**fields)

    def test_is_compact(self) -> None:
        """Many jobs fit into memory: no dict in each, and what they have in common is kept once."""
        other = JobInfo.from_json(INFO.to_json())
        assert sys.getsizeof(INFO) < 200
        assert not hasattr(INFO, "__dict__")
        assert other.job_owner is INFO.job_owner
        assert other.allocated_machines[0] is INFO.allocated_machines[0]


class TestMapText:
    """map_text: one function over every text of a template."""

    def test_text_fields_are_those_that_hold_text(self) -> None:
        """Strings, lists and maps of strings; no flags, numbers, times or limits."""
        assert " ".join(name for name in JobTemplate.__struct_fields__ if name not in TEXT_FIELDS) == (
            "submit_as_hold rerunnable email_on_started email_on_terminated join_files min_slots max_slots "
            "priority min_phys_memory start_time deadline_time resource_limits"
        )
        assert set(TEXT_FIELDS) < set(JobTemplate.__struct_fields__)

    @given(templates)
    def test_nothing_changed_is_the_same_object(self, template: JobTemplate) -> None:
        """A function that changes nothing costs no new template."""
        assert map_text(template, "".join) is template

    @given(templates)
    def test_every_text_is_reached(self, template: JobTemplate) -> None:
        """What the function returns stands in place of every text, keys too, and nothing else changes."""
        mapped = map_text(template, lambda text: f"<{text}>")
        for name in FIELDS:
            before, after = getattr(template, name), getattr(mapped, name)
            assert after == (_bracketed(before) if name in TEXT_FIELDS else before)

    def test_fields_narrow_it(self) -> None:
        """Only the named fields are touched."""
        changed = map_text(EVERYTHING, str.upper, {"args", "job_environment"})
        assert changed == EVERYTHING.replace(args=["TRAIN.PY"], job_environment={"LR": "0.1"})

    def test_the_result_is_checked(self) -> None:
        """A text that the field cannot hold is refused as ever."""
        with pytest.raises(InvalidArgumentError, match="'A='"):
            map_text(JobTemplate(job_environment={"A": "1"}), lambda text: text.replace("A", "A="))

    def test_keys_may_not_fall_together(self) -> None:
        """Two keys that become one would lose a value: refused by field."""
        with pytest.raises(InvalidArgumentError, match="extensions: two keys become one"):
            map_text(JobTemplate(extensions={"a": "1", "b": "2"}), lambda _: "x")


def _bracketed(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value if value is None else f"<{value}>"
    if isinstance(value, Mapping):
        return {f"<{key}>": f"<{text}>" for key, text in value.items()}
    return tuple(f"<{item}>" for item in value)


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.title() for word in rest)
