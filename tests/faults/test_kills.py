"""kill -9 of any process at random moments of a whole run: it ends with the tables of one that was left alone.

ANDSCALE_KILLS says how many kills (`make chaos`: 200; one of each victim by default, and one rank in evaluations),
ANDSCALE_KILLS_SEED which.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

import psutil

from whole_runs import assert_same_run, command, run_command, write_config

NUM_KILLS = int(os.environ.get("ANDSCALE_KILLS", "4"))
SEED = int(os.environ.get("ANDSCALE_KILLS_SEED", "0"))
EVALUATE_RANKS = 2 if "ANDSCALE_KILLS" in os.environ else 1
VICTIMS = ("everything", "launcher", "controller", "rank")


def _start(folder, config):
    return subprocess.Popen(
        command("--rounds", "0-1", "--config", config, "--cluster", "local"),
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _jobs(run):
    """(controllers, ranks) of the run's jobs, whoever started them."""
    found = [], []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(str(run) in part for part in line):
            for number, module in enumerate(("submitit.local._local", "submitit.core._submit")):
                if module in line:
                    found[number].append(process)
    return found


def _kill(victim, launcher, run, rng):
    """Whether there was such a process to kill."""
    controllers, ranks = _jobs(run)
    chosen = {
        "launcher": [launcher],
        "controller": controllers,
        "rank": [rng.choice(ranks)] if ranks else [],
        "everything": [launcher, *controllers, *ranks],
    }[victim]
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    return bool(chosen)


def _wait_for_its_own_end(launcher, run, victim, bound_s=120):
    """A launcher whose job was killed ends by itself, in seconds where the cores are free."""
    try:
        launcher.wait(bound_s)
    except subprocess.TimeoutExpired:
        logs = "".join(f"--- {path}\n{path.read_text()[-1500:]}\n" for path in sorted(run.rglob("*_log.out")))
        raise AssertionError(f"after the {victim} was killed: {_jobs(run)} still run\n{logs}") from None


def test_a_run_whose_processes_are_killed_ends_like_one_that_was_not(tmp_path, digits, undisturbed):
    quiet = undisturbed(3)
    config = write_config(tmp_path, digits, EVALUATE_RANKS)
    rng, kills, number = random.Random(SEED), 0, 0
    while kills < NUM_KILLS:
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        number += 1
        finished = False
        while not finished and kills < NUM_KILLS:
            victim = VICTIMS[kills % len(VICTIMS)]
            launcher = _start(folder, config)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # mostly within the next step or two: a run that is killed sooner gets nowhere
                launcher.wait(rng.uniform(0.02, 0.5) * quiet.seconds)
            while launcher.poll() is None and not _kill(victim, launcher, folder / "runs", rng):
                time.sleep(0.05)  # between two jobs there is nobody to kill
            finished = launcher.poll() == 0
            kills += not finished
            if victim != "launcher" and not finished:
                _wait_for_its_own_end(launcher, folder / "runs", victim)
        run_command("--rounds", "0-1", "--config", config, "--cluster", "local", cwd=folder)
        assert_same_run(quiet.root, folder / "runs" / "tiny", (0, 1))
        assert [p for p in (folder / "runs").rglob(".*") if ".partial-" in p.name] == []
        assert _jobs(folder / "runs") == ([], []), "no process is left behind"
    print(f"{kills} kills in {number} runs, all of which ended with the same tables")
