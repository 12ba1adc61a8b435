"""A stand-in for a trainer: real process, run directory and exit codes, no model.

python tests/lib/jobs/worker.py RUN_DIR [key=value ...]; keys: steps, sleep, fail (what
goes wrong), at (the step where), first (only in that many first attempts), card (only
on that GPU), prepare (seconds before its turn, which it records), pulse (seconds
without an update after which an attempt that will fail hangs), evaluates (the step
after which it pauses), until (files that it waits for in that pause, or in its last
step, separated by colons). What waits prints STILL.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT)
from lib import atomic_files  # noqa: E402
from lib.jobs import run_files  # noqa: E402
from lib.jobs.phases import phase_record  # noqa: E402
from lib.jobs.pulse import PULSE_FILE, Pulse  # noqa: E402
from lib.jobs.turn import Turn  # noqa: E402

STILL = "stands still"
NEVER = 1e6  # seconds: a busy machine hangs no run that is not to hang
stop = False


def ask_to_stop(number: int, frame: object) -> None:
    global stop
    stop = True


def go_wrong(what: str, run_dir: Path) -> None:
    if what == "crash":
        print("reading the weights\nKeyError: 'the cause'", flush=True)
        raise SystemExit(1)
    codes = {"interrupted": 3, "oom": 4, "nan": 5, "disk": 6, "device": 8}
    if what in codes:
        raise SystemExit(codes[what])
    if what == "says-oom":  # a launcher in between hides the exit code
        run_files.write_status(
            run_dir, status="oom", failure="oom", message="2 GiB short"
        )
        raise SystemExit(1)
    if what == "starved":  # as the runner notes it after a kill by the kernel
        run_files.write_status(
            run_dir, status="failed", failure="oom", message="no memory"
        )
        raise SystemExit(1)
    if what == "undone":
        raise SystemExit(0)
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stopped":
        print(STILL, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "damage":
        (run_dir / "status.json").write_text('{"sta')
        raise SystemExit(1)
    if what == "moved":
        run_dir.rename(run_dir.with_name("aside"))
        os._exit(1)
    if what in ("hang", "deaf"):
        wait_for_ever()


def wait_for_ever() -> None:
    print(STILL, flush=True)
    while not stop:
        time.sleep(0.02)
    raise SystemExit(1)


def wait_for(paths: list[str]) -> None:
    print(STILL, flush=True)
    while not all(map(os.path.exists, paths)) and not stop:
        time.sleep(0.02)
    print("goes on", flush=True)


def main() -> int:
    run_dir = Path(sys.argv[1])
    given = dict(word.split("=", 1) for word in sys.argv[2:])
    steps, sleep = int(given.get("steps", 3)), float(given.get("sleep", 0))
    fail, at = given.get("fail", ""), int(given.get("at", 1))
    first = int(given.get("first", 10**9))
    if given.get("card", "") not in ("", os.environ.get("KABLATE_GPUS")):
        fail = ""
    checkpoint = run_dir / "ckpt.json"
    metrics = run_dir / "metrics.jsonl"
    if fail != "deaf":
        faulthandler.register(signal.SIGUSR1)
        signal.signal(signal.SIGTERM, ask_to_stop)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with run_files.lock(run_files.run_lock(run_dir)):
        attempt = int(os.environ.get("KABLATE_ATTEMPT", "0"))
        done = atomic_files.read_json(checkpoint)["step"] if checkpoint.exists() else 0
        atomic_files.truncate_metrics(metrics, done)
        run_files.write_status(run_dir, pid=os.getpid(), max_steps=steps)
        print(f"attempt {attempt} from {done} in slot {os.environ.get('SLOT')}")
        print(f"after {os.environ.get('KABLATE_LAST_END')}")
        if given.get("child"):
            child = subprocess.Popen(
                [sys.executable, "-c", "import time;time.sleep(99)"]
            )
            (run_dir / "child").write_text(str(child.pid))
        if "prepare" in given:
            atomic_files.append_jsonl(metrics, phase_record("started", attempt))
            if fail == "hang-early" and attempt <= first:
                wait_for_ever()
            time.sleep(float(given["prepare"]))
            atomic_files.append_jsonl(metrics, phase_record("ready", attempt))
            atomic_files.append_jsonl(metrics, phase_record("turn", attempt))
        Turn.from_environment(os.environ).take((run_dir / "waits").touch)
        pulse = Pulse()
        if "pulse" in given:
            fails = fail and attempt <= first or "evaluates" in given
            limit = float(given["pulse"]) if fails else NEVER
            pulse = Pulse(run_dir / PULSE_FILE, 1e-9, limit)
        evaluates = int(given.get("evaluates", 0))
        until = given["until"].split(":") if "until" in given else []
        for step in range(done + 1, steps + 1):
            if fail and step == at and attempt <= first:
                go_wrong(fail, run_dir)
            record = {"kind": "train", "step": step, "loss": 1 / step}
            atomic_files.append_jsonl(metrics, {**record, "tokens_per_s": 1000.0})
            if step % 5 == 0:
                record = {"kind": "eval", "step": step, "val_loss": 2 / step}
                atomic_files.append_jsonl(metrics, record)
            time.sleep(sleep)
            pulse.measure()
            pulse.beat()
            if until and step == (evaluates or steps):
                with pulse.paused():
                    wait_for(until)
            if stop or step % 2 == 0:
                atomic_files.atomic_write_json(checkpoint, {"step": step})
            if stop:
                (run_dir / "saving").touch()
                time.sleep(float(given.get("saving", 0)))
                run_files.write_status(run_dir, status="interrupted", step=step)
                return 3
        result = {"val_loss": 1 / steps}
        run_files.write_status(run_dir, status="done", step=steps, result=result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
