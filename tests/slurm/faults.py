"""SLURM itself, on one machine: job arrays of a study, and what kills them.

``python tests/slurm/faults.py`` as root, where ``apt-get install slurm-wlm munge`` was done: it
starts munged, slurmctld and two slurmd in a folder of its own, trains a tiny study in this
process and then through job arrays, each time with another fault, and compares every weight.
Some ten minutes on two cores; nothing that ran before is touched.
"""

import argparse
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from sae_baselines.study.engine import tasks
from sae_baselines.study.folder import read_measurement
from sae_baselines.study.spec import spec_from_dict
from sae_baselines.work.claims import DONE, Share
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text

CONF = """\
ClusterName=faults
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=20
KillWait=5
JobRequeue=1
NodeName=n1 NodeHostname={host} Port={n1} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} Port={n2} CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


class Slurm:
    """munged, slurmctld and two slurmd, which are ours alone."""

    def __init__(self, root: Path) -> None:
        self.root, self.conf = root, root / "slurm.conf"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool.n1", "spool.n2"):
            (root / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        ports = dict(zip(("port", "n1", "n2"), free_ports(3), strict=True))
        self.conf.write_text(CONF.format(host=host, root=root, **ports))
        os.environ["SLURM_CONF"] = str(self.conf)
        key = root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        # Its own checks want folders that are root's alone.
        self.start(
            "munged",
            "-F",
            "--force",
            f"--key-file={key}",
            f"--socket={root}/munge.socket",
            f"--pid-file={root}/munged.pid",
            f"--seed-file={root}/munge.seed",
            f"--log-file={root}/munged.log",
        )
        time.sleep(1)
        self.start("slurmctld", "-D", "-f", str(self.conf))
        for node in ("n1", "n2"):
            self.node(node)

    def node(self, name: str) -> None:
        self.start(f"slurmd.{name}", "-D", "-f", str(self.conf), "-N", name)

    def start(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            command = [f"/usr/sbin/{name.partition('.')[0]}", *arguments]
            self.running[name] = subprocess.Popen(command, stdout=out, stderr=out)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root"], check=False)
        time.sleep(2)
        for process in reversed(list(self.running.values())):
            process.terminate()
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


@contextmanager
def slurm(root: Path) -> Iterator[Slurm]:
    started = Slurm(root)
    try:
        until("two nodes are idle", lambda: len(asked("sinfo", "-hN", "-t", "idle")) == 2, 60)
        yield started
    finally:
        started.stop()


def asked(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.strip()]


def until(what: str, is_so: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit(f"after {seconds:.0f} s it is not so that {what}")
        time.sleep(0.5)


def train(panel: Path, root: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sae_baselines_cli", "train", str(panel), "--resume"]
    return subprocess.Popen(
        [*command, "--out", str(root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


ON_SLURM = ("--on", "slurm", "--workers", "2")


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=900)
    if process.returncode != code:
        raise SystemExit(f"it ended with {process.returncode}: {said[-3000:]}")
    return said


def weights(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "panels").rglob("*.safetensors"))
    }


def at_work(share: Share, spec: Any) -> list[Any]:
    """Attempts at passes that are being trained now."""
    held = [share.holder(task.name) for task in tasks(spec) if task.kind == "train"]
    return [attempt for attempt in held if attempt is not None]


def compare(name: str, spec: Any, root: Path, whole: dict[str, str]) -> None:
    """Everything is there, done once; what no fault touched has the bits of `here`."""
    share, resumed = Share(root), set()
    for task in tasks(spec):
        done = [a for a in share.attempts(task.name) if a.end and a.end["state"] == DONE]
        assert len(done) == 1, (name, task.name, len(done))
    for file in root.rglob("provenance.json"):
        told = yaml.safe_load(file.read_text())
        if told.get("resumed_at_samples"):
            resumed.add(str(file.parent.relative_to(root)))
        assert read_measurement(file.parent) is not None, (name, file)
    found = weights(root)
    assert found.keys() == whole.keys(), name
    differ = {file for file in found if found[file] != whole[file]}
    # A pass that goes on from a checkpoint sees other batches (docs/panels.md), and controls
    # are made of its members.
    panels = {Path(member).parent for member in resumed}
    assert all(Path(file).parents[1] in panels for file in differ), (name, differ)
    print(
        f"{name}: {len(found)} files, {len(found) - len(differ)} bitwise as here, "
        f"{len(resumed)} SAEs resumed, every task done once",
        flush=True,
    )


def main(only: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm_") as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        tiny_text().to_parquet(work / "text.parquet")
        panel = work / "panel.yaml"
        data = tiny_panel(
            save_tiny_model(work / "model"),
            str(work / "text.parquet"),
            members=["trained", "frozen_decoder", "random"],
            seeds=[0, 1],
            max_panels_per_pass=1,
            training_tokens=128 * STEPS,
            n_checkpoints=10,
        )
        panel.write_text(yaml.safe_dump(data))
        spec = spec_from_dict(data)
        os.environ["OMP_NUM_THREADS"] = "1"
        ended(train(panel, work / "here"))
        whole = weights(work / "here")
        print(f"here: {len(whole)} files", flush=True)
        with slurm(work) as cluster:
            for fault in only:
                began = time.monotonic()
                root = work / fault
                FAULTS[fault](cluster, panel, root, spec)
                compare(fault, spec, root, whole)
                print(f"  {time.monotonic() - began:.0f} s", flush=True)


def nothing(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    del cluster, spec
    ended(train(panel, root, *ON_SLURM))


def two_at_once(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """Four jobs and two nodes: the jobs of one command wait behind the other's."""
    del cluster, spec
    both = [train(panel, root, *ON_SLURM) for _ in range(2)]
    for process in both:
        ended(process)


