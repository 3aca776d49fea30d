"""Pages of latents: which are shown, and the files."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.files import write_atomically, write_sealed
from sae_baselines.report.blind import key_of, shuffled
from sae_baselines.report.build import Report
from sae_baselines.report.gallery import Row, Shown, table
from sae_baselines.report.markdown import Section, code, render
from sae_baselines.report.write import to_html
from sae_baselines.stats.by_rate import like, like_rows
from sae_baselines.study.latents import Latents
from sae_baselines.study.plan import MemberKey

BLIND_PAGE = "latents_blind.html"


def rows_of(
    latents: Mapping[MemberKey, Latents],
    named: Sequence[tuple[str, int]],
    per_decade: int,
    seed: int,
) -> list[tuple[int | None, dict[MemberKey, int]]]:
    """Which latents are shown side by side.

    Args:
        latents: Of each column.
        named: Member and index of latents that get a row of their own, beside latents of the
            others whose rate is nearest.
        per_decade: Further rows of each decade; see `like_rows`.
        seed: Of the draw.

    Raises:
        UserError: An unknown member or latent, one that never fires, an SAE none of whose
            latents fires, nothing in common.
    """
    rates = {key: found.rates.copy() for key, found in latents.items()}
    members = {key.member: key for key in latents}
    for key, of in rates.items():
        if not of.any():
            raise UserError(
                f"members: no latent of {key.member} fires on the {latents[key].n_tokens:,} "
                "held-out tokens; leave it out with --members"
            )
    rows: list[tuple[int | None, dict[MemberKey, int]]] = []
    for member, index in named:
        if member not in members:
            raise UserError(
                f"latent: {member!r} is unknown; {did_you_mean(member, list(members))}"
            )
        own = latents[members[member]].rates
        if not 0 <= index < len(own):
            raise UserError(f"latent: {member} has latents 0 to {len(own) - 1:,}, not {index}")
        if own[index] == 0:
            raise UserError(
                f"latent: {member}:{index} fires on none of the "
                f"{latents[members[member]].n_tokens:,} held-out tokens, so that there is "
                "nothing to show; name another"
            )
        row = {}
        for key, of in rates.items():
            there = index if key.member == member else like(of, float(own[index]), seed)
            if there is None:
                raise UserError(f"latent: {key.member} has no latents left to show beside it")
            row[key] = there
            of[there] = 0  # not twice
        rows.append((None, row))
    rows += like_rows(rates, per_decade, seed)
    if not rows:
        raise UserError(
            "members: they have no decade of the firing rate in common; leave one out with "
            "--members"
        )
    return rows


@dataclass(frozen=True)
class About:
    """What a page is of: SAEs (Markdown), and the names of model and hook."""

    saes: str
    model: str
    hook: str


def write_gallery(
    out: Path, columns: Sequence[str], rows: Sequence[Row], seed: int, about: About
) -> list[Path]:
    """Write the page; it needs nothing but itself.

    Args:
        out: File.
        columns: Names of SAEs.
        rows: From frequent to rare.
        seed: What drew them.
        about: What they are of.
    """
    html = table(columns, rows, full=True)
    return _write(out, "Latents side by side", html, len(rows), seed, about, blind=False)


def write_blind(
    out: Path, rows: Sequence[Row], trained: Collection[str], seed: int, about: About
) -> list[Path]:
    """Write a page of pairs without names, and its key beside it (``<page>_key.json``).

    A pair is of the trained SAE and one of the others. These come up equally often, in an
    order drawn by lot: in turn, a reader could learn who comes next.

    Args:
        out: File.
        rows: As for `write_gallery`.
        trained: Names of members that are trained without a constraint.
        seed: Of the order of pairs' other members, and in each pair.
        about: What they are of.

    Raises:
        UserError: Nothing to tell from one another.
    """
    pairs: list[list[Shown]] = []
    turns = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    for i, (_, cells) in zip(turns, rows, strict=True):
        own = [cell for cell in cells if cell.member in trained]
        others = [cell for cell in cells if cell.member not in trained]
        if not own or not others:
            raise UserError("members: a blind page needs the trained SAE and another one")
        pairs.append([own[0], others[i % len(others)]])
    letters, mixed = shuffled(pairs, seed)
    key = key_of(
        {
            str(i): {
                "trained": letters[[cell.member in trained for cell in pair].index(True)],
                "against": next(cell.member for cell in pair if cell.member not in trained),
                **{
                    a: f"{cell.member}:{cell.latent}"
                    for a, cell in zip(letters, pair, strict=True)
                },
            }
            for i, pair in enumerate(mixed, start=1)
        }
    )
    blind = [(decade, pair) for (decade, _), pair in zip(rows, mixed, strict=True)]
    html = table(letters, blind, full=True, page_id=key["page"])
    title = "Which of two latents is the trained SAE's?"
    files = _write(out, title, html, len(rows), seed, about, blind=True)
    path = key_file(out)
    write_sealed(path, key)
    return [*files, path]


def key_file(page: Path) -> Path:
    """Where the key of a blind page is."""
    return page.with_name(f"{page.stem}_key.json")


def _write(
    out: Path, title: str, html: str, n: int, seed: int, about: About, *, blind: bool
) -> list[Path]:
    text = render("latents_how.md.j2", n=n, seed=seed, about=about, blind=blind)
    of = f"{about.saes}: {code(about.model)}, {code(about.hook)}."
    sections = (
        Section("latents", "Latents", "", html),
        Section("how", "How to read this page", text),
    )
    write_atomically(out, to_html(Report(title=title, lede=of, sections=sections)))
    return [out]
