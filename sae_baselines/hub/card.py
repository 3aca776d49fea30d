"""The model card: front matter that the Hub takes, and what a reader must know."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from sae_baselines.baselines import CONSTRAINTS
from sae_baselines.controls import TRAINED, is_control, kind_of, question_of
from sae_baselines.errors import UserError
from sae_baselines.hub.ids import hub_dataset, hub_model
from sae_baselines.hub.layout import FIGURES, Manifest, text_sha256_of
from sae_baselines.hub.source import SourceStudy
from sae_baselines.redact import without_places
from sae_baselines.report import reference as of_reference
from sae_baselines.report.caveats import single_seeds
from sae_baselines.report.markdown import grouped, render, without_marks, words
from sae_baselines.study.plan import MemberKey

PAPER = "2602.14111"
_HERE = "sae_baselines.hub"
# Figures that are not folded away.
_SHOWN = 2


@dataclass(frozen=True)
class CardOptions:
    """What a study does not say of itself.

    Attributes:
        license: The Hub's id of a licence, or "other".
        license_name: Name of another licence.
        license_link: Where it can be read.
        base_model: The Hub's id of the language model, where the study has a local one.
    """

    license: str
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        text: README.md.
        notes: What it could not say.
    """

    text: str
    notes: tuple[str, ...]


def make_card(
    source: SourceStudy,
    repo: str,
    revision: str,
    options: CardOptions,
    folders: Mapping[MemberKey, str],
    published: Sequence[str],
) -> Card:
    """Write the card of a study.

    Args:
        source: The study.
        repo: ``user/repo``.
        revision: Branch that it will lie on.
        options: What the study does not say.
        folders: Where each member lies in the repo.
        published: Paths of the other files, for the manifest.

    Raises:
        UserError: The base model is no id of the Hub.
    """
    model, dataset, notes = _hub_names(source, options)
    data = ModelCardData(
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        library_name="saelens",
        base_model=model,
        datasets=[dataset] if dataset else None,
        tags=_tags(source),
    )
    paths = tuple(path for path in published if path.startswith(f"{FIGURES}/"))
    body = render("card.md.j2", _HERE, **_told(source, repo, revision, model, dataset, folders))
    body = _unbroken(without_marks(body))
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
    manifest = Manifest(
        source.name, source.spec_hash, tuple(folders.values()), paths, text_sha256_of(text)
    )
    return Card(f"{text}\n{manifest.comment()}\n", notes)


def _told(
    source: SourceStudy,
    repo: str,
    revision: str,
    model: str | None,
    dataset: str | None,
    folders: Mapping[MemberKey, str],
) -> dict[str, Any]:
    """What the card's template is told."""
    spec, report, table = source.spec, source.report, source.table
    recorded = next(iter(source.configs.values()))["metadata"]
    strips = [f for f in report.figures if "-published-" in f.name]
    others = [f for f in report.figures if "-published-" not in f.name]
    # Differences first: they show what verdicts are made of.
    others.sort(key=lambda figure: "-differences" not in figure.name)
    reference, titles = spec.published, {s.id: s.title for s in report.sections}
    published = ""
    if report.reference is not None:
        published = of_reference.section(report.reference, source.context, [], {})
    suites = table.frame.groupby("suite", sort=False)["metric"].nunique().to_dict()
    positions = ":".join("" if p is None else str(p) for p in spec.seqpos_slice)
    return {
        "spec": spec,
        "report": report,
        "context": source.context,
        "table": table,
        "repo": repo,
        "revision": revision,
        "model": model,
        "dataset": dataset,
        "recorded_dataset": recorded.get("dataset_path"),
        "paper": PAPER,
        "groups": _groups(source, folders),
        "every": [(folders[key], *_measured(source, key)) for key in source.members],
        "warning": warning(source),
        "random": random_members(source),
        "shared": shared(source),
        "controls": controls(source),
        "reference": "" if reference is None else without_places(reference.source),
        "left_out": source.left_out,
        "of_random_models": source.of_random_models,
        "question": titles["published" if reference is not None else "answer"],
        "published": published,
        "singles": single_seeds(table, report.verdicts),
        "drawn": [f for f in report.figures if f.name.startswith("answer-")],
        "second_question": titles.get("answer")
        if reference is not None and report.against_random
        else None,
        "strips": strips[:_SHOWN],
        "more_strips": strips[_SHOWN:],
        "figures": others,
        "shown": _SHOWN,
        # Trained on normalised activations, yet takes them as they are.
        "folded": spec.normalize_activations != "none"
        and {c.get("normalize_activations") for c in source.configs.values()} == {"none"},
        "positions": "" if spec.seqpos_slice == [None] else positions,
        "suites": {suite: n for suite, n in suites.items() if suite != "panel"},
        "TRAINED": TRAINED,
    }


