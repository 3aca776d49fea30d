"""SLURM itself, on one machine: job arrays of a study, and what kills them.

``python tests/slurm/faults.py`` as root, where ``apt-get install slurm-wlm munge`` was done: it
starts munged, slurmctld and two slurmd in a folder of its own, trains and evaluates a tiny
study in one process and then through job arrays, each time with another fault, and compares
every weight, measurement and score. Some 20 minutes on two cores; nothing that ran before is
touched.

With ``--panel FILE`` no fault, but a study of yours: trained and evaluated in one process, by
two workers of this machine and through SLURM, and compared in the same way.
"""

import argparse
import hashlib
import os
import re
import shutil
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
from typer.testing import CliRunner

from sae_baselines.evals.status import study_status
from sae_baselines.study.engine import tasks
from sae_baselines.study.folder import read_measurement
from sae_baselines.study.spec import load_spec
from sae_baselines.work.claims import DONE, Share
from sae_baselines_cli import app
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
        for node in NODES:
            self.node(node)

    def node(self, name: str, without: Path | None = None) -> None:
        """Start one, which has a disk of its own in the place of a folder if asked."""
        around: list[str] = []
        if without is not None:
            alone = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            around = ["unshare", "--mount", "sh", "-c", alone, str(without)]
        self.start(f"slurmd.{name}", "-D", "-f", str(self.conf), "-N", name, around=around)

    def start(self, name: str, *arguments: str, around: Sequence[str] = ()) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            command = [*around, f"/usr/sbin/{name.partition('.')[0]}", *arguments]
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


def sae_baselines(*arguments: "str | Path") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "sae_baselines_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(panel: Path, root: Path, *options: str) -> "subprocess.Popen[str]":
    return sae_baselines("train", panel, "--resume", "--out", root, *options)


def evaluate(panel: Path, root: Path, *options: str) -> "subprocess.Popen[str]":
    return sae_baselines("eval", root, "--config", panel, *options)


NODES = ("n1", "n2")
ON_SLURM = ("--on", "slurm", "--workers", "2")
# Of `eval`, where something failed and the rest is there.
INCOMPLETE = 3


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=1800)
    if process.returncode != code:
        raise SystemExit(f"it ended with {process.returncode}: {said[-3000:]}")
    return said


def results(root: Path) -> dict[str, str]:
    """Hashes of weights, measurements and, where there are any, scores."""
    files = [*(root / "panels").rglob("*.safetensors"), *root.rglob("measurement.json")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted({*files, *root.glob(SCORES)})
    }


def at_work(share: Share, spec: Any) -> list[Any]:
    """Attempts at passes that are being trained now."""
    held = [share.holder(task.name) for task in tasks(spec) if task.kind == "train"]
    return [attempt for attempt in held if attempt is not None]


def compare(name: str, root: Path, whole: dict[str, str]) -> None:
    """Everything is there, done once; what no fault touched has the bits of `here`."""
    share, resumed = Share(root), set()
    scored = (root / SCORES).exists()
    for task in study_status(root):
        if task.kind == "eval" and not scored:
            continue
        done = [a for a in share.attempts(task.name) if a.end and a.end["state"] == DONE]
        assert (task.state, len(done)) == ("done", 1), (name, task, len(done))
    for file in root.rglob("provenance.json"):
        told = yaml.safe_load(file.read_text())
        if told.get("resumed_at_samples"):
            resumed.add(str(file.parent.relative_to(root)))
        assert read_measurement(file.parent) is not None, (name, file)
    found = results(root)
    assert found.keys() == whole.keys() - (set() if scored else {SCORES}), name
    differ = {file for file in found if found[file] != whole[file]}
    # A pass that goes on from a checkpoint sees other batches (docs/panels.md), and controls
    # are made of its members.
    panels = {Path(member).parent for member in resumed}
    assert all(Path(file).parents[1:2] in [(p,) for p in panels] for file in differ), (
        name,
        differ,
    )
    n_rows = len((root / SCORES).read_text().splitlines()) - 1 if scored else 0
    print(
        f"{name}: {len(found)} files, {len(found) - len(differ)} bitwise as here, "
        f"{len(resumed)} SAEs resumed, {n_rows} scores, every task done once",
        flush=True,
    )


