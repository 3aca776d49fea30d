"""The card's tables and lists, in the report's own numbers and words."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sae_baselines.baselines import CONSTRAINTS
from sae_baselines.controls import is_control, is_random, kind_of
from sae_baselines.hub.source import SourceStudy
from sae_baselines.places import without_places
from sae_baselines.report import sections
from sae_baselines.report.document import (
    Block,
    Bullets,
    Cell,
    Details,
    Figure,
    Item,
    Row,
    Rows,
    Table,
    Text,
    code,
)
from sae_baselines.report.numbers import MISSING, difference, interval, mean_sd, number
from sae_baselines.results.tidy import Group
from sae_baselines.stats import Verdict
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import TRAINED, MemberSpec

FIGURES_SHOWN = 2
_OPEN_GROUPS = 2
_EV = ("panel", "explained_variance")
_L0 = ("panel", "l0")


@dataclass(frozen=True)
class MemberGroup:
    """Panels that differ in their seed alone.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        folder: Of the first seed's panel in the repo.
        seeds: Training seeds.
        members: Names of members.
    """

    architecture: str
    l0: float
    folder: str
    seeds: tuple[int, ...]
    members: tuple[str, ...]


def groups(source: SourceStudy, folders: Mapping[MemberKey, str]) -> list[MemberGroup]:
    """Every architecture and L0."""
    found: dict[Group, list[MemberKey]] = defaultdict(list)
    for key in source.members:
        found[key.panel.architecture, key.panel.l0].append(key)
    return [
        MemberGroup(
            architecture=group[0],
            l0=group[1],
            folder=folders[keys[0]].rpartition("/")[0],
            seeds=tuple(dict.fromkeys(key.panel.seed for key in keys)),
            members=tuple(dict.fromkeys(key.member for key in keys)),
        )
        for group, keys in found.items()
    ]


def warning(source: SourceStudy) -> str:
    """How many SAEs are random by design, and how many are broken."""
    asked = [member.constraint for member in source.members.values()]
    made = [c for c in asked if c != TRAINED]
    random = sum(map(is_random, made))
    found = {"random": random, "broken": len(made) - random}
    return "; ".join(f"{_of(n, len(asked))} {word} by design" for word, n in found.items() if n)


def _of(n: int, total: int) -> str:
    verb = "is" if n == 1 else "are"
    if n == total:
        return "The one SAE here is" if n == 1 else f"All {n} SAEs here are"
    return f"{n} of {total} SAEs here {verb}"


def not_trained(source: SourceStudy) -> str:
    """Controls, as code."""
    found = {k.member for k, m in source.members.items() if is_control(m.constraint)}
    return _codes(source, found)


def alike(source: SourceStudy) -> str:
    """What the members that are trained share; "" where there is nothing to compare."""
    found = {k.member: m for k, m in source.members.items() if not is_control(m.constraint)}
    if len(found) < 2:
        return ""
    holding = {c.name for c in CONSTRAINTS.values() if c.holds}
    held = " or held" if any(m.constraint in holding for m in found.values()) else ""
    apart = " (directions drawn with the activations' covariance apart)"
    other = apart if any(m.init_scheme == "cov" for m in found.values()) else ""
    return (
        f"Within a panel {_codes(source, set(found))} share initial weights{other}, batches "
        f"and hyperparameters, so their differences are due to what was frozen{held}."
    )


def _codes(source: SourceStudy, names: set[str]) -> str:
    ordered = dict.fromkeys(k.member for k in source.members if k.member in names)
    return ", ".join(map(code, ordered))


def random_members(source: SourceStudy) -> list[Item]:
    """What is random, or broken, in each member that is, by design."""
    asked = {key.member: member for key, member in source.members.items()}
    return [
        Item(code(name), _what(member, source))
        for name, member in asked.items()
        if member.constraint != TRAINED
    ]


def _what(member: MemberSpec, source: SourceStudy) -> str:
    kind = kind_of(member.constraint)
    if kind is not None and kind.untrained:
        return f"a control that nobody trained: {kind.what}."
    if kind is not None:
        return f"a control, a trained SAE with something broken: {kind.what}."
    drawn = {
        "iso": "uniformly random directions",
        "cov": "random directions with the activations' covariance",
    }[member.init_scheme]
    tau = source.spec.tau if member.tau is None else member.tau
    return CONSTRAINTS[member.constraint].of_directions(drawn, {"tau": tau})


def member_table(source: SourceStudy) -> Table:
    """A row per member of an architecture and L0: measured over its seeds."""
    table = source.table
    shown = []
    for group in table.groups:
        rows = []
        for name in dict.fromkeys(k.member for k in source.members if _group(k) == group):
            keys = [k for k in source.members if (_group(k), k.member) == (group, name)]
            cells = (
                Cell(code(name)),
                Cell(source.members[keys[0]].constraint),
                Cell(mean_sd([_value(source, k, *_L0) for k in keys]), "number"),
                Cell(mean_sd([_value(source, k, *_EV) for k in keys]), "number"),
            )
            rows.append(Row(cells))
        seeds = dict.fromkeys(k.panel.seed for k in source.members if _group(k) == group)
        where = f"{group[0]}/l0_{group[1]:g}/seed_<seed>/<member>"
        heading = f"{group[0]}, target L0 {group[1]:g}, {_seeds(list(seeds))}: {code(where)}"
        shown.append(Rows(heading, rows))
    return Table(
        ("member", "constraint", "measured L0", "EV"),
        shown,
        "Mean ± standard deviation over seeds. EV is explained variance on held-out text.",
    )


def _seeds(seeds: list[int]) -> str:
    word = "seed" if len(seeds) == 1 else "seeds"
    return f"{word} {', '.join(map(str, seeds))}"


def every_member(source: SourceStudy, folders: Mapping[MemberKey, str]) -> Table:
    """Every SAE with its folder."""
    rows = [
        Row(
            (
                Cell(code(folders[key])),
                Cell(number(_value(source, key, *_L0)), "number"),
                Cell(number(_value(source, key, *_EV)), "number"),
            )
        )
        for key in source.members
    ]
    return Table(("folder", "measured L0", "EV"), [Rows("", rows)])


def _group(key: MemberKey) -> Group:
    return key.panel.architecture, key.panel.l0


def _value(source: SourceStudy, key: MemberKey, suite: str, metric: str) -> float:
    if (suite, metric) == _L0:
        at = (key.panel.name, key.member, key.panel.seed)
        return source.table.measured_l0.get(at, math.nan)
    return source.table.values(_group(key), (suite, metric), key.member).get(
        key.panel.seed, math.nan
    )


def checked(source: SourceStudy) -> str:
    """The published SAE that the study checks, as code; "" without one."""
    published = source.spec.published
    return code(without_places(published.source)) if published is not None else ""


def left_out(source: SourceStudy) -> str:
    """Members that are in the results and not in the repo, as code."""
    return ", ".join(code(name) for name in source.left_out)


def question(source: SourceStudy) -> str:
    """Heading of the answer."""
    if source.spec.published is not None:
        return "Where the published SAE falls among random ones"
    return "Does the trained SAE beat random?"


def answer(source: SourceStudy) -> list[Block]:
    """The report's sentences: does it beat random, or where does a published SAE fall?"""
    placed = [s for s in source.report.sections if s.id == "published"]
    if placed:
        return [block for block in placed[0].blocks if block.kind != "figures"]
    if not source.report.against_random:
        return [Text("Nothing could be compared with random; report.md says why.")]
    return _beats_random(source)


