"""Markdown from templates, and the page that is made of it.

What a report says stands in templates (Jinja that writes Markdown): a package keeps them in its
folder ``templates`` and passes names, levels and numbers in.

- `render(template, **values)` gives Markdown. Values are literal, but for `code` in backticks.
  A table is a block ``{% filter table("cards", "why") %}`` around Markdown tables: a bold line
  above each is its heading, the paragraph below the last the caption, the named last column
  holds sentences that get a line of their own on the page (and goes where all are empty).
- `Section(id, title, text)` is a part of the page, ``text`` being such Markdown.
- `Figure` is found by its name where Markdown has ``![name](figures/name.png)`` and a caption.
- `write.to_html(report)` and `write.to_markdown(report)` give the page and the Markdown.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from sae_baselines.baselines.constraint import held_side
from sae_baselines.controls import is_control, question_of
from sae_baselines.report import names, numbers, paper
from sae_baselines.stats import CANNOT_TELL, METHOD, Interval, above_nothing, null_of

_HERE = "sae_baselines.report"
_CODE = re.compile(r"`([^`]+)`")
_SPECIAL = re.compile(r"[\\*<\[`]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_BREAK = re.compile(r"(?<=[_/.:])(?=\w)")
_HOME = re.compile(r"(?<![\w.~])(/home/[^/\s'\"]+|/Users/[^/\s'\"]+)(?![^/\s'\"])")
# A share this close to 0 or 1 is not printed as 0 or 100 % where it is estimated.
_EDGE = 0.0005
# A value's pipe, until it is known whether it stands in a table.
_PIPE = "\ue000"
_TABLE = re.compile(r"<!-- table (\w+) ?(\w*) -->")
_TABLE_END = "<!-- /table -->"
T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Figure:
    """A figure in all its forms.

    Attributes:
        name: File name without extension.
        caption: What it shows.
        inline: SVG element for HTML, colours as CSS variables.
        svg: Standalone SVG.
        png: Bitmap.
    """

    name: str
    caption: str
    inline: str
    svg: bytes
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the page: an id for links, a heading, and Markdown from `render`.

    ``html`` follows it on the page, and in Markdown nothing does.
    """

    id: str
    title: str
    text: str
    html: str = ""


def code(text: object) -> str:
    """A text of unknown origin, as code."""
    plain = " ".join(str(text).replace("`", "'").split())
    return f"`{plain}`" if plain else ""


def codes(texts: Iterable[object]) -> str:
    """Several, with commas."""
    return ", ".join(map(code, texts))


def sentence(text: str) -> str:
    """With a capital and an end."""
    text = " ".join(text.split())
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{text[:1].upper()}{text[1:]}{end}" if text else ""


