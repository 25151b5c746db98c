"""Compare runs of the suite by time over floor; fails where a case has become more than 10 % slower, or is gone.

    python bench/compare.py OLD.json NEW.json        two runs stored by --benchmark-json or --benchmark-autosave
    python bench/compare.py --part OLD.json NEW.json    the same where the new run is of some cases only
    python bench/compare.py --revision REV           this tree and a git revision, built beside it, run in turn
    python bench/compare.py --keep NEW.json bench/reference.json    a run to compare with later

The floor is measured in the same moments as the case: what makes the machine slower for a while slows both. Not always
by as much, so with --revision what seems slower is run again, as often, up to twice. A case that was found wrong is not
timed and not stored, so one that is gone may be wrong. Ratios of another machine, or of another build of the kernels,
are others: both are named where they differ.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
TOLERATED = 1.10
LAST_WORDS = 2000  # characters of a suite that failed
AGAIN = 2  # times that what seems slower is run again, at most

Run: TypeAlias = Mapping[str, float]  # time over floor of each case


def stored(path: str | Path) -> dict[str, dict[str, Any]]:
    """What a stored run tells of each case, its time over floor among it: without the host's name, to be committed."""
    try:
        told = {b["name"]: b["extra_info"] for b in json.loads(Path(path).read_text())["benchmarks"]}
        if not all("ratio" in info for info in told.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: expected a stored run of the suite") from None
    return told


def ratios(path: str | Path) -> dict[str, float]:
    """Time over floor of each case of a stored run."""
    return {name: info["ratio"] for name, info in stored(path).items()}


def measured_on(path: str | Path) -> str:
    """The machine and kernels of a stored run."""
    found = {f"{info.get('machine', 'unknown')}, {info.get('kernels', 'unknown')}" for info in stored(path).values()}
    return "; ".join(sorted(found))


def keep(path: str | Path, to: str | Path) -> None:
    """Store what comparisons need of a run."""
    kept = [{"name": name, "extra_info": info} for name, info in stored(path).items()]
    Path(to).write_text(json.dumps({"benchmarks": kept}, indent=1) + "\n")


def compare(
    old: Run,
    new: Run,
    part: bool = False,
    figures: str = "time over floor",
    more: str = "SLOWER",
) -> tuple[str, list[str]]:
    """A table of figures, and the names of the cases in which they are `more` now, are none or, but for a `part`, are
    gone.
    """
    both = [name for name in new if name in old]
    if not both:
        raise ValueError("compare: the two runs have no case in common")
    slower = [name for name in both if not new[name] <= TOLERATED * old[name]]
    lines = [f"{figures:56} {'old':>7} {'new':>7} {'new/old':>8}"]
    for name in both:
        mark = f"  {more}" if name in slower else ""
        lines.append(f"{name:56} {old[name]:7.2f} {new[name]:7.2f} {new[name] / old[name]:8.2f}{mark}")
    gone = [name for name in old if name not in new]
    lines += [f"not in the new run: {name}" for name in gone]
    return "\n".join(lines), slower if part else slower + gone


def run_suite(package: Path, options: Sequence[str], all_must_pass: bool, some: Sequence[str] = ()) -> Run:
    """The suite, or some of its cases, on the fastbn in a folder. An old one may not have all that is timed: it has no
    ratios of the rest.
    """
    cases = [f"{ROOT / 'bench' / 'test_speed.py'}::{name}" for name in some] or [str(ROOT / "bench")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "run.json")
        command = [sys.executable, "-m", "pytest", "-q", *cases, f"--benchmark-json={report}", *options]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        run = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        if all_must_pass and run.returncode:
            raise ValueError(f"the suite fails on this tree:\n{run.stdout[-LAST_WORDS:]}")
        return ratios(report)


def build(source: str | Path, folder: Path) -> Path:
    """Install a source tree into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(source)]
    subprocess.run(command, check=True)
    return folder


def old_build(source: Path, folder: Path) -> Path:
    """A revision's fastbn, measured as this tree's is: with this tree's fastbn.bench."""
    build(source, folder)
    shutil.copytree(ROOT / "fastbn" / "bench", folder / "fastbn" / "bench", dirs_exist_ok=True)
    shutil.copy(ROOT / "fastbn" / "commands.py", folder / "fastbn")
    return folder


def race(revision: str, rounds: int, options: Sequence[str]) -> tuple[Run, Run]:
    """Medians of the ratios of a revision and of this tree, run alternately, of what passed whenever all was run."""

    def run_in_turn(some: Sequence[str] = ()) -> None:
        for _ in range(rounds):
            for package, runs in zip(builds, (old, new), strict=True):
                runs.append(run_suite(package, options, runs is new, some))

    old: list[Run] = []
    new: list[Run] = []
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "source")
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(source), revision], check=True)
        try:
            builds = old_build(source, Path(work, "old")), build(ROOT, Path(work, "new"))
            run_in_turn()
            for _ in range(AGAIN):
                _, slower = compare(medians(old, rounds), medians(new, rounds), part=True)
                if slower:
                    run_in_turn(slower)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(source)], check=True)
    return medians(old, rounds), medians(new, rounds)


def medians(runs: Sequence[Run], rounds: int) -> Run:
    """Of each case that is in all of the first runs, over all that it is in."""
    always = [name for name in runs[0] if all(name in run for run in runs[:rounds])]
    return {name: median(run[name] for run in runs if name in run) for name in always}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something has become slower, 2 where there is nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN.json", help="an old and a new run")
    parser.add_argument(
        "--revision", metavar="REV", help="race this tree against a git revision (one that has this suite's floor)"
    )
    parser.add_argument("--part", action="store_true", help="the new run need not have all cases of the old one")
    parser.add_argument("--keep", action="store_true", help="write what comparisons need of the first to the second")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side with --revision (%(default)s)")
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help='for the suite, with --revision: "-k 14x14"')
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds: expected an integer >= 1, got {args.rounds}")
    if len(args.runs) != (0 if args.revision else 2) or (args.revision and args.keep):
        parser.error("expected two stored runs, or --revision REV")
    try:
        if args.keep:
            keep(*args.runs)
            return 0
        if args.revision:
            old, new = race(args.revision, args.rounds, shlex.split(args.pytest))
        else:
            old, new = map(ratios, args.runs)
            was, now = map(measured_on, args.runs)
            if was != now:
                print(f"not comparable as they are: the old run is of {was}; the new one of {now}")
        table, failed = compare(old, new, args.part)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        parser.error(str(error))
    print(table)
    if failed:
        print(f"{len(failed)} of {len(old)} cases are more than 10 % slower, or gone")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
