"""The model card: front matter that the Hub takes, and what a reader must know."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from huggingface_hub import ModelCard, ModelCardData, constants

from sae_baselines.controls import is_control
from sae_baselines.errors import UserError
from sae_baselines.hub import card_parts as parts
from sae_baselines.hub.names import hub_dataset, hub_model
from sae_baselines.hub.source import SourceStudy
from sae_baselines.report.write import environment, tidied
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import TRAINED

CARD_FILE = constants.REPOCARD_NAME
PAPER = "2602.14111"
_MARK = "sae_baselines publish"
_MANIFEST = re.compile(rf"<!-- {_MARK} (\{{.*?\}}) -->", re.DOTALL)


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
class Manifest:
    """What a publish put into a repo, hidden in its card: so it can be told from the rest.

    Attributes:
        study: Name of the study.
        spec_hash: SHA-256 of its spec: two studies may well have the same name.
        members: Folders of members.
        figures: Paths of figures.
        text_sha256: Of the card without this, so that an edit by hand is noticed.
    """

    study: str
    spec_hash: str
    members: tuple[str, ...]
    figures: tuple[str, ...]
    text_sha256: str

    def comment(self) -> str:
        """The card's last line."""
        # "--" would end the comment.
        text = json.dumps(asdict(self)).replace("--", "\\u002d\\u002d")
        return f"<!-- {_MARK} {text} -->"

    def is_text_of(self, card: str) -> bool:
        """Whether a card still says what it said when this was put into it."""
        return _text_sha256(card) == self.text_sha256


def manifest_of(card: str) -> Manifest | None:
    """The manifest in a card; None in one that this tool did not make."""
    found = _MANIFEST.search(card)
    if found is None:
        return None
    try:
        told = json.loads(found[1])
        return Manifest(
            str(told["study"]),
            str(told["spec_hash"]),
            tuple(map(str, told["members"])),
            tuple(map(str, told["figures"])),
            str(told["text_sha256"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _text_sha256(card: str) -> str:
    # Blank space at the end and line endings are the editor's, not the author's.
    text = "\n".join(_MANIFEST.sub("", card).splitlines()).strip()
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
    paths = tuple(path for path in published if path.startswith("figures/"))
    figures = parts.figures(source)
    body = (
        environment(False, "sae_baselines.hub")
        .get_template("card.md.j2")
        .render(
            s=source,
            spec=source.spec,
            repo=repo,
            revision=revision,
            model=model,
            dataset=dataset,
            paper=PAPER,
            groups=parts.groups(source, folders),
            warning=parts.warning(source),
            not_trained=parts.not_trained(source),
            alike=parts.alike(source),
            random=parts.random_members(source),
            members=parts.member_table(source),
            every=parts.every_member(source, folders),
            checked=parts.checked(source),
            left_out=parts.left_out(source),
            question=parts.question(source),
            answer=parts.answer(source),
            strips=parts.strips(source)[: parts.FIGURES_SHOWN],
            second_question=parts.second_question(source),
            second_answer=parts.second_answer(source),
            verdicts=parts.verdict_blocks(source),
            first_figures=figures[: parts.FIGURES_SHOWN],
            more_figures=[
                *parts.strips(source)[parts.FIGURES_SHOWN :],
                *figures[parts.FIGURES_SHOWN :],
            ],
            caveats=parts.caveat_blocks(source),
            training=parts.training(source, model, dataset),
            evaluation=parts.evaluation(source),
            versions=parts.versions(source),
        )
    )
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_unbroken(tidied(body))}"))
    manifest = Manifest(
        source.name, source.spec_hash, tuple(folders.values()), paths, _text_sha256(text)
    )
    return Card(f"{text}\n{manifest.comment()}\n", notes)


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
