"""`toy`: the synthetic case study."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_baselines_cli.known import BASES, MOST_SEEDS, TOY_SETTINGS, completing
from sae_baselines_cli.shared import (
    Cluster,
    Device,
    Devices,
    DryRun,
    On,
    Out,
    Resume,
    RetryFailed,
    Workers,
    console,
    group,
    print_table,
    say,
    started_by,
)

app = group()


@app.command()
def toy(
    study: Annotated[
        Path | None, typer.Argument(help="Study file (YAML); without one, the paper's sizes.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller sizes: minutes on two CPU cores.")
    ] = False,
    out: Out = None,
    resume: Resume = False,
    device: Device = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train the seeds 0 to N - 1.", min=1, max=MOST_SEEDS)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this setting (repeatable).", autocompletion=completing(TOY_SETTINGS)
        ),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this architecture (repeatable).", autocompletion=completing(BASES)
        ),
    ] = None,
    correct: Annotated[
        str,
        typer.Option(
            help="Correct the verdicts over the metrics of each 'baseline' of a setting, or "
            "over all tests of the 'study'."
        ),
    ] = "baseline",
    show: Annotated[
        bool, typer.Option("--show", help="Print the study file and stop.")
    ] = False,
    on: On = "here",
    devices: Devices = None,
    workers: Workers = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
) -> None:
    """The paper's first case study: data whose features are known.

    Trains BatchTopK, JumpReLU, TopK and Matryoshka SAEs and their random baselines on data
    with constant and with variable firing probabilities, and reports explained variance and
    recovered features beside what random directions recover by chance.

    Examples:

    - `sae-baselines toy --quick`
    - `sae-baselines toy --seeds 3 --samples 4000000`
    - `sae-baselines toy --seeds 3 --resume --correct study`
    - `sae-baselines toy --on devices --workers 4`
    - `sae-baselines toy --setting constant --architecture topk --lr 0.001`
    - `sae-baselines toy --show > toy.yaml`, edit, `sae-baselines toy toy.yaml`
    """
    if study is not None and quick:
        raise typer.BadParameter("--quick has sizes of its own; give it or a study file")
    from sae_baselines.study.engine import run_study
    from sae_baselines.study.spec import load_spec, spec_from_dict, spec_to_dict, spec_to_yaml
    from sae_baselines.study.synthetic.spec import ToySpec, quick_spec

    if study is not None:
        spec = load_spec(study, ToySpec)
    else:
        spec = quick_spec() if quick else ToySpec()
    options: dict[str, Any] = {
        "device": device,
        "seeds": list(range(seeds)) if seeds else None,
        "training_samples": samples,
        "lr": lr,
        "settings": setting,
        "architecture": architecture,
    }
    changes = {name: value for name, value in options.items() if value is not None}
    if changes:
        spec = spec_from_dict({**spec_to_dict(spec), **changes}, "toy", ToySpec)
    if show:
        typer.echo(spec_to_yaml(spec), nl=False)
        return
    from sae_baselines.stats import corrected

    corrected(correct)
    # Before hours of training: an upgrade meanwhile must not leave two versions in one process.
    from sae_baselines.paper.toy.report import write_toy_report
    from sae_baselines.paper.toy.results import load_toy

    root = out or Path("studies") / spec.name
    started = started_by(on, devices, workers, cluster, dry_run, None, lambda: root)
    done = run_study(spec, root, started, resume=resume, retry_failed=retry_failed)
    folder = done.folder
    page = write_toy_report(folder, correct)
    results = load_toy(folder)
    for name in spec.settings:
        console.print()
        _print_setting(name, results.frame)
    say(f"Report: {page}")


def _print_setting(setting: str, frame: Any) -> None:
    from rich.table import Table

    table = Table("architecture", "member", title=f"setting: {setting}")
    for column in ("EV", "L0", "dead", "recovered", "mean best cos", "cos to start"):
        table.add_column(column, justify="right")
    here = frame.loc[frame["setting"] == setting]
    for (architecture, member), some in here.groupby(["architecture", "member"], sort=False):
        mean = some.mean(numeric_only=True)
        table.add_row(
            architecture,
            member,
            f"{mean['ev']:.3f}",
            f"{mean['l0']:.2f}",
            f"{mean['dead']:.0f}",
            f"{mean['recovered']:.0f} ({mean['recovered_share']:.1%})",
            f"{mean['mean_best_cosine']:.3f}",
            f"{mean['cos_to_start_mean']:.3f}",
        )
    print_table(table)
