"""At which angle does a ball fly farthest, when the air holds it back? A study on a pool of hosts, over SSH.

Each angle is a job, on whichever host has room: the ball goes there as a staged file, the distance is what the job
prints, and the path of the flight is fetched. What the jobs leave on the hosts is removed at the end.

    python ssh_hosts.py HOST ...                             [user@]host[:port], or a Host of ~/.ssh/config
    WFL_CONTEXT='ssh?hosts=one,two' python ssh_hosts.py      the same, with whatever settings there are
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from wfl import Job, JobTemplate, Workflow

BALL = "0.058 0.00102 40\n"
"""Of tennis: mass in kg, drag in N for a speed of 1 m/s, speed in m/s."""
ANGLES = range(25, 50, 4)
"""Degrees."""
FLIGHT = """{
    radians = angle * atan2(0, -1) / 180
    vx = $3 * cos(radians)
    vy = $3 * sin(radians)
    for (step = 0.001; y >= 0; y += vy * step) {
        if (n++ % 100 == 0)
            print x + 0, y + 0 > path
        hold = $2 / $1 * sqrt(vx * vx + vy * vy)
        vx -= hold * vx * step
        vy -= (9.81 + hold * vy) * step
        x += vx * step
    }
    printf "%.2f\\n", x
}"""


def flights(here: Path, there: str) -> JobTemplate:
    """One of them, at as many degrees as its index says; `there` is a directory below the home on each host."""
    ball, path = f"{there}/ball-$DRMAA2_INDEX$", f"{there}/path-$DRMAA2_INDEX$"
    return JobTemplate(
        remote_command="awk",
        args=("-v", "angle=$DRMAA2_INDEX$", "-v", f"path={path}", FLIGHT, ball),
        stage_in_files={ball: str(here / "ball")},
        stage_out_files={str(here / "path-$DRMAA2_INDEX$"): path},
    )


def hosts_of(job: Job) -> Counter[str]:
    """How many of its tasks each host has had."""
    return Counter(host for info in job.infos() for host in info.allocated_machines or ())


def main() -> None:
    """Start all flights, tidy up behind them, and choose."""
    if len(sys.argv) > 1:
        os.environ["WFL_CONTEXT"] = f"ssh?hosts={','.join(sys.argv[1:])}&slots=2"
    if not os.environ.get("WFL_CONTEXT"):
        sys.exit("on which hosts? python ssh_hosts.py HOST ...")

    with tempfile.TemporaryDirectory(prefix="flights-") as directory, Workflow() as flow:
        here = Path(directory)
        (here / "ball").write_text(BALL, encoding="utf-8")
        study = flow.run_array(ANGLES, flights(here, here.name)).synchronize()
        failed = study.failed()
        used = hosts_of(study)
        for host in used:
            flow.run("rm", "-rf", here.name, candidate_machines=[host]).wait()
        if failed:
            words = failed[0].info().annotation or failed[0].error_output()
            sys.exit(f"{len(failed)} of {len(ANGLES)} have failed: {words}")

        distances = dict(zip(ANGLES, map(float, study.outputs().values()), strict=True))
        for angle, distance in distances.items():
            print(f"{angle} degrees: {distance} m")
        best = max(ANGLES, key=lambda angle: distances[angle])
        path = [line.split() for line in (here / f"path-{best}").read_text(encoding="utf-8").splitlines()]
        print(f"the best is {best}: it goes up to {max(float(y) for _, y in path):.1f} m, in {len(path) / 10} s")
        print(f"flights on each host: {', '.join(f'{host} {number}' for host, number in sorted(used.items()))}")


if __name__ == "__main__":
    main()
