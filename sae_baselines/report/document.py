"""A report as data, before it is Markdown or HTML.

Texts may hold `code` in backticks; everything else in them is literal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


def code(text: object) -> str:
    """A text of unknown origin, as code."""
    plain = " ".join(str(text).replace("`", "'").split())
    return f"`{plain}`" if plain else ""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Item:
    """An item of a list that begins with a term."""

    label: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str | Item]
    kind: str = "bullets"


@dataclass(frozen=True)
class Code:
    """Literal lines."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Content.
        style: "" for text, "number", "word" (a verdict) or "strong".
    """

    text: str
    style: str = ""


@dataclass(frozen=True)
class Row:
    """Cells, and a sentence that belongs to them."""

    cells: Sequence[Cell]
    note: str = ""


@dataclass(frozen=True)
class Rows:
    """Rows under one heading."""

    heading: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Headings.
        groups: Rows under headings; one group with an empty heading for a plain table.
        caption: What it shows.
        layout: On a narrow screen "grid" scrolls sideways, "cards" makes each row a card with
            numbers side by side, "stack" one with a line per cell.
        note: What the rows' notes are, for Markdown's extra column.
    """

    columns: Sequence[str]
    groups: Sequence[Rows]
    caption: str = ""
    layout: str = "grid"
    note: str = "why"
    kind: str = "table"


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
class Figures:
    """Figures side by side where there is room."""

    items: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away."""

    title: str
    blocks: Sequence["Block"]
    kind: str = "details"


@dataclass(frozen=True)
class Html:
    """A part of an HTML page that is written as it is; left out of Markdown."""

    html: str
    kind: str = "html"


Block = Text | Bullets | Code | Table | Figures | Details | Html


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
