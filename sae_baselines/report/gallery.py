"""Latents side by side: a column is an SAE, a row holds latents that fire about as often."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from sae_baselines.controls import TRAINED
from sae_baselines.report.markdown import Section, grouped, page, rate, render
from sae_baselines.results import SAEKey
from sae_baselines.stats.by_rate import like_rows
from sae_baselines.study.contexts import NEAR, TOP, Context, Contexts, LatentContexts
from sae_baselines.study.latents import Latents
from sae_baselines.study.stability import Nearest

PAGE = "latents.html"
_LEVELS = 6
# Of what is kept, how many of the most active contexts are shown, on the page and in a report.
_SHOWN, _FEW = 4, 2
_ROWS, _MEMBERS = 6, 4
_SIGNS = str.maketrans(
    {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\u21e5", "\r": "\u240d"}
)


@dataclass(frozen=True)
class Shown:
    """One latent on a page.

    Attributes:
        member: Whose.
        latent: Its index.
        rate: Share of held-out tokens that it fires on.
        cosine: Of its decoder row with its start; NaN where that is not known.
        found: Its contexts.
        nearest: Latents of other SAEs, by what they are called.
        blind: Whether the reader may know which SAE it is of.
        few: Whether to leave most of it out.
    """

    member: str
    latent: int
    rate: float
    cosine: float
    found: LatentContexts
    nearest: Mapping[str, Nearest] = field(default_factory=dict)
    blind: bool = False
    few: bool = False

    @property
    def anchor(self) -> str:
        """Of the page."""
        return f"{self.member}-{self.latent}"

    @property
    def facts(self) -> str:
        """Rate, and how far it moved."""
        if self.blind:
            return ""
        says = f"fires on {100 * self.rate:.2g} % of tokens ({self.found.firings:,})"
        known = math.isfinite(self.cosine)
        return says + (f", cosine to its start {self.cosine:.2f}" if known else "")

    @property
    def histogram(self) -> Markup:
        """Its activations, bars by the logarithm of how many."""
        bars = self.found.bars
        most = math.log1p(max(bars))
        path = "".join(
            f"M{i} 10v-{10 * math.log1p(n) / most:.2g}h.9V10z" for i, n in enumerate(bars) if n
        )
        most_active = "the largest" if self.blind else f"{self.found.largest:.3g}"
        label = f"Histogram of its activations, 0 to {most_active}"
        return Markup(
            '<svg class="bars" viewBox="0 0 {} 10" preserveAspectRatio="none" role="img" '
            'aria-label="{}"><title>{}</title><path d="{}"/></svg>'
        ).format(len(bars), label, label, path)

    @property
    def groups(self) -> list[tuple[str, list[Markup]]]:
        """Contexts by what they are."""
        kinds = grouped(self.found.contexts, lambda context: context.kind)
        out = []
        for kind, contexts in kinds.items():
            if kind == TOP:
                title, n = "most active", _FEW if self.few else _SHOWN
            elif kind == NEAR:
                title, n = "near misses (silent)", 1 if self.few else len(contexts)
            else:
                title, n = f"{kind}th percentile of its activations", len(contexts)
            # Their scale would betray whose they are.
            unit = "%" if self.blind else ""
            out.append((title, [line(c, self.found.largest, unit) for c in contexts[:n]]))
        return out

    @property
    def moves(self) -> list[tuple[str, Markup]]:
        """Tokens that it promotes and suppresses; they betray who was trained."""
        if self.blind or not self.found.promoted:
            return []
        pairs = (("promotes", self.found.promoted), ("suppresses", self.found.suppressed))
        n = 5 if self.few else 8
        return [
            (
                name,
                Markup(" ").join(
                    Markup("<code>{}</code>").format(visible(m.text)) for m in ms[:n]
                ),
            )
            for name, ms in pairs
        ]

    @property
    def near(self) -> str:
        """Latents of other SAEs."""
        if self.blind:
            return ""
        return ", ".join(
            f"{name} {other.latent} ({other.cosine:.2f})"
            for name, other in self.nearest.items()
        )


def visible(text: str) -> str:
    """A token with signs for what would not be seen."""
    shown = text.translate(_SIGNS)
    shown = "".join(
        c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in shown
    )
    return shown if shown.strip() or not shown else "\N{OPEN BOX}" * len(shown)


def line(context: Context, largest: float, unit: str = "") -> Markup:
    """A context with its tokens shaded, and in words what the shading says.

    Args:
        context: The text.
        largest: Largest absolute activation of the latent.
        unit: "%" to say activations as shares of it.
    """

    def said(act: float) -> str:
        return f"{100 * act / largest:.0f} %" if unit else f"{act:.3g}"

    acts = dict(zip(context.on, context.acts, strict=True))
    peak, parts = context.peak, []
    # A character that is spread over tokens stands with the first of them.
    for i in range(len(context.tokens) - 1, 0, -1):
        if context.tokens[i] == "":
            peak -= i == peak
            if i in acts:
                acts[i - 1] = max(acts.pop(i), acts.get(i - 1, 0.0), key=abs)
    for i, token in enumerate(context.tokens):
        text = visible(token)
        word = text.lstrip(" ") if token.strip() else text
        parts.append(" " * (len(text) - len(word)))
        bold = " p" if i == peak else ""
        if i in acts:
            level = min(_LEVELS, max(1, math.ceil(_LEVELS * abs(acts[i]) / largest)))
            mark = Markup('<mark class="a{}{}" title="{}">{}</mark>')
            parts.append(mark.format(level, bold, said(acts[i]), word))
        elif i == peak:
            parts.append(Markup('<mark class="n p" title="silent">{}</mark>').format(word))
        else:
            parts.append(escape(word if token.strip() else token.translate(_SIGNS)))
    value = said(context.value)
    says = "silent on" if context.kind == NEAR else f"{value} on"
    about = Markup('<b aria-hidden="true">{}</b><span class="unseen">{} “{}”: </span>').format(
        value, says, visible(context.tokens[peak]).strip()
    )
    return about + Markup("").join(parts)


Row = tuple[int | None, Sequence[Shown]]


def table(
    columns: Sequence[str], rows: Iterable[Row], *, full: bool = False, page_id: str = ""
) -> str:
    """The table as HTML.

    Args:
        columns: Names of SAEs; letters on a blind page.
        rows: Decade of the rate (None for latents that were asked for), and latents by column.
        full: With search, or where answers are saved; for a page of its own.
        page_id: Of a blind page.
    """
    numbered = [(d, (str(i), cells)) for i, (d, cells) in enumerate(rows, start=1)]
    groups = [
        ("as asked for" if decade is None else rate(decade), [row for _, row in found])
        for decade, found in grouped(numbered, lambda item: item[0]).items()
    ]
    return page("latents.html.j2", columns=columns, groups=groups, full=full, blind=page_id)


def section_of(
    contexts: Mapping[SAEKey, Contexts], latents: Mapping[SAEKey, Latents], folder: str
) -> Section | None:
    """A report's section: a few rows of the first panel with contexts; None without any.

    Args:
        contexts: By panel and member.
        latents: Likewise.
        folder: Study folder as to be typed.
    """
    panels = grouped((k for k in contexts if k in latents), lambda key: key[0])
    if not panels:
        return None
    panel, keys = max(panels.items(), key=lambda item: len(item[1]))
    members = sorted((m for _, m in keys), key=lambda m: m != TRAINED)[:_MEMBERS]
    stored = {}
    for member in members:
        rates = latents[panel, member].rates
        stored[member] = 0.0 * rates
        kept = list(contexts[panel, member].latents)
        stored[member][kept] = rates[kept]
    rows = like_rows(stored, _ROWS, seed=0)
    if len(rows) > _ROWS:  # spread over the decades
        rows = [rows[i * len(rows) // _ROWS] for i in range(_ROWS)]
    if not rows:
        return None

    def shown(member: str, latent: int) -> Shown:
        of = latents[panel, member]
        found = contexts[panel, member].latents[latent]
        rate, cosine = float(of.rates[latent]), float(of.cos_to_start[latent])
        return Shown(member, latent, rate, cosine, found, few=True)

    cells = [(decade, [shown(m, row[m]) for m in members]) for decade, row in rows]
    text = render("latents_in_report.md.j2", n=len(rows), panel=panel, page=PAGE, folder=folder)
    return Section("latents", "Latents side by side", text, table(members, cells))
