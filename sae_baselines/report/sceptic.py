"""Where each number comes from, and what was used."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sae_baselines.report.caveats import version_mix
from sae_baselines.report.context import ReportContext
from sae_baselines.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Details,
    Row,
    Rows,
    Table,
    Text,
    code,
)
from sae_baselines.report.numbers import MISSING
from sae_baselines.results.tidy import Tidy
from sae_baselines.stats import ALPHA, Verdict
from sae_baselines.stats.intervals import RESAMPLES
from sae_baselines.stats.one_value import seeds_for

_HOME = re.compile(r"(?<![\w.~])(/home/[^/\s'\"]+|/Users/[^/\s'\"]+)(?![^/\s'\"])")


def sceptic(
    table: Tidy,
    context: ReportContext,
    primary: Sequence[str],
    items: Sequence[Verdict],
    published: bool = False,
) -> list[Block]:
    """Commands, files, method and limits; of verdicts, and of a published SAE's placements."""
    of_verdicts = not published or bool(items)
    blocks: list[Block] = [
        *_commands(context),
        Text(
            "Where each number lies in the study folder, and which command makes it again. "
            "Finished results are kept: a suite runs again under the same settings only "
            "with `--force`, and a finished study is trained again only in another folder."
        ),
        _sources(table, context, published),
    ]
    if published:
        blocks += [
            Text("The placements alone, from `results.csv`:"),
            Code(_python_of_published(context, primary)),
            Text("How the published SAE is placed:"),
            Bullets(_method_of_placing()),
            Text("What a placement does not say:"),
            Bullets(_limits_of_placing()),
        ]
    if of_verdicts:
        blocks += [
            Text("The verdicts alone, from `results.csv`:"),
            Code(_python(context, primary)),
            Text("How a verdict is computed:"),
            Bullets([*_method(items), *_of_controls(table, published)]),
            Text("What a verdict does not say:"),
            Bullets(_limits(context)),
        ]
    return blocks


def _commands(context: ReportContext) -> list[Block]:
    if context.commands:
        return [
            Text("Commands that were recorded with the results, oldest first:"),
            Code(_without_home("\n".join(context.commands))),
        ]
    again = [
        "sae-baselines train panel.yaml --out <other>",
        "sae-baselines eval <other> --config panel.yaml",
        "sae-baselines report <other>",
    ]
    return [
        Text(
            "No commands were recorded. These would make it again in another folder, from a "
            "`panel.yaml` with the spec and, as its section `evals`, the evaluation settings "
            "that are printed under Provenance:"
        ),
        Code("\n".join(again)),
    ]


def _sources(table: Tidy, context: ReportContext, published: bool) -> Table:
    folder = context.folder
    suites = [s for s in dict.fromkeys(table.frame["suite"]) if s != "panel"]
    train = "`sae-baselines train panel.yaml --out <other>`"
    rows: list[tuple[str, str, str]] = []
    if published:
        train = (
            f"`sae-baselines check {context.published.get('source', '<sae>')} --out <other>`"
        )
        rows = [
            (
                "weights of the published SAE, and what it records",
                "`published/`, a SAELens folder; `published/record.json`",
                train,
            ),
            (
                "its placements",
                "`placements.csv`, `report.md`, `report.html`, `figures/`",
                f"`sae-baselines report {folder}`",
            ),
        ]
    rows += [
        (
            "weights of every member",
            "`panels/<panel>/<member>/`, a SAELens folder each",
            f"{train}, with the spec in `{folder}/study.yaml`",
        ),
        (
            "metrics of suite `panel`: EV, L0, live latents, cross-entropy",
            "`panels/<panel>/<member>/measurement.json`",
            "the same",
        ),
        *(
            (
                f"metrics of suite {code(s)}",
                f"`evals/{s}/`, SAEBench's JSON as it wrote it",
                f"`sae-baselines eval {folder} --force --suites {s}`",
            )
            for s in sorted(suites)
        ),
        ("all of these as one table", "`results.csv`", f"`sae-baselines eval {folder}`"),
        (
            "verdicts, intervals, shares, figures",
            "`verdicts.csv`, `report.md`, `report.html`, `figures/`",
            f"`sae-baselines report {folder}`",
        ),
    ]
    cells = [Row([Cell(text) for text in row]) for row in rows]
    return Table(("number", "file", "command"), [Rows("", cells)], layout="stack")