def counted(n: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, in order of first appearance."""
    found: dict[K, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found


def render(template: str, package: str = _HERE, /, **values: Any) -> str:
    """Markdown from a template.

    Args:
        template: File in the package's folder ``templates``.
        package: Whose; the report's own templates can be imported by all.
        values: What it is told; texts are literal, but for `code` in backticks.
    """
    return tidied(_environment(package).get_template(template).render(values))


def page(template: str, /, **values: Any) -> str:
    """HTML from a template of the report; values are text, but for `Markup`."""
    return _pages().get_template(template).render(values)


def words(template: str, macro: str, package: str = _HERE, /, **values: Any) -> str:
    """A text that a macro of a template writes, as one line that is not escaped yet."""
    module: Any = _plain_environment(package).get_template(template).module
    return " ".join(getattr(module, macro)(**values).split())


def tidied(markdown: str) -> str:
    """Without the blank space that templates leave behind."""
    text = re.sub(r"[ \t]+$", "", markdown.replace(_PIPE, "|"), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def without_marks(markdown: str) -> str:
    """Without the comments that say how a page lays out its tables."""
    return tidied(re.sub(r"^<!-- /?table.*-->$", "", markdown, flags=re.MULTILINE))


@lru_cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@lru_cache
def _environment(package: str) -> Environment:
    made = Environment(
        loader=ChoiceLoader([PackageLoader(p) for p in dict.fromkeys((package, _HERE))]),
        # So that what macros write is known not to need escaping again.
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= _FILTERS | {"table": _table, "fenced": _fenced}
    made.globals |= {"MISSING": numbers.MISSING, "METHOD": METHOD}
    return made


@lru_cache
def _plain_environment(package: str) -> Environment:
    """For words that other words are made of: nothing is escaped twice."""
    made = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= _FILTERS
    return made


def _escaped(value: Any) -> Any:
    """Literal outside of `code`."""
    if isinstance(value, Markup):
        return value
    parts = _CODE.split(re.sub(r"\s*\n\s*", " ", str(value)))
    text = "".join(
        f"`{part}`" if i % 2 else _SPECIAL.sub(r"\\\g<0>", part) for i, part in enumerate(parts)
    )
    return Markup(text.replace("|", _PIPE))


def _table(markdown: str, layout: str = "grid", note: str = "") -> Markup:
    """Marks where a table begins and ends, and how it is laid out on a narrow screen.

    Args:
        markdown: Tables, bold headings above them, a caption below.
        layout: "grid" scrolls sideways, "cards" makes each row a card with numbers side by
            side, "stack" one with a line per cell.
        note: Heading of a last column with sentences.
    """
    text = str(markdown)
    if note:
        notes = {
            line.rsplit("|", 2)[1].strip() for line in text.splitlines() if line[:1] == "|"
        }
        if notes <= {"", "---", note}:
            text = re.sub(r"^(\|.*\|)[^|\n]*\|$", r"\1", text, flags=re.MULTILINE)
            note = ""
    text = text.replace(_PIPE, "\\|").strip()
    mark = " ".join(filter(None, ("table", layout, note)))
    return Markup(f"<!-- {mark} -->\n\n{text}\n\n{_TABLE_END}\n")


def _fenced(text: str) -> Markup:
    """Literal lines."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return Markup(f"{fence}\n{text.rstrip()}\n{fence}")


def _soft_sides(constraints: Iterable[str]) -> list[str]:
    """Which sides soft-frozen members have their caps on."""
    return sorted({held_side(c) for c in constraints if question_of(c) == "nearly free"})


def _share(share: float | None, found: Interval, estimated: bool = False) -> str:
    """``share% [low, high]``."""
    if share is None:
        return numbers.MISSING

    def shown(value: float) -> str:
        if estimated and not _EDGE <= value <= 1 - _EDGE:
            return f"> {100 * (1 - 2 * _EDGE):.1f}" if value > 0.5 else f"< {200 * _EDGE:.1f}"
        return f"{100 * value:.1f}"

    text = f"{shown(share)}%"
    if not found.low <= found.high:
        return text
    ends = dict.fromkeys([shown(found.low), shown(found.high)])
    return f"{text} [{', '.join(ends)}]"


def named(group: tuple[str, float]) -> str:
    """``batchtopk, L0 32``."""
    return f"{group[0]}, L0 {group[1]:g}"


def heading(of: Any, direction: int | None = None) -> str:
    """Title, direction and the name in the results table."""
    suite, metric = _metric(of)
    up = of.direction if direction is None else direction
    key = code(names.key(suite, metric))
    return f"{names.title(suite, metric)} {names.arrow(up)} ({names.better(up)}), {key}"


def rate(decade: int | None, unit: str = "tokens") -> str:
    """``on 0.1 to 1 % of tokens``; None for latents that never fire."""
    if decade is None:
        return f"on no {unit.removesuffix('es' if unit.endswith('ches') else 's')}"
    return f"on {100 * 10.0**decade:g} to {100 * 10.0 ** (decade + 1):g} % of {unit}"


def _by_decade(items: Any) -> list[tuple[int | None, list[Any]]]:
    """Comparisons, or strata of each member, by decade of the rate, from frequent to rare."""
    if isinstance(items, Mapping):
        pairs = [(d, (m, s)) for m, strata in items.items() for d, s in strata.items()]
    else:
        pairs = [(item.decade, item) for item in items]
    found = grouped(pairs, lambda pair: pair[0])
    order = sorted(found, key=lambda d: math.inf if d is None else -d)
    return [(d, [item for _, item in found[d]]) for d in order]


def _estimated(cell: tuple[float, Interval | None]) -> str:
    """``0.412 [0.380, 0.444]``."""
    mean, found = cell
    if found is None or not found.low <= found.high:
        return numbers.number(mean)
    return f"{numbers.number(mean)} [{numbers.number(found.low)}, {numbers.number(found.high)}]"


def _having(
    metrics: Iterable[tuple[str, str]], table: Any, group: Any, member: str | None = None
) -> list[tuple[str, str]]:
    """Metrics that a group, or one member of it, has."""
    if member is None:
        return [metric for metric in metrics if table.present(group, metric)]
    return [metric for metric in metrics if table.values(group, metric, member)]


def _group(of: Any) -> tuple[str, float]:
    return of if isinstance(of, tuple) else (of.architecture, of.l0)


def _metric(of: Any) -> tuple[str, str]:
    return of if isinstance(of, tuple) else (of.suite, of.metric)


def _answer(item: Any) -> str:
    if item.worse:
        return "falls short"
    if item.cannot_tell:
        return CANNOT_TELL
    return {True: f"beats {item.question}", False: "not shown"}.get(item.beats, "no verdict")


def _against(of: Any) -> str:
    name = of.member if hasattr(of, "member") else of.baseline
    return code(name) + (" (control)" if is_control(of.constraint) else "")


_FILTERS: dict[str, Callable[..., Any]] = {
    # Items into parts.
    "by_group": lambda items: list(grouped(items, _group).items()),
    "by_metric": lambda items: list(
        grouped(items, lambda item: (_group(item), _metric(item))).values()
    ),
    "by_suite": lambda metrics: list(grouped(metrics, lambda metric: metric[0]).items()),
    "by_family": lambda items: list(
        grouped(items, lambda item: (_group(item), item.question)).items()
    ),
    "by_decade": _by_decade,
    "by_question": lambda items: list(grouped(items, lambda item: item.question).items()),
    "by_word": lambda items: list(grouped(items, lambda item: item.word).items()),
    "having": _having,
    "packages": lambda versions: list(dict.fromkeys(p for v in versions.values() for p in v)),
    "in_paper": lambda item: paper.published(item.architecture, item.suite, item.metric),
    # Names.
    "code": code,
    "codes": codes,
    "sentence": sentence,
    "sentences": lambda parts: " ".join(map(sentence, parts)),
    "counted": counted,
    "capital": lambda text: text[:1].upper() + text[1:],
    "title": lambda of: names.title(*_metric(of)),
    "titles": lambda items: "; ".join(names.title(*_metric(item)) for item in items),
    "key": lambda of: names.key(*_metric(of)),
    "heading": heading,
    "arrow": names.arrow,
    "group": lambda of: named(_group(of)),
    "rate": rate,
    "against": _against,
    "answer": _answer,
    # Where the baselines that can be compared are all beaten.
    "but_for_silent": lambda items: [
        i for i in items if set(i.unbeaten) <= set(i.silent) < set(i.baselines)
    ],
    "below": lambda items, member: [item for item in items if member in item.below],
    # Numbers.
    "fmt": format,
    "number": numbers.number,
    "mean_sd": numbers.mean_sd,
    "p_value": numbers.p_value,
    "percent": numbers.percent,
    "above_nothing": above_nothing,
    "soft_sides": _soft_sides,
    "of_baselines": lambda found: [v for v in found if not is_control(v.constraint)],
    "null": null_of,
    "share": _share,
    "estimated": _estimated,
    "interval": lambda found: numbers.interval(found.low, found.high),
    "percents": lambda found, signed=False: numbers.percent_interval(
        found.low, found.high, signed
    ),
    "difference": lambda v: numbers.difference(
        v.mean_difference, v.interval.low, v.interval.high
    ),
    # Literal lines.
    "repr": lambda value: Markup(repr(value)),
    "yaml": lambda data: yaml.safe_dump(
        dict(data), sort_keys=False, allow_unicode=True
    ).rstrip(),
    # A report is published, and home folders hold names of people.
    "without_home": lambda text: _HOME.sub("~", text),
}


# The page.

_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def _code_inline(_self: Any, tokens: Sequence[Token], i: int, *_: Any) -> str:
    # Names may break after an underscore, slash or dot, or they would widen a phone's page.
    name = str(escape(tokens[i].content))
    return f"<code>{re.sub(_BREAK, r'<wbr>', name)}</code>"


def _fence(_self: Any, tokens: Sequence[Token], i: int, *_: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[i].content.rstrip())}</code></pre>\n'