def main(only: Sequence[str], panel: Path | None, folder: Path | None) -> None:
    with ExitStack() as left:
        if folder is None:
            made = tempfile.TemporaryDirectory(prefix="slurm_")
            folder = Path(left.enter_context(made))
        folder.chmod(0o755)
        work = folder.absolute()
        # Nothing is fetched, and nothing is left elsewhere.
        os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        os.environ.setdefault("SAE_BASELINES_CACHE", str(work / "cache"))
        mine = panel or tiny(work)
        spec = load_spec(mine)
        began = time.monotonic()
        ended(train(mine, work / "here"))
        shutil.copytree(work / "here", work / TRAINED)
        ended(evaluate(mine, work / "here"))
        whole = results(work / "here")
        print(f"here: {len(whole)} files\n  {time.monotonic() - began:.0f} s", flush=True)
        if panel is not None:
            began = time.monotonic()
            for do in (train, evaluate):
                ended(do(mine, work / "devices", "--on", "devices", "--workers", "2"))
            compare("devices", work / "devices", whole)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
        with slurm(work) as cluster:
            print(*asked("sinfo", "--version"), flush=True)
            for fault in only:
                began = time.monotonic()
                root = work / fault
                FAULTS[fault](cluster, mine, root, spec)
                compare(fault, root, whole)
                print(f"  {time.monotonic() - began:.0f} s", flush=True)


def tiny(work: Path) -> Path:
    """A panel file of a study that takes a minute, and all that it names."""
    text, panel = str(work / "text.parquet"), work / "panel.yaml"
    tiny_text().to_parquet(text)
    data = tiny_panel(
        save_tiny_model(work / "model"),
        text,
        members=["trained", "frozen_decoder", "random"],
        seeds=[0, 1],
        max_panels_per_pass=1,
        training_tokens=128 * STEPS,
        n_checkpoints=10,
    )
    core = {
        "dataset": text,
        "context_size": 32,
        "n_eval_reconstruction_batches": 2,
        "n_eval_sparsity_variance_batches": 2,
    }
    probes = {"dataset_names": ["119_us_state_TX"], "ks": [1, 5]}
    suites = {"core": core, "sparse_probing_sae_probes": probes}
    data["evals"] = {"suites": suites, "llm_batch_size": 8}
    panel.write_text(yaml.safe_dump(data))
    return panel