def _python(context: ReportContext, primary: Sequence[str]) -> str:
    margins = {p: getattr(m, "value", m) for p, m in context.margins.items()}
    return "\n".join(
        [
            "from sae_baselines.evals.results import load_results",
            "from sae_baselines.stats import against_random, to_frame, verdicts",
            "",
            f"results = load_results({context.folder!r})",
            "found = verdicts(",
            "    results,",
            f"    metrics={list(primary) or None!r},",
            f"    margins={margins!r},",
            '    on_missing="exclude",',
            ")",
            "print(to_frame(found))",
            "print(to_frame(against_random(found)))",
        ]
    )


def _python_of_published(context: ReportContext, primary: Sequence[str]) -> str:
    return "\n".join(
        [
            "from sae_baselines.evals.results import load_results",
            "from sae_baselines.stats import placed_against_random, placements, to_frame",
            "",
            f"results = load_results({context.folder!r})",
            f"found = placements(results, metrics={list(primary) or None!r}, "
            'on_missing="exclude")',
            "print(to_frame(found))",
            "print(to_frame(placed_against_random(found)))",
        ]
    )


def _method_of_placing() -> list[str]:
    return [
        "The published SAE has one value per metric, each other member one per training seed; "
        "tasks are averaged first, and must be the same tasks. Nothing is paired.",
        "Share below: mid-ranks; its interval is Clopper and Pearson's for a share of which so "
        "many of n were seen. Where seeds tie with the value, its ends are those of 'below' "
        "and of 'below or equal'.",
        "Rank p: (1 + seeds at least as good) / (n + 1). Valid for exchangeable values, "
        f"whatever their distribution, and never below 1 / (n + 1): {ALPHA:g} takes "
        f"{seeds_for(ALPHA)} seeds.",
        "Prediction p: one-sided, (value - mean) / (sd √(1 + 1/n)) against t with n - 1 "
        "degrees of freedom (Crawford and Howell 1998). Normal percentile: "
        "Φ((value - mean) / sd), its interval by inverting the noncentral t distribution "
        "(Crawford and Garthwaite 2002). "
        "Neither is given for one seed or for seeds without spread.",
        "Against all random SAEs: the largest p over them (an intersection-union test); Holm's "
        "correction of the prediction p over the metrics. SAEs trained here and permuted "
        "controls are not in it.",
        "L0 of the published SAE and of any seed of the member may differ by 5% at most; "
        "otherwise it is not placed.",
    ]


def _limits_of_placing() -> list[str]:
    return [
        "It is about this one SAE. Whether its recipe beats random takes several seeds of it.",
        "Intervals leave out the published SAE's own variation over seeds: a value near the "
        "edge of the others could lie on the other side with another seed.",
        "The others were trained here, with this package's data order and the recipe as far as "
        "it is recorded; budgets and texts are put side by side at the top. What an SAE gains "
        "from more tokens or better tuning is not told apart from what it gains from training "
        "the part that the baselines freeze.",
        "Whoever picks the best of several published SAEs, or the metrics after looking, has "
        "looked more often than the p-values allow for.",
        "Being better than random SAEs on a metric does not say that latents are the model's "
        "own features.",
    ]


def _method(items: Sequence[Verdict]) -> list[str]:
    alpha = items[0].alpha if items else ALPHA
    return [
        "The unit is the training seed. Trained and baseline of one seed share the "
        "seed, the data and the target L0; d is the difference of their scores, one number per "
        "seed. Tasks (datasets, attributes) are averaged first.",
        f"t interval: mean(d) ∓ t(1 - {alpha / 2:g}, n - 1) · sd(d) / √n over the n seeds.",
        f"Bootstrap: {RESAMPLES:,} replicates that resample seeds and, where a metric has "
        "paired tasks, tasks; percentiles. With few seeds it is too narrow; it is shown and "
        "never decides.",
        "p: two-sided paired t test of d = 0. 'matches': two one-sided tests against the "
        "margin. Both lists are corrected by Holm over the metrics of one baseline, at "
        f"{alpha:g}.",
        "Beats random: an intersection-union test; the largest p over the baselines, Holm over "
        "the metrics.",
        "L0 of two SAEs may differ by 5% at most; otherwise no verdict is given.",
        "Margins are conventions, to be fixed before looking; each row prints the one it used.",
    ]