_MARKDOWN.add_render_rule("code_inline", _code_inline)
_MARKDOWN.add_render_rule("fence", _fence)


def inline_html(text: str) -> Markup:
    """One line with `code` as HTML."""
    return Markup(_MARKDOWN.renderInline(str(_escaped(text)).replace(_PIPE, "|")))


def page_parts(markdown: str, figures: Mapping[str, Figure]) -> Iterator[dict[str, Any]]:
    """What a page is made of: tables and figures as data, everything else as HTML.

    Args:
        markdown: From `render`.
        figures: By name.

    Yields:
        ``kind`` and, by kind: "table" with ``layout``, ``columns``, ``groups`` and
        ``caption``; "figures" with ``items`` (figure and caption); "html" with ``html``.
    """
    blocks = list(_blocks(_MARKDOWN.parse(markdown)))
    i = 0
    while i < len(blocks):
        first = blocks[i][0]
        opened = _TABLE.fullmatch(first.content.strip()) if first.type == "html_block" else None
        shown = []
        if opened:
            end = next(
                j for j in range(i, len(blocks)) if blocks[j][0].content.strip() == _TABLE_END
            )
            yield {"kind": "table", **_table_parts(blocks[i + 1 : end], *opened.groups())}
            i = end + 1
            continue
        while i < len(blocks) and (figure := _figure(blocks[i], figures)) is not None:
            shown.append((figure, _inline(blocks[i + 1][1])))
            i += 2
        if shown:
            yield {"kind": "figures", "items": shown}
        else:
            html = _MARKDOWN.renderer.render(blocks[i], _MARKDOWN.options, {})
            yield {"kind": "html", "html": Markup(html)}
            i += 1


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Top-level blocks, from where each opens to where it closes."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _figure(block: Sequence[Token], figures: Mapping[str, Figure]) -> Figure | None:
    children = block[1].children if len(block) == 3 and block[1].children else ()
    if len(children) != 1 or children[0].type != "image":
        return None
    return figures.get(children[0].content)