def nothing(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """Trained and evaluated."""
    del cluster, spec
    ended(train(panel, root, *ON_SLURM))
    ended(evaluate(panel, root, *ON_SLURM))


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


def local_disk(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """The nodes do not see the folder; where they do, the same command goes on."""
    del spec
    root.mkdir()
    for node in NODES:
        cluster.kill(f"slurmd.{node}")
        cluster.node(node, without=root)
    said = ended(train(panel, root, *ON_SLURM), 1)
    assert "left no log there" in said, said
    for node in NODES:
        cluster.kill(f"slurmd.{node}")
        cluster.node(node)
    ended(train(panel, root, *ON_SLURM))


def nodes_full(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """Both nodes are others' when the array comes; later one is taken from it."""
    del cluster
    others = taken("--nodes=2", "600")
    process = train(panel, root, *ON_SLURM)
    waiting = ("squeue", "-hr", "-t", "PENDING", "-n", f"sae_{root.name}")
    until("the array waits", lambda: len(asked(*waiting)) == 2, 120)
    time.sleep(15)
    assert len(asked(*waiting)) == 2, "it did not wait"
    assert not any(Share(root).attempts(task.name) for task in tasks(spec))
    subprocess.run(["scancel", others], check=True)
    job = str(in_training(root, spec).who["job"])
    (node,) = asked("squeue", "-h", "-j", job, "-o", "%N")
    subprocess.run(["scontrol", "requeue", job], check=True)
    taken(f"--nodelist={node}", "45")
    ended(process)


def taken(where: str, seconds: str) -> str:
    """A job of somebody else's has whole nodes; its number."""
    command = ["sbatch", "--parsable", "--exclusive", "--output=/dev/null", where]
    (job,) = asked(*command, f"--wrap=sleep {seconds}")
    running = ("squeue", "-h", "-t", "RUNNING", "-j", job)
    until("others have the nodes", lambda: asked(*running), 120)
    return job


def task_fails(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """A pass whose disk is full, and an evaluation in whose place something lies."""
    del cluster
    process = train(panel, root, *ON_SLURM)
    until("there is a study", (root / "study.yaml").exists, 120)
    full = root / "checkpoints" / "pass_1"
    full.mkdir(parents=True)
    disk = ("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full))
    subprocess.run(["mount", *disk], check=True)
    try:
        ended(process, 1)
        is_told(root, ["train:pass_1"], "No space left")
    finally:
        subprocess.run(["umount", str(full)], check=True)
    ended(train(panel, root, *ON_SLURM, "--retry-failed"))

    (key, *_) = spec.panels()
    name = f"{key.name}.trained"
    in_the_way = root / "evals" / ".work" / "core" / name
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    ended(evaluate(panel, root, *ON_SLURM), INCOMPLETE)
    is_told(root, [f"eval:core:{name}"], "NotADirectoryError")
    in_the_way.unlink()
    ended(evaluate(panel, root, *ON_SLURM, "--retry-failed"))


def is_told(root: Path, failed: list[str], why: str) -> None:
    """`status` names what failed, why and where its log is; the others are done."""
    found = study_status(root)
    assert [task.name for task in found if task.state == "failed"] == failed, found
    shown = CliRunner().invoke(app, ["status", str(root)]).output.splitlines()
    lines = [line for line in shown if line.startswith("failed: ")]
    assert len(lines) == len(failed), shown
    for name, line in zip(failed, lines, strict=True):
        log = re.search(r"\(log: (.*)\)$", line)
        assert line.startswith(f"failed: {name}: "), line
        assert why in line, line
        assert log, line
        assert "Traceback" in Path(log[1]).read_text(), log[1]
    kind = failed[0].partition(":")[0]
    left = [task for task in found if task.kind == kind and task.name not in failed]
    assert {task.state for task in left} == {"done"}, left


def killed_evaluating(cluster: Slurm, panel: Path, root: Path, spec: Any) -> None:
    """Its job is over, and the other one takes its evaluation."""
    del cluster, spec
    shutil.copytree(root.parent / TRAINED, root)
    process, share = evaluate(panel, root, *ON_SLURM), Share(root)

    def held() -> list[Any]:
        names = [task.name for task in study_status(root) if task.kind == "eval"]
        return [attempt for name in names if (attempt := share.holder(name)) is not None]

    until("an SAE is being evaluated", held, 300)
    subprocess.run(
        ["scancel", "--signal=KILL", "--full", str(held()[0].who["job"])], check=True
    )
    ended(process)


FAULTS: dict[str, Callable[[Slurm, Path, Path, Any], None]] = {
    "nothing": nothing,
    "two_at_once": two_at_once,
    "killed": killed,
    "requeued": requeued,
    "time_is_over": time_is_over,
    "node_dies": node_dies,
    "local_disk": local_disk,
    "nodes_full": nodes_full,
    "task_fails": task_fails,
    "killed_evaluating": killed_evaluating,
}
# The study of one process before it is evaluated.
TRAINED = "trained"
SCORES = "results.csv"
# Long enough to be met in the middle.
STEPS = 1500

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS])
    parser.add_argument("--panel", type=Path, help="A panel file with a section 'evals'.")
    parser.add_argument("--folder", type=Path, help="To work in, and to keep; it is empty.")
    args = parser.parse_args()
    if args.panel and args.faults:
        parser.error("--panel: is without faults")
    main(["nothing"] if args.panel else args.faults or list(FAULTS), args.panel, args.folder)