def _beats_random(source: SourceStudy) -> list[Block]:
    found = sections.answer(source.report.against_random)
    return [block for block in found if isinstance(block, Bullets)]


def second_question(source: SourceStudy) -> str:
    """Of a check: heading of what is said of the SAE that was trained here; "" for nothing."""
    if source.spec.published is None or not source.report.against_random:
        return ""
    return next(s.title for s in source.report.sections if s.id == "answer")


def second_answer(source: SourceStudy) -> list[Block]:
    """What stands under `second_question`."""
    return _beats_random(source) if second_question(source) else []


def strips(source: SourceStudy) -> list[Figure]:
    """Of a check: the published SAE among the others' seeds."""
    return [f for f in source.report.figures if "-published-" in f.name]


def verdict_blocks(source: SourceStudy) -> list[Block]:
    """A table per architecture and L0; beyond the first ones folded away."""
    found: dict[Group, list[Verdict]] = defaultdict(list)
    for verdict in source.report.verdicts:
        found[verdict.architecture, verdict.l0].append(verdict)
    if not found:
        return []
    blocks: list[Block] = [Text("The words:"), sections.glossary(source.report.verdicts)]
    for i, (group, some) in enumerate(found.items()):
        table = _verdict_table(source, group, some)
        folded = i >= _OPEN_GROUPS
        blocks.append(Details(f"{sections.named(group)}", [table]) if folded else table)
    level = f"{source.report.verdicts[0].interval.level:.0%}"
    blocks.append(
        Text(
            "Differences are turned so that positive means the trained SAE is better; the "
            f"interval is the {level} t interval over training seeds, which the verdict rests "
            "on. L0 is measured. Reasons, margins, p-values and bootstrap intervals: "
            "`report.md`; all digits: `verdicts.csv`."
        )
    )
    return blocks


def _verdict_table(source: SourceStudy, group: Group, items: list[Verdict]) -> Table:
    by_metric: dict[str, list[Verdict]] = defaultdict(list)
    for v in items:
        name = sections.heading(v.suite, v.metric, v.direction)
        by_metric[f"{sections.named(group)}: {name}"].append(v)
    columns = ("against", "verdict", "trained", "other", "difference", "interval", "L0")
    own = number(source.table.l0(group, TRAINED))
    return Table(
        columns,
        [
            Rows(
                f"{name}; trained at L0 {own}", [_verdict_row(source, group, v) for v in found]
            )
            for name, found in by_metric.items()
        ],
    )