def _table_parts(blocks: Sequence[Sequence[Token]], layout: str, note: str) -> dict[str, Any]:
    columns: list[Markup] = []
    labels: list[str] = []
    groups: list[dict[str, Any]] = []
    caption, plain_caption = "", ""
    for block in blocks:
        if block[0].type == "paragraph_open":
            caption, plain_caption = _inline(block[1]), _plain(block[1])
            continue
        # A bold line above a table is its heading, not a caption.
        bold, caption, plain_caption = caption, "", ""
        head, *rows = _table_rows(block)
        cells = len(head) - bool(note)
        columns = [_inline(content) for content, _ in head[:cells]]
        labels = [_plain(content) for content, _ in head[:cells]]
        shown = [
            {
                "cells": [_cell(*cell) for cell in row[:cells]],
                "note": Markup().join(_inline(content) for content, _ in row[cells:]),
            }
            for row in rows
        ]
        heading = Markup(re.sub(r"^<strong>|</strong>$", "", bold))
        groups.append({"heading": heading, "rows": shown})
    return {
        "layout": layout,
        "label": plain_caption or labels[0],
        "columns": list(zip(columns, labels, strict=True)),
        "groups": groups,
        "caption": caption,
    }


def _table_rows(block: Sequence[Token]) -> Iterator[list[tuple[Token, str]]]:
    """Content and alignment of every cell, a list per row."""
    row: list[tuple[Token, str]] = []
    for cell, content in pairwise(block):
        if cell.type in ("th_open", "td_open"):
            right = "right" in str(cell.attrGet("style") or "")
            row.append((content, "number" if right else ""))
        elif cell.type == "tr_close":
            yield row
            row = []


def _cell(content: Token, style: str) -> dict[str, Any]:
    children = [c for c in content.children or () if c.content or c.type != "text"]
    if len(children) == 3 and children[0].type == "strong_open":
        word = children[1].content
        return {"word": word, "slug": re.sub(r"[^a-z]+", "-", word.lower()).strip("-")}
    return {"word": "", "style": style, "html": _inline(content)}


def _inline(token: Token) -> Markup:
    return Markup(_MARKDOWN.renderer.render([token], _MARKDOWN.options, {}))


def _plain(token: Token) -> str:
    return "".join(child.content for child in token.children or ())