def _groups(source: SourceStudy, folders: Mapping[MemberKey, str]) -> list[dict[str, Any]]:
    """Every architecture and L0: panels that differ in their seed alone."""
    found = []
    by_group = grouped(source.members, lambda key: (key.panel.architecture, key.panel.l0))
    for (architecture, l0), keys in by_group.items():
        rows = []
        for name, same in grouped(keys, lambda key: key.member).items():
            measured = [_measured(source, key) for key in same]
            constraint = source.members[same[0]].constraint
            rows.append((name, constraint, *zip(*measured, strict=True)))
        found.append(
            {
                "architecture": architecture,
                "l0": l0,
                "folder": folders[keys[0]].rpartition("/")[0],
                "seeds": tuple(dict.fromkeys(key.panel.seed for key in keys)),
                "members": tuple(dict.fromkeys(key.member for key in keys)),
                "rows": rows,
            }
        )
    return found


def _measured(source: SourceStudy, key: MemberKey) -> tuple[float, float]:
    """L0 and explained variance."""
    panel = key.panel
    group = (panel.architecture, panel.l0)
    ev = source.table.values(group, ("panel", "explained_variance"), key.member)
    l0 = source.table.measured_l0.get((panel.name, key.member, panel.seed), math.nan)
    return l0, ev.get(panel.seed, math.nan)


def warning(source: SourceStudy) -> str:
    """How many SAEs are random by design, nearly free (held near a random start), or broken."""
    constraints = [member.constraint for member in source.members.values()]
    asked = [question_of(c) for c in constraints if c != TRAINED]
    made = {q or "broken": asked.count(q) for q in ("random", "nearly free", None)}
    return _words("warning", made=made, total=len(constraints))


def controls(source: SourceStudy) -> list[str]:
    """Members that were never trained."""
    members = {k.member: m for k, m in source.members.items()}
    return [name for name, member in members.items() if member.is_control]


def shared(source: SourceStudy) -> str:
    """What the members that are trained share; "" where there is nothing to compare."""
    found = {k.member: m for k, m in source.members.items() if not is_control(m.constraint)}
    if len(found) < 2:
        return ""
    constraints = {m.constraint for m in found.values()}
    return _words(
        "shared",
        names=list(found),
        cov=any(m.init_scheme == "cov" for m in found.values()),
        held=any(CONSTRAINTS[c].holds for c in constraints if c in CONSTRAINTS),
    )


def random_members(source: SourceStudy) -> dict[str, str]:
    """What is random, or broken, in each member that is, by design."""
    members = {key.member: member for key, member in source.members.items()}
    texts = {}
    for name, member in members.items():
        kind = kind_of(member.constraint)
        if kind is not None:
            texts[name] = _words("control", kind=kind)
        elif member.constraint in CONSTRAINTS:
            options = {"tau": source.spec.tau, **member.options}
            drawn = _words("drawn", scheme=member.init_scheme)
            texts[name] = CONSTRAINTS[member.constraint].of_directions(drawn, options)
    return texts


def _words(macro: str, **values: Any) -> str:
    return words("card_words.md.j2", macro, _HERE, **values)


def _unbroken(body: str) -> str:
    """No line breaks within the numbers of a table."""

    def joined(row: re.Match[str]) -> str:
        return re.sub(r"(?<=[\d,±/]) (?=[±/+\d-])", "\u00a0", row[0])

    return re.sub(r"^\|.*\|$", joined, body, flags=re.MULTILINE)


def _hub_names(
    source: SourceStudy, options: CardOptions
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Base model and dataset as the Hub names them, and what is left out."""
    spec, notes = source.spec, []
    told = next(iter(source.configs.values()))["metadata"]
    model = hub_model(spec.model.name, str(told.get("model_name")))
    if options.base_model is not None:
        if hub_model(options.base_model, options.base_model) is None:
            raise UserError(
                f"base-model: {options.base_model!r} is no id of the Hub; e.g. "
                "EleutherAI/pythia-70m-deduped"
            )
        model = hub_model(options.base_model, options.base_model)
    if model is None:
        notes.append(
            f"base_model is left out: {spec.model.recorded_name} is a local model; name it "
            "with --base-model if the Hub has it"
        )
    if source.left_out:
        notes.append(
            f"{', '.join(source.left_out)}: left out, being the published SAE's weights "
            "rearranged; its owner's licence would decide"
        )
    if source.of_random_models:
        notes.append(
            f"{', '.join(source.of_random_models)}: left out, being of a language model with "
            "random weights, which is nowhere to be had; their scores are in the report"
        )
    dataset = hub_dataset(spec.dataset.path, str(told.get("dataset_path")))
    if dataset is None:
        notes.append("datasets is left out: the text is no dataset of the Hub")
    return model, dataset, tuple(notes)


def _tags(source: SourceStudy) -> list[str]:
    constraints = dict.fromkeys(m.constraint for m in source.members.values())
    # On the Hub a colon makes a namespace.
    kinds = [c.replace(":", "_") for c in constraints if c != TRAINED]
    return list(
        dict.fromkeys(
            [
                "saelens",
                "sparse-autoencoder",
                "baseline",
                *kinds,
                *(["control"] if any(map(is_control, constraints)) else []),
                *source.spec.architectures,
                f"arxiv:{PAPER}",
            ]
        )
    )
