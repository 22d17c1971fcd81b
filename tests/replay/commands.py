"""The commands of PBS, Torque, LSF and Flux, as far as they are used: they run scripts as processes of this machine.

A program by itself, started as `python commands.py SPOOL DIALECT COMMAND ARGUMENT…`. Each submission has a runner, a
process that starts its script, once or once for each element, obeys through a socket, and writes down what happens; the
files outlive it, as a scheduler's records do. What a real command would not understand is an error here too.
"""

# ruff: noqa: T201 - commands print

from __future__ import annotations

import contextlib
import fcntl
import getopt
import json
import os
import pwd
import re
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

SLOTS = 64
"""Elements of one array that run at once."""
KILL_DELAY = 1.0
"""Seconds between SIGTERM and SIGKILL."""
SERVER = "replay"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
SPOOL = Path()
DIALECT = ""
Json = dict[str, Any]


class RefusedError(Exception):
    """What a command says when it does not do it, and its exit status."""

    def __init__(self, words: str, status: int = 1) -> None:
        super().__init__(words)
        self.status = status


# -- the runner --


class Runner:
    """One submission: a job, or an array."""

    def __init__(self, spec: Json) -> None:
        now = time.time()
        self.spec = spec
        self.elements: dict[str, Json] = {
            str(number): {"state": "H" if spec["held"] else "Q", "submitted": now, "started": None, "ended": None,
                          "status": None, "cause": None, "cpu": 0.0, "pid": None, "memory": 0}
            for number in spec["numbers"]
        }  # fmt: skip
        self.by_pid: dict[int, str] = {}
        self.kill_at: dict[str, float] = {}
        self.changed = True

    def run(self, ready: int) -> None:
        """Until all has ended."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)
        path = _socket(self.spec["id"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(64)
            self._write()
            os.close(ready)
            while any(one["state"] != "F" for one in self.elements.values()):
                if not SPOOL.is_dir():  # the tests are over
                    for pid in self.by_pid:
                        _signal(pid, signal.SIGKILL)
                    return
                self._start()
                self._write()
                heard = select.select([listener.fileno(), wake_read], [], [], self._patience())[0]
                if wake_read in heard:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                if listener.fileno() in heard:
                    self._obey(listener)
                self._reap()
                self._limit()
            self._write()
            os.unlink(path)

    def _patience(self) -> float:
        times: list[float] = [*self.kill_at.values(), *([self.spec["begin"]] if self.spec["begin"] else [])]
        if self.spec["limit"]:
            times += [one["started"] + self.spec["limit"] for one in self.elements.values() if one["state"] == "R"]
        return max(0.01, min([2.0, *(at - time.time() for at in times if at)]))

    def _start(self) -> None:
        if self.spec["begin"] and time.time() < self.spec["begin"]:
            return
        self.spec["begin"] = None
        room = min(self.spec["max"] or SLOTS, SLOTS) - len(self.by_pid)
        for number, one in self.elements.items():
            if room <= 0:
                break
            if one["state"] == "Q":
                self._launch(number, one)
                room -= 1

    def _launch(self, number: str, one: Json) -> None:
        env = dict(self.spec["env"])
        if number:
            env[self.spec["variable"]] = number
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for sig in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
                signal.signal(sig, signal.SIG_DFL)
            null, log = os.open("/dev/null", os.O_RDONLY), self.spec["log"] or "/dev/null"
            words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for source, target in ((null, 0), (words, 1), (words, 2)):
                os.dup2(source, target)
            os.closerange(3, 64)
            os.chdir(self.spec["home"])
            os.execve(self.spec["program"], self.spec["argv"], env)
        one.update(state="R", started=time.time(), pid=pid)
        self.by_pid[pid] = number
        self.changed = True

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            one = self.elements[self.by_pid.pop(pid)]
            _signal(pid, signal.SIGKILL)  # what the script has left in its group
            one.update(state="F", ended=time.time(), status=status, cpu=usage.ru_utime + usage.ru_stime,
                       memory=usage.ru_maxrss)  # fmt: skip
            self.changed = True

    def _limit(self) -> None:
        now = time.time()
        for number, one in self.elements.items():
            over = self.spec["limit"] and one["state"] == "R" and now > one["started"] + self.spec["limit"]
            if over and not one["cause"]:
                one["cause"] = "walltime"
                self._end(number, one)
            if self.kill_at.get(number, now + 1) <= now and one["state"] != "F":
                del self.kill_at[number]
                _signal(one["pid"], signal.SIGKILL)

    def _end(self, number: str, one: Json) -> None:
        _signal(one["pid"], signal.SIGTERM)
        _signal(one["pid"], signal.SIGCONT)
        self.kill_at[number] = time.time() + KILL_DELAY

    def _obey(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            wish = json.loads(connection.recv(65536))
            self._reap()
            numbers = [wish["number"]] if wish["number"] is not None else list(self.elements)
            done = [self._do(number, wish["do"]) for number in numbers if number in self.elements]
            self._write()
            connection.send(json.dumps({"done": any(done)}).encode())

    def _do(self, number: str, what: str) -> bool:
        one = self.elements[number]
        state = one["state"]
        self.changed = True
        if state == "F":
            return False
        if what in ("delete", "kill"):
            one["cause"] = one["cause"] or "deleted"
            if one["pid"] is None:
                one.update(state="F", ended=time.time())
            elif what == "kill":
                _signal(one["pid"], signal.SIGKILL)
            else:
                self._end(number, one)
            return True
        if what == "signal" and one["pid"]:
            _signal(one["pid"], signal.SIGKILL)
        elif what == "suspend" and state == "R":
            _signal(one["pid"], signal.SIGSTOP)
            one["state"] = "S"
        elif what == "resume" and state == "S":
            _signal(one["pid"], signal.SIGCONT)
            one["state"] = "R"
        elif what == "hold" and state in "QH":
            one["state"] = "H"
        elif what == "release" and state in "QH":
            one["state"] = "Q"
        else:
            return False
        return True

    def _write(self) -> None:
        if self.changed:
            _store(self.spec["id"], {"spec": self.spec, "elements": self.elements})
            self.changed = False


def _signal(pid: int | None, number: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


# -- the spool --


def _socket(id: int) -> str:
    return str(SPOOL / f"{id}.socket")


def _store(id: int, said: Json) -> None:
    path = SPOOL / f"{id}.json"
    with contextlib.suppress(FileNotFoundError):
        path.with_suffix(".new").write_text(json.dumps(said), encoding="utf-8")
        path.with_suffix(".new").rename(path)


def _load(id: int) -> Json | None:
    try:
        found: Json = json.loads((SPOOL / f"{id}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _all() -> list[Json]:
    return [said for id in sorted(int(path.stem) for path in SPOOL.glob("*.json")) if (said := _load(id))]


def _submit(spec: Json) -> int:
    """Start a runner; the new job's number."""
    with (SPOOL / "next").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        id = int(file.read() or 100) + 1
        file.truncate(0)
        file.write(str(id))
    spec["id"] = id
    spec["env"] = {name: value.replace("@ID@", str(id)) for name, value in spec["env"].items()}
    wait, ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(wait)
        null = os.open("/dev/null", os.O_RDWR)
        trouble = os.open(str(SPOOL / f"{id}.trouble"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((null, 0), (null, 1), (trouble, 2)):
            os.dup2(source, target)
        if os.fork() == 0:
            Runner(spec).run(ready)
        os._exit(0)
    os.close(ready)
    os.wait()
    os.read(wait, 1)
    return id


def _tell(id: int, number: str | None, what: str) -> bool:
    """Tell a runner what to do; whether it could be done to any."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(_socket(id))
            connection.send(json.dumps({"number": number, "do": what}).encode())
            return bool(json.loads(connection.recv(65536) or b'{"done": false}')["done"])
        except (FileNotFoundError, ConnectionError):
            return False


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _login() -> dict[str, str]:
    """What every job has."""
    one = pwd.getpwuid(os.getuid())
    return {"HOME": one.pw_dir, "LOGNAME": one.pw_name, "USER": one.pw_name, "SHELL": "/bin/sh",
            "PATH": "/usr/local/bin:/usr/bin:/bin"}  # fmt: skip


def _spec(**given: object) -> Json:
    return {"numbers": [""], "array": False, "max": None, "limit": None, "begin": None, "held": False, "log": None,
            "variable": "", "home": "/", "queue": "", "user": _user(), "text": "", **given}  # fmt: skip


def _options(command: str, arguments: list[str], short: str, long: tuple[str, ...] = ()) -> tuple[Json, list[str]]:
    """Options, each with all that was given for it; anything else is an error."""
    try:
        pairs, rest = getopt.getopt(arguments, short, list(long))
    except getopt.GetoptError as error:
        raise RefusedError(f"{command}: {error}\nusage: {command} [-{short}] ...", 2) from error
    found: Json = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found, rest


def _need(*, right: object, words: str, status: int = 1) -> None:
    if not right:
        raise RefusedError(words, status)


def _seconds(text: str) -> int:
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def _moment(text: str, form: str, refusal: str) -> float:
    try:
        return time.mktime(time.strptime(text, form))
    except ValueError:
        raise RefusedError(refusal) from None


def _code(one: Json) -> int:
    return os.waitstatus_to_exitcode(one["status"])


# -- PBS --

TORQUE_STATES = {"F": "C"}
PBS_ID = re.compile(r"(\d+)(\[(\d*)\])?(\.replay)?\Z")
PBS_RESOURCES = {
    "openpbs": re.compile(r"(select|place|walltime|mem|ncpus|cput)=(.+)"),
    "torque": re.compile(r"(nodes|walltime|mem|pmem|cput|procs|naccesspolicy)=(.+)"),
}
PBS_CHUNK = re.compile(r"\d+(:(ncpus|mpiprocs|ngpus|ompthreads)=\d+|:mem=\d+kb|:host=[\w.-]+)*")
TORQUE_NODES = re.compile(r"[\w.-]+(:ppn=\d+)?(:gpus=\d+)?")


def qsub(arguments: list[str]) -> None:
    """Submit a script."""
    openpbs = DIALECT == "openpbs"
    if arguments == ["--version"]:
        return _version()
    short = "a:A:c:C:e:hj:k:l:m:M:N:o:p:q:r:S:u:v:VW:z" + ("fGJ:P:R:X" if openpbs else "b:d:D:fF:nt:T:w:x")
    given, rest = _options("qsub", arguments, short)
    last = {name: values[-1] for name, values in given.items()}
    _need(right=len(rest) == 1 and Path(rest[0]).is_file(), words=f"qsub: script file: {rest}")
    _need(right=re.fullmatch(r"[A-Za-z0-9]\S*", last.get("-N", "x")), words="qsub: illegal -N value", status=2)
    _need(right=re.fullmatch(r"n|[abe]+", last.get("-m", "a")), words="qsub: illegal -m value", status=2)
    _need(right=-1024 <= int(last.get("-p", "0")) <= 1023, words="qsub: illegal -p value", status=2)
    _need(right=last.get("-r", "y") in ("y", "n"), words="qsub: illegal -r value", status=2)
    _need(right=last.get("-j", "n") in ("oe", "eo", "n"), words="qsub: illegal -j value", status=2)
    array = last.get("-J" if openpbs else "-t")
    _need(right=not (openpbs and array and "-r" in last and last["-r"] == "n"), words="qsub: array jobs are rerunnable")
    numbers, most = _pbs_numbers(array) if array else ([""], None)
    limit = None
    for resource in given.get("-l", []):
        found = PBS_RESOURCES[DIALECT].fullmatch(resource)
        _need(right=found, words=f"qsub: Unknown resource  Resource_List.{resource.partition('=')[0]}", status=167)
        name, value = resource.split("=", 1)
        wrong = (name == "select" and not PBS_CHUNK.fullmatch(value)) or (
            name == "nodes" and not TORQUE_NODES.fullmatch(value)
        )
        _need(right=not wrong, words=f"qsub: Illegal attribute or resource value Resource_List.{name}", status=168)
        limit = _seconds(value) if name == "walltime" else limit
    variables = dict(part.split("=", 1) for value in given.get("-v", []) for part in value.split(","))
    outer = {name: value for name, value in os.environ.items() if name != "PATH"} if "-V" in given else {}
    begin = _moment(last["-a"], "%Y%m%d%H%M.%S", "qsub: illegal -a value") if "-a" in last else None
    own = {"PBS_O_WORKDIR": os.getcwd(), "PBS_JOBID": f"@ID@.{SERVER}", "PBS_ENVIRONMENT": "PBS_BATCH"}
    copied = SPOOL / f"script-{os.getpid()}-{time.time_ns()}"
    copied.write_bytes(Path(rest[0]).read_bytes())
    spec = _spec(
        numbers=numbers, array=array is not None, max=most, limit=limit, begin=begin, held="-h" in given,
        log=last.get("-o"), program=last.get("-S", "/bin/sh"), argv=["-sh", str(copied)],
        env={**_login(), **outer, **variables, **own}, home=pwd.getpwuid(os.getuid()).pw_dir,
        variable="PBS_ARRAY_INDEX" if openpbs else "PBS_ARRAYID",
        name=last.get("-N", Path(rest[0]).name), queue=last.get("-q", "workq"),
        text=",".join(f"{name}={value}" for name, value in {"PBS_O_HOME": "/", **variables}.items()),
    )  # fmt: skip
    print(f"{_submit(spec)}{'[]' if array else ''}.{SERVER}")
    return None


def _version() -> None:
    if DIALECT == "openpbs":
        print("pbs_version = 23.06.06")
    else:
        print("Version: 6.1.2\nCommit: 661e092552de43a785c15d39a3634a541d86898e", file=sys.stderr)


def _pbs_numbers(text: str) -> tuple[list[str], int | None]:
    text, _, most = text.partition("%")
    if DIALECT == "openpbs":
        found = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text)
        _need(right=found and int(found[1]) < int(found[2]), words="qsub: illegal -J value", status=2)
        assert found is not None
        numbers = range(int(found[1]), int(found[2]) + 1, int(found[3] or 1))
        _need(right=len(numbers) <= 10000, words="qsub: Array job exceeds server or queue size limit", status=216)
        return [str(n) for n in numbers], int(most) if most else None
    _need(right=re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text), words="qsub: illegal -t value", status=2)
    found_numbers: list[str] = []
    for part in text.split(","):
        begin, _, end = part.partition("-")
        found_numbers += [str(n) for n in range(int(begin), int(end or begin) + 1)]
    return found_numbers, int(most) if most else None


def _pbs_state(said: Json, one: Json) -> str:
    state = one["state"]
    if state == "Q" and said["spec"]["begin"]:
        return "W"
    if state == "F":
        if DIALECT == "torque":
            return "C"
        return "X" if said["spec"]["array"] and _pbs_parent(said) != "F" else "F"
    return str(state)


def _pbs_parent(said: Json) -> str:
    states = {one["state"] for one in said["elements"].values()}
    if states == {"F"}:
        return "F" if DIALECT == "openpbs" else "C"
    if states <= {"Q", "H"}:
        return "H" if states == {"H"} else "Q"
    return "B" if DIALECT == "openpbs" else "R"


def qstat(arguments: list[str]) -> None:
    """List jobs, in the table or the long form."""
    if arguments == ["--version"]:
        return _version()
    arguments = [argument for argument in arguments if argument != "-1"]
    given, ids = _options("qstat", arguments, "afiHJnpQqrstTu:wxBE" if DIALECT == "openpbs" else "aefinqQrRstu:xBcC")
    if "-B" in given:
        print(f"Server: {SERVER}\n    server_state = Active\n    scheduling = True\n    max_array_size = 10000"
              f"\n    max_job_array_size = 100000\n")  # fmt: skip
        return None
    _need(right=not ("-w" in given and not set(given) & {"-a", "-n", "-s", "-f"}), words="qstat: -w", status=2)
    _need(right=not ("-f" in given and "-u" in given), words="usage: qstat", status=2)
    history = "-x" in given or DIALECT == "torque"
    rows: list[tuple[str, Json, Json | None]] = []
    status = 0
    for said, number, id in _pbs_wanted(ids):
        if said is None:
            print(f"qstat: Unknown Job Id {id}.{SERVER}", file=sys.stderr)
            status = 153
            continue
        over = _pbs_parent(said) in "FC"
        if over and not history:
            if ids:
                words = f"qstat: {id}.{SERVER} Job has finished, use -x or -H to obtain historical job information"
                print(words, file=sys.stderr)
                status = 35
            continue
        rows += _pbs_rows(said, number, expand="-t" in given)
    users = given.get("-u", [_user()])[-1].split(",")
    if _user() in users and rows:
        (_pbs_long if "-f" in given else _pbs_table)(rows)
    sys.exit(status)


def qselect(arguments: list[str]) -> None:
    """The ids of a user's jobs."""
    given, rest = _options("qselect", arguments, "u:x" if DIALECT == "openpbs" else "u:")
    _need(right=not rest, words="qselect: usage", status=2)
    for said in _all():
        history = "-x" in given or DIALECT == "torque"
        if given["-u"] == [_user()] and (history or _pbs_parent(said) not in "FC"):
            print(f"{said['spec']['id']}{'[]' if said['spec']['array'] else ''}.{SERVER}")


def _pbs_wanted(ids: list[str]) -> list[tuple[Json | None, str | None, str]]:
    if not ids:
        return [(said, None, "") for said in _all()]
    wanted = []
    for id in ids:
        found = PBS_ID.match(id)
        _need(right=found, words=f"illegally formed job identifier: {id}")
        assert found is not None
        said = _load(int(found[1]))
        known = said is not None and bool(found[2]) == said["spec"]["array"]
        wanted.append((said if known else None, found[3] or None, id))
    return wanted


def _pbs_rows(said: Json, number: str | None, *, expand: bool) -> list[tuple[str, Json, Json | None]]:
    id = said["spec"]["id"]
    if not said["spec"]["array"]:
        return [(f"{id}.{SERVER}", said, said["elements"][""])]
    if number is not None:
        return [(f"{id}[{number}].{SERVER}", said, said["elements"][number])] if number in said["elements"] else []
    rows: list[tuple[str, Json, Json | None]] = [(f"{id}[].{SERVER}", said, None)]
    if expand:
        elements = [(f"{id}[{number}].{SERVER}", said, one) for number, one in said["elements"].items()]
        rows = [*rows, *elements] if DIALECT == "openpbs" else list(elements)
    return rows


def _pbs_table(rows: list[tuple[str, Json, Json | None]]) -> None:
    print(f"\n{SERVER}: ")
    print(f"{'':103}Req'd  Req'd   Elap")
    print("Job ID                         Username        Queue           Jobname         SessID   NDS  TSK   Memory"
          " Time  S Time")  # fmt: skip
    print(f"{'-' * 30} {'-' * 15} {'-' * 15} {'-' * 15} {'-' * 8} ---- ----- ------ ----- - -----")
    for id, said, one in rows:
        spec = said["spec"]
        state = _pbs_state(said, one) if one else _pbs_parent(said)
        runs = state in "RSE"
        print(f"{id:30.30} {spec['user']:15.15} {spec['queue']:15.15} {spec['name']:15.15} "
              f"{(one or {}).get('pid') or '--':>8} {1:4} {1:5} {'--':>6} {'--':>5} {state} "
              f"{'00:00' if runs else '--':>5} {'replay01/0' if runs else '--'} ")  # fmt: skip


def _pbs_date(moment: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(moment))


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _pbs_long(rows: list[tuple[str, Json, Json | None]]) -> None:
    openpbs = DIALECT == "openpbs"
    for id, said, one in rows:
        spec = said["spec"]
        state = _pbs_state(said, one) if one else _pbs_parent(said)
        first = next(iter(said["elements"].values()))
        pairs = [("Job_Name", spec["name"]), ("Job_Owner", f"{spec['user']}@{SERVER}")]
        if one and one["started"]:
            spent = (one["ended"] or time.time()) - one["started"]
            pairs += [("resources_used.cput", _clock(one["cpu"])), ("resources_used.mem", f"{one['memory']}kb")]
            pairs += [("resources_used.ncpus", "1")] if openpbs else []
            pairs += [("resources_used.walltime", _clock(spent))]
        pairs += [("job_state", state), ("queue", spec["queue"]), ("server", SERVER), ("Checkpoint", "u")]
        pairs += [("ctime", _pbs_date(first["submitted"]))]
        if one and one["started"]:
            pairs += [("exec_host", "replay01/0")]
        pairs += [("Hold_Types", "u" if state == "H" else "n"), ("Join_Path", "oe"), ("Keep_Files", "n")]
        pairs += [("mtime", _pbs_date((one or first)["ended"] or time.time()))]
        pairs += [("Output_Path", f"{SERVER}:{spec['log']}"), ("Priority", "0"), ("Resource_List.ncpus", "1")]
        if spec["limit"]:
            pairs += [("Resource_List.walltime", _clock(spec["limit"]))]
        if one and one["started"]:
            pairs += [("stime" if openpbs else "start_time", _pbs_date(one["started"]))]
        substate = {None: "92", "deleted": "91", "walltime": "93"}[(one or first)["cause"]]
        pairs += [("substate", substate if state in "FX" else "42")] if openpbs else []
        pairs += [("Variable_List", spec["text"])]
        if one and one["state"] == "F":
            pairs += _pbs_end(one)
        print(f"Job Id: {id}")
        for name, value in pairs:
            print(_folded(f"    {name} = {value}"))
        print()


def _pbs_end(one: Json) -> list[tuple[str, str]]:
    openpbs = DIALECT == "openpbs"
    found = [] if openpbs or not one["started"] else [("comp_time", _pbs_date(one["ended"]))]
    if one["started"]:
        code = _code(one)
        status = code if code >= 0 else 256 - code
        if one["cause"] == "walltime":
            status = -29 if openpbs else -11
        found += [("Exit_status" if openpbs else "exit_status", str(status))]
    elif not openpbs:
        found += [("exit_status", "271")]
    words = {None: "finished", "deleted": "terminated", "walltime": "exceeded resource walltime"}[one["cause"]]
    at = time.strftime("%a %b %d at %H:%M", time.localtime(one["started"] or one["ended"]))
    return [*found, ("comment", f"Job run at {at} on (replay01:ncpus=1) and {words}")]


def _folded(line: str) -> str:
    parts = [line[:78]]
    rest = line[78:]
    while rest:
        parts.append(rest[:70])
        rest = rest[70:]
    return "\n\t".join(parts)


def _pbs_do(command: str, what: str, ids: list[str], refusal: str = "") -> None:
    status = 0
    _need(right=ids, words=f"usage: {command}", status=2)
    for said, number, id in _pbs_wanted(ids):
        if said is None:
            print(f"{command}: Unknown Job Id {id}.{SERVER}", file=sys.stderr)
            status = 153
        elif what in ("hold", "release") and number is not None and DIALECT == "openpbs":
            print(f"{command}: Operation not allowed on a subjob {id}", file=sys.stderr)
            status = 1
        elif not _tell(said["spec"]["id"], number if said["spec"]["array"] else "", what):
            over = DIALECT == "openpbs" and _pbs_parent(said) == "F"
            words = "Job has finished" if over else refusal or "Request invalid for state of job"
            print(f"{command}: {words} {id}", file=sys.stderr)
            status = 35 if over else 170
    sys.exit(status)


def qdel(arguments: list[str]) -> None:
    """Delete jobs."""
    given, ids = _options("qdel", arguments, "W:x" if DIALECT == "openpbs" else "am:pt:W:")
    _need(right="-W" not in given, words="qdel: -W", status=2)
    _pbs_do("qdel", "delete", ids)


def qhold(arguments: list[str]) -> None:
    """Hold jobs that wait."""
    _pbs_do("qhold", "hold", _options("qhold", arguments, "h:t:")[1])


def qrls(arguments: list[str]) -> None:
    """Release them."""
    _pbs_do("qrls", "release", _options("qrls", arguments, "h:t:")[1])


def qsig(arguments: list[str]) -> None:
    """Suspend, resume and kill; other signals are not replayed."""
    given, ids = _options("qsig", arguments, "s:")
    signals = {"suspend": "suspend", "resume": "resume", "SIGKILL": "signal"}
    _need(right=given.get("-s", [""])[0] in signals, words="qsig: unknown signal", status=2)
    _pbs_do("qsig", signals[given["-s"][0]], ids)


def qalter(arguments: list[str]) -> None:
    """Change jobs: not replayed."""
    raise RefusedError(f"qalter: {arguments}")


# -- LSF --

LSF_FIELDS = {
    "jobid", "jobindex", "stat", "exit_code", "exit_reason", "queue", "slots", "exec_host", "submit_time", "start_time",
    "finish_time", "cpu_used", "run_time", "max_mem", "job_description", "pend_reason", "job_name", "user", "command",
}  # fmt: skip
LSF_ID = re.compile(r"(\d+)(?:\[(\d+)\])?\Z")
LSF_BSUB = {  # with what follows
    "-J": r"[^\s\[]+(\[\d+(-\d+)?(:\d+)?\](%\d+)?)?", "-Jd": r".*", "-o": r"/.*", "-env": r"none|all", "-w": r".+",
    "-n": r"\d+(,\d+)?", "-R": r"(span|rusage)\[.+\]", "-M": r"\d+(KB|MB|GB)", "-W": r"(\d+:)?\d+", "-m": r".+",
    "-gpu": r"num=\d+.*", "-q": r"\S+", "-P": r"\S+", "-U": r"\S+", "-sp": r"[1-9]\d*", "-u": r".+",
    "-b": r"\d{4}(:\d\d){4}",
}  # fmt: skip
LSF_FLAGS = {"-r", "-rn", "-x", "-B", "-N", "-H"}


def bsub(arguments: list[str]) -> None:
    """Submit a command line."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in LSF_FLAGS:
            given[option] = ""
            continue
        _need(right=option in LSF_BSUB and rest, words=f"{option}: Bad option. Job not submitted.", status=255)
        value = rest.pop(0)
        _need(right=re.fullmatch(LSF_BSUB[option], value),
              words=f"{value}: Bad argument of {option}. Job not submitted.", status=255)  # fmt: skip
        given[option] = value
    _need(right=rest, words="No command is specified. Job not submitted.", status=255)
    name, bracket, indexes = given.get("-J", "").partition("[")
    numbers, most = [""], None
    if bracket:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?\](?:%(\d+))?", indexes)
        assert found is not None
        span = range(int(found[1]), int(found[2] or found[1]) + 1, int(found[3] or 1))
        _need(right=span and span[0] > 0 and span[-1] <= 1000,
              words="Job array index too large. Job not submitted.", status=255)  # fmt: skip
        numbers, most = [str(n) for n in span], int(found[4]) if found[4] else None
    bad = "Bad host name, host group name or cluster name. Job not submitted."
    for host in given.get("-m", "").split():
        _need(right=host in ("replay01", socket.gethostname()),
              words=f"{host}: {bad}", status=255)  # fmt: skip
    outer = {} if given.get("-env") == "none" else dict(os.environ)
    queue = given.get("-q", "normal")
    hour, _, minute = given.get("-W", "").rpartition(":")
    spec = _spec(
        numbers=numbers, array=bool(bracket), max=most, held="-H" in given, log=given.get("-o"), name=name, queue=queue,
        limit=60 * (60 * int(hour or 0) + int(minute)) if minute else None,
        begin=_moment(given["-b"], "%Y:%m:%d:%H:%M", "Bad time") if "-b" in given else None,
        program="/bin/sh", argv=["/bin/sh", "-c", " ".join(rest)], text=given.get("-Jd", ""), variable="LSB_JOBINDEX",
        env={**outer, **_login(), "LSB_JOBID": "@ID@", "LSB_QUEUE": queue, "LSB_JOBINDEX": "0"},
    )  # fmt: skip
    default = "" if "-q" in given else "default "
    print(f"Job <{_submit(spec)}> is submitted to {default}queue <{queue}>.")


def _lsf_fields(said: Json, number: str, one: Json) -> dict[str, str]:
    spec, state = said["spec"], one["state"]
    ended = state == "F"
    code = _code(one) if ended and one["status"] is not None else None
    code = 128 - code if code is not None and code < 0 else code
    stat = {"Q": "PEND", "H": "PSUSP", "R": "RUN", "S": "USUSP"}.get(state, "DONE" if code == 0 else "EXIT")
    if one["cause"] and ended:
        stat = "EXIT"
    reasons = {"deleted": "TERM_OWNER: job killed by owner",
               "walltime": "TERM_RUNLIMIT: job killed after reaching LSF run time limit"}  # fmt: skip
    host = "replay01" if one["started"] else "-"

    def date(moment: float | None) -> str:
        return time.strftime("%b %e %H:%M", time.localtime(moment)) if moment else "-"

    return {
        "jobid": str(spec["id"]),
        "jobindex": number or "0",
        "stat": stat,
        "exit_code": str(code) if stat == "EXIT" and code else "-",
        "exit_reason": reasons.get(one["cause"] or "", "-") if ended else "-",
        "queue": spec["queue"],
        "slots": "1",
        "exec_host": host,
        "submit_time": date(one["submitted"]),
        "start_time": date(one["started"]),
        "finish_time": date(one["ended"]),
        "cpu_used": f"{one['cpu']:.1f} second(s)" if one["started"] else "-",
        "run_time": f"{int((one['ended'] or time.time()) - one['started']) if one['started'] else 0} second(s)",
        "max_mem": f"{one['memory'] // 1024} Mbytes" if one["memory"] >= 1024 else "-",
        "job_description": spec["text"] or "-",
        "pend_reason": "New job is waiting for scheduling;" if state == "Q" else "-",
        "job_name": spec["name"] + (f"[{number}]" if number else ""),
        "user": spec["user"],
        "command": " ".join(spec["argv"]),
    }


def bjobs(arguments: list[str]) -> None:
    """List jobs, with the fields that are asked for."""
    rest, given = list(arguments), {}
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        _need(right=option in ("-noheader", "-a", "-u", "-o"), words=f"{option}: Bad option", status=255)
        given[option] = rest.pop(0) if option in ("-u", "-o") else ""
    found = re.fullmatch(r"([a-z_ ]+?) delimiter='(.)'", given.get("-o", ""))
    _need(right=found, words="Bad -o format", status=255)
    assert found is not None
    fields = found[1].split()
    _need(right=set(fields) <= LSF_FIELDS, words=f"Unknown field in {fields}", status=255)
    shown, status = 0, 0
    for said, number, id in _lsf_wanted(rest):
        elements = [] if said is None else [(n, one) for n, one in said["elements"].items() if number in (None, n)]
        if said is None or not elements:
            print(f"Job <{id}> is not found", file=sys.stderr)
            status = 255
            continue
        for n, one in elements:
            if rest or "-a" in given or one["state"] != "F":
                shown += 1
                values = _lsf_fields(said, n, one)
                print(found[2].join(values[field] for field in fields))
    if not shown and not rest:
        print("No unfinished job found", file=sys.stderr)
        status = 255
    sys.exit(status)


def _lsf_wanted(ids: list[str]) -> list[tuple[Json | None, str | None, str]]:
    if not ids:
        return [(said, None, "") for said in _all()]
    found = []
    for id in ids:
        match = LSF_ID.match(id)
        _need(right=match, words=f"{id}: Illegal job ID.", status=255)
        assert match is not None
        found.append((_load(int(match[1])), match[2], id))
    return found


def _lsf_do(what: tuple[str, ...], ids: list[str], done: str) -> None:
    status = 0
    _need(right=ids, words="Job ID is not given", status=255)
    for said, number, id in _lsf_wanted(ids):
        if said is None:
            print(f"Job <{id}>: No matching job found", file=sys.stderr)
            status = 255
        elif any([_tell(said["spec"]["id"], number if said["spec"]["array"] else "", one) for one in what]):  # noqa: C419 - all
            print(f"Job <{id}> is being {done}")
        else:
            print(f"Job <{id}>: Job has already finished", file=sys.stderr)
            status = 255
    sys.exit(status)


def bkill(arguments: list[str]) -> None:
    """End jobs."""
    given, ids = _options("bkill", arguments, "s:")
    _need(right=given.get("-s", ["KILL"]) == ["KILL"], words="Bad signal", status=255)
    _lsf_do(("kill",) if "-s" in given else ("delete",), ids, "terminated")


def bstop(arguments: list[str]) -> None:
    """Suspend what runs, hold what waits."""
    _lsf_do(("suspend", "hold"), _options("bstop", arguments, "")[1], "stopped")


def bresume(arguments: list[str]) -> None:
    """Resume and release."""
    _lsf_do(("resume", "release"), _options("bresume", arguments, "")[1], "resumed")


def bparams(arguments: list[str]) -> None:
    """The configuration."""
    _need(right=arguments in (["-a"], ["-l"]), words="bparams: Bad option", status=255)
    print("lsb.params configuration at Sat Nov 21 10:00:00 2026\n    MBD_SLEEP_TIME = 10\n"
          "    MBD_REFRESH_TIME = 5\n    CLEAN_PERIOD = 3600\n    MAX_JOB_ARRAY_SIZE = 1000\n")  # fmt: skip


# -- Flux --

FLUX_SUBMIT = {
    "job-name", "setattr", "output", "error", "env-remove", "env", "ntasks", "cores-per-task", "gpus-per-task",
    "time-limit", "urgency", "queue", "bank", "requires", "begin-time", "dependency", "signal", "cwd",
}  # fmt: skip
FLUX_BATCH = (FLUX_SUBMIT - {"ntasks", "cores-per-task", "gpus-per-task"}) | {
    "nodes", "nslots", "cores-per-slot", "gpus-per-slot",
}  # fmt: skip


def flux(arguments: list[str]) -> None:
    """The subcommands."""
    known = {"submit": _flux_submit, "batch": _flux_submit, "jobs": _flux_jobs, "cancel": _flux_cancel,
             "job": _flux_job}  # fmt: skip
    _need(right=arguments and arguments[0] in known, words=f"flux: '{arguments[:1]}' is not a flux command.")
    if arguments[0] == "batch":
        return _flux_submit(arguments[1:], batch=True)
    return known[arguments[0]](arguments[1:])


def _flux_id(number: int) -> str:
    value, text = number << 24, ""
    while value:
        value, digit = divmod(value, 58)
        text = BASE58[digit] + text
    plain = os.environ.get("FLUX_F58_FORCE_ASCII") or "UTF-8" not in os.environ.get("LC_ALL", "")
    return f"{'f' if plain else 'ƒ'}{text}"


def _flux_number(id: str) -> int:
    _need(right=re.fullmatch(rf"[fƒ][{BASE58}]+", id), words=f"flux: error: invalid JobID: {id}")
    value = 0
    for letter in id[1:]:
        value = 58 * value + BASE58.index(letter)
    return value >> 24


def _flux_submit(arguments: list[str], *, batch: bool = False) -> None:
    names = FLUX_BATCH if batch else FLUX_SUBMIT
    long = [f"{name}=" for name in sorted(names)] + (["exclusive"] if batch else [])
    try:
        pairs, rest = getopt.getopt(arguments, "", long)
    except getopt.GetoptError as error:
        raise RefusedError(f"flux-submit: error: unrecognized arguments: {error}", 2) from error
    given = {name.removeprefix("--"): value for name, value in pairs}
    _need(right=rest, words="flux-submit: ERROR: job command and arguments are missing")
    urgency = given.get("urgency", "16")
    _need(right=urgency in ("hold", "default", "expedite") or 0 <= int(urgency) <= 31, words="flux: urgency")
    limit = given.get("time-limit")
    _need(right=limit is None or re.fullmatch(r"\d+(\.\d+)?[smhd]?", limit), words="flux-submit: ERROR: invalid time")
    begin = given.get("begin-time")
    outer = {} if given.get("env-remove") == "*" else dict(os.environ)
    argv = rest
    if batch:
        _need(right=Path(rest[0]).read_text(encoding="utf-8").startswith("#!"), words="flux-batch: ERROR: no shebang")
        argv = ["/bin/sh", *rest]
    spec = _spec(
        held=urgency in ("hold", "0"), log=given.get("output"), name=given.get("job-name", Path(rest[0]).name),
        queue=given.get("queue", ""), limit=float(limit.rstrip("s")) if limit else None,
        begin=_moment(begin, "%Y-%m-%d %H:%M:%S", "flux-submit: ERROR: invalid date") if begin else None,
        program=argv[0], argv=argv, cores=int(given.get("cores-per-task", "1")),
        env={**outer, "FLUX_URI": "local:///replay", "FLUX_JOB_ID": "@ID@"},
    )  # fmt: skip
    print(_flux_id(_submit(spec)))


def _flux_values(said: Json) -> dict[str, str]:
    spec, one = said["spec"], said["elements"][""]
    ended = one["state"] == "F"
    code = _code(one) if ended and one["status"] is not None else None
    result = ""
    if ended:
        result = {None: "COMPLETED" if code == 0 else "FAILED", "deleted": "CANCELED", "walltime": "TIMEOUT"}[
            one["cause"]
        ]
    kind = {None: "", "deleted": "cancel", "walltime": "timeout"}[one["cause"]]
    return {
        "id.f58": _flux_id(spec["id"]),
        "state": {"Q": "DEPEND" if spec["begin"] else "SCHED", "H": "SCHED", "R": "RUN"}.get(one["state"], "INACTIVE"),
        "result": result,
        "returncode": ("-128" if code is None else str(code)) if ended else "",
        "exception.type": kind if ended else "",
        "exception.note": "resource allocation expired" if kind == "timeout" else "",
        "urgency": "0" if one["state"] == "H" else "16",
        "t_submit": f"{one['submitted']:.7f}",
        "t_run": f"{one['started'] or 0.0:.7f}",
        "t_cleanup": f"{one['ended'] or 0.0:.7f}",
        "ncores": str(spec["cores"]),
        "queue": spec["queue"],
        "nodelist": "replay01" if one["started"] else "",
        "name": spec["name"],
    }


def _flux_jobs(arguments: list[str]) -> None:
    given, ids = _options("flux-jobs", arguments, "anc:f:o:u:A", ("filter=", "no-header", "count=", "format="))
    fields = re.compile(r"\{([\w.]+)\}")
    form = given["-o"][-1]
    jobs = _all()
    status = 0
    if ids:
        numbers = [_flux_number(id) for id in ids]
        jobs = []
        for id, number in zip(ids, numbers, strict=True):
            said = _load(number)
            if said is None:
                print(f"JobID {id} unknown", file=sys.stderr)
            else:
                jobs.append(said)
    every = "-a" in given or bool(ids)
    _need(right=given.get("--filter", ["pending,running"]) == ["pending,running"], words="flux-jobs: filter")
    for said in jobs:
        values = _flux_values(said)
        unknown = set(fields.findall(form)) - set(values)
        _need(right=not unknown, words=f"flux-jobs: ERROR: Unknown format field: {unknown}")
        if every or values["state"] != "INACTIVE":
            print(fields.sub(lambda found: values[found[1]], form))  # noqa: B023 - used at once
    sys.exit(status)


def _flux_cancel(arguments: list[str]) -> None:
    _, ids = _options("flux-cancel", arguments, "m:nq")
    _need(right=ids, words="flux-cancel: usage")
    status = 0
    for id in ids:
        number = _flux_number(id)
        if not _tell(number, "", "delete"):
            print(
                f"flux-cancel: {id}: {'unknown job id' if _load(number) is None else 'job is inactive'}",
                file=sys.stderr,
            )
            status = 1
    sys.exit(status)


def _flux_job(arguments: list[str]) -> None:
    _need(right=len(arguments) > 1 and arguments[0] in ("urgency", "kill"), words=f"flux-job: Usage: {arguments}")
    if arguments[0] == "kill":
        given, ids = _options("flux-job", arguments[1:], "s:", ("signal=",))
        _need(right=given == {"--signal": ["SIGKILL"]} and ids, words="flux-job: kill: Invalid signal")
        for id in ids:
            _need(right=_tell(_flux_number(id), "", "signal"), words=f"flux-job: kill {id}: job is not running")
        return
    _need(right=len(arguments) == 3, words=f"flux-job: Usage: {arguments}")
    _, id, urgency = arguments
    _need(right=urgency in ("hold", "default"), words="flux-job: invalid urgency")
    done = _tell(_flux_number(id), "", "hold" if urgency == "hold" else "release")
    _need(right=done, words="flux-job: job is inactive or running")


COMMANDS = {function.__name__: function for function in (
    qsub, qstat, qselect, qdel, qhold, qrls, qsig, qalter, bsub, bjobs, bkill, bstop, bresume, bparams, flux,
)}  # fmt: skip


def main() -> None:
    """Run one command."""
    global SPOOL, DIALECT
    SPOOL, DIALECT = Path(sys.argv[1]), sys.argv[2]
    try:
        COMMANDS[sys.argv[3]](sys.argv[4:])
    except RefusedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