def in_training(root: Path, spec: Any) -> Any:
    share = Share(root)
    until(
        "a pass has a checkpoint", lambda: list(root.glob("checkpoints/*/*/complete.json")), 300
    )
    return next(iter(at_work(share, spec)))


def to_its_job(panel: Path, root: Path, spec: Any, *command: str) -> None:
    """Train, and in the middle give a command of SLURM's the job that trains."""
    process = train(panel, root, *ON_SLURM)
    subprocess.run([*command, str(in_training(root, spec).who["job"])], check=True)
    ended(process)


def killed(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """Its job is over, which the queue tells the other one."""
    del cluster
    to_its_job(panel, root, spec, "scancel", "--signal=KILL", "--full")


def requeued(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """As SLURM does where a node is wanted by others."""
    del cluster
    to_its_job(panel, root, spec, "scontrol", "requeue")


def time_is_over(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """The signal before the end of a job: a checkpoint, and the job is queued again."""
    del cluster
    to_its_job(panel, root, spec, "scancel", "--signal=USR2")


def node_dies(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """A slurmd and all that it started."""
    process = train(panel, root, *ON_SLURM)
    attempt = in_training(root, spec)
    (node,) = asked("squeue", "-h", "-j", str(attempt.who["job"]), "-o", "%N")
    cluster.kill(f"slurmd.{node}")
    group = os.getpgid(attempt.who["pid"])
    os.killpg(group, signal.SIGKILL)
    until("SLURM misses the node", lambda: asked("sinfo", "-hN", "-t", "down"), 120)
    cluster.node(node)
    ended(process)


FAULTS: dict[str, Callable[[Slurm, Path, Path, Any], None]] = {
    "nothing": nothing,
    "two_at_once": two_at_once,
    "killed": killed,
    "requeued": requeued,
    "time_is_over": time_is_over,
    "node_dies": node_dies,
}
# Long enough to be met in the middle.
STEPS = 1500

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), choices=[[], *FAULTS])
    main(parser.parse_args().faults or list(FAULTS))