def _verdict_row(source: SourceStudy, group: Group, v: Verdict) -> Row:
    low, high = v.interval.low, v.interval.high
    return Row(
        (
            Cell(code(v.baseline) + (" (control)" if is_control(v.constraint) else "")),
            Cell(v.word, "word"),
            Cell(number(v.trained), "number"),
            Cell(number(v.other), "number"),
            Cell(difference(v.mean_difference, low, high), "number"),
            Cell(interval(low, high), "number"),
            Cell(number(source.table.l0(group, v.baseline)), "number"),
        )
    )


def figures(source: SourceStudy) -> list[Figure]:
    """All others, differences first: they show what verdicts are made of."""
    others = [f for f in source.report.figures if "-published-" not in f.name]
    return sorted(others, key=lambda figure: "-differences" not in figure.name)


def caveat_blocks(source: SourceStudy) -> list[Block]:
    """The report's caveats, without the notes of the evaluations."""
    grave = [c for c in source.report.caveats if c.kind != "note"]
    notes = len(source.report.caveats) - len(grave)
    blocks = sections.caveat_list(grave)
    if notes:
        blocks.append(Text(f"Notes of the evaluations: {notes}, in `report.md`."))
    return blocks


def training(source: SourceStudy, model: str | None, dataset: str | None) -> Table:
    """How every member that is no control was trained."""
    spec, context = source.spec, source.context
    told = next(iter(source.configs.values()))["metadata"]
    data_order = {
        "shared": "one order of the data for all seeds",
        "per_seed": "another order of the data for each seed",
    }[spec.data_order]
    facts = [
        ("language model", code(model or context.model)),
        ("hook", code(spec.hook_name)),
        (
            "text",
            code(dataset or told.get("dataset_path")) + f", split {code(spec.dataset.split)}",
        ),
        ("tokens per SAE", f"{spec.training_tokens:,}"),
        ("context", f"{spec.context_size} tokens" + _positions(spec.seqpos_slice)),
        ("batch", f"{spec.train_batch_size_tokens:,} tokens"),
        (
            "learning rate",
            f"{spec.lr:g}, {spec.lr_scheduler_name}; {spec.lr_warm_up_steps} steps of warm-up, "
            f"{spec.lr_decay_steps} of decay; Adam, betas {spec.adam_beta1:g} and "
            f"{spec.adam_beta2:g}",
        ),
        (
            "normalisation of activations",
            code(spec.normalize_activations)
            + (", folded into the weights" if _is_folded(source) else ""),
        ),
        ("latents", f"{context.d_sae:,}" if context.d_sae else ""),
        ("seeds", f"{', '.join(map(str, spec.seeds))}; {data_order}"),
        (
            "start",
            "the same weights for all of a panel that are trained, a function of the seed; "
            "directions drawn as said above; "
            f"`b_dec` from {'the mean activation' if spec.b_dec_init == 'mean' else 'zeros'}",
        ),
        ("not trained", not_trained(source)),
    ]
    rows = [Row((Cell(name), Cell(text))) for name, text in facts if text]
    return Table(("what", "value"), [Rows("", rows)])


def _is_folded(source: SourceStudy) -> bool:
    """Whether SAEs that were trained on normalised activations take them as they are."""
    asked = source.spec.normalize_activations
    kept = {config.get("normalize_activations") for config in source.configs.values()}
    return asked != "none" and kept == {"none"}


def _positions(seqpos_slice: list[int | None]) -> str:
    if seqpos_slice == [None]:
        return ""
    return f", positions {code(':'.join('' if p is None else str(p) for p in seqpos_slice))}"


def evaluation(source: SourceStudy) -> list[Block]:
    """What was measured, by which suite."""
    rows = source.table.frame
    suites = [s for s in dict.fromkeys(rows["suite"]) if s != "panel"]
    tokens = f"{source.spec.eval_tokens:,} held-out tokens"
    items = [
        Item(
            "panel",
            f"this package's own measurement of the exported SAEs: EV and L0 on {tokens}.",
        )
    ]
    for suite in suites:
        n = rows.loc[rows["suite"] == suite, "metric"].nunique()
        items.append(Item(suite, f"SAEBench's suite of that name; {n} metrics."))
    return [Bullets(items)]


def versions(source: SourceStudy) -> Table:
    """Versions by stage, of what decides the numbers."""
    stages = source.context.versions
    packages = dict.fromkeys(p for found in stages.values() for p in found)
    rows = [
        Row([Cell(code(p)), *(Cell(stages[s].get(p, MISSING)) for s in stages)])
        for p in packages
    ]
    return Table(("package", *stages), [Rows("", rows)])