def _of_controls(table: Tidy, published: bool) -> list[str]:
    if not table.controls:
        return []
    source = "published SAE" if published else "trained member"
    return [
        "Controls: untrained random SAEs count as baselines in 'beats random', which makes the "
        "claim harder, never easier. Permuted controls decide nothing there; each is compared "
        "on what it is a null for, its metrics being a family of their own.",
        f"Controls are made, not trained: from the {source}'s weights, the training seed "
        "and the held-out calibration activations, which suite `panel` does not measure on.",
    ]


def _limits(context: ReportContext) -> list[str]:
    where = " ".join(
        part
        for part in (
            code(context.model) if context.model else "this model",
            f"at {code(context.hook)}" if context.hook else "",
        )
        if part
    )
    return [
        f"It is about {where}, this training budget, these L0s and these datasets; not about "
        "sparse autoencoders at large.",
        "Beating random baselines says that training the frozen part helped on this metric. It "
        "does not say that latents are the model's own features.",
        "'inconclusive' and 'not shown' are no evidence of equality; only 'matches' is, and "
        "only up to its margin.",
        "The chance of error is controlled over the metrics of one baseline (or of one panel, "
        "for 'beats random'), not over architectures, L0s or repeated looks at more seeds.",
        "Where the metrics, the margins or the seeds were chosen after looking at results, the "
        "p-values do not hold.",
        "Baselines have hyperparameters too; they were trained with those of the trained SAE.",
    ]


def provenance(table: Tidy, context: ReportContext) -> list[Block]:
    """Study, versions, machines, spec."""
    facts: list[tuple[str, Any]] = [
        ("study", context.study),
        ("model", context.model),
        ("hook", context.hook),
        ("d_in", context.d_in),
        ("d_sae", context.d_sae),
        (
            "training tokens per member",
            f"{context.training_tokens:,}" if context.training_tokens else "",
        ),
        ("target L0", ", ".join(f"{l0:g}" for l0 in context.l0s)),
        ("training seeds", ", ".join(map(str, context.seeds))),
        ("SAEs with rows", len(table.panels)),
        ("rows", f"{len(table.frame):,}"),
        *_of_published(context.published),
        *((f"machine ({stage})", text) for stage, text in context.hardware.items()),
    ]
    cells = [
        Row([Cell(name), Cell(code(value))]) for name, value in facts if value not in (None, "")
    ]
    blocks: list[Block] = [Table(("what", "value"), [Rows("", cells)])]
    blocks += _versions(table, context)
    if context.spec:
        blocks.append(_settings("The resolved spec", context.spec))
    if context.evals:
        blocks.append(_settings("The evaluation settings", context.evals))
    return blocks


def _of_published(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    versions: Mapping[str, str] = record.get("versions") or {}
    return [
        ("published SAE", record.get("source")),
        ("its weights, SHA-256", record.get("weights_sha256")),
        ("versions it records", ", ".join(f"{k} {v}" for k, v in versions.items())),
    ]


def _settings(title: str, settings: Mapping[str, Any]) -> Details:
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    return Details(title, [Code(_without_home(text.rstrip()))])


def _without_home(text: str) -> str:
    """Home folders as ``~``: a report is published, and they hold names of people."""
    return _HOME.sub("~", text)


def _versions(table: Tidy, context: ReportContext) -> list[Block]:
    blocks: list[Block] = []
    packages = dict.fromkeys(p for found in context.versions.values() for p in found)
    if packages:
        stages = list(context.versions)
        rows = [
            Row([Cell(code(p)), *(Cell(context.versions[s].get(p, MISSING)) for s in stages)])
            for p in packages
        ]
        blocks.append(Table(("package", *stages), [Rows("", rows)], "Versions by stage."))
    by_row = version_mix(table)
    if by_row:
        rows = [
            Row([Cell(code(p)), Cell(code(version)), Cell(", ".join(sorted(suites)))])
            for p, versions in by_row.items()
            for version, suites in sorted(versions.items())
        ]
        grid = Table(("package", "version", "suites"), [Rows("", rows)])
        blocks.append(Details("Versions recorded in the rows", [grid]))
    return blocks
