"""Reading a report's page as a browser would, strictly."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


@dataclass
class Node:
    """An element."""

    tag: str
    attributes: dict[str, str]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, tag: str | None = None, cls: str | None = None) -> list["Node"]:
        """Descendants in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if (tag is None or child.tag == tag) and (cls is None or cls in child.classes):
                    found.append(child)
                found += child.all(tag, cls)
        return found

    def section(self, id_: str) -> "Node":
        (found,) = [n for n in self.all("section") if n.attributes["id"] == id_]
        return found


class _Parser(HTMLParser):
    """Raises on anything that is not closed in order, as HTMLParser itself does not."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in {tag}: {names}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    """The page as a tree.

    Raises:
        AssertionError: An element is not closed, or closed out of order.
    """
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == [parser.root], f"never closed: {parser.open[-1].tag}"
    return parser.root


def cells(node: Node) -> list[dict[str, str]]:
    """Rows of the tables below a node, by column heading; group headings as "heading"."""
    found = []
    for table in node.all("table"):
        columns = [th.text for th in table.all("thead")[0].all("th")]
        heading = ""
        for row in table.all("tr")[1:]:
            texts = [c.text.strip() for c in row.all() if c.tag in ("th", "td")]
            if "heading" in row.classes:
                heading = texts[0]
            elif "note" in row.classes:
                found[-1]["note"] = texts[0]
            else:
                assert len(texts) == len(columns)
                found.append({"heading": heading, **dict(zip(columns, texts, strict=True))})
    return found


def markdown_rows(text: str, first_column: str) -> list[dict[str, str]]:
    """Rows of the Markdown tables that begin with this column, and the bold line above them."""
    found: list[dict[str, str]] = []
    columns: list[str] | None = None
    heading = ""
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            if line:
                heading = line.strip("*") if line.startswith("**") else ""
            continue
        parts = [p.strip() for p in line.replace("\\|", "\0").strip("|").split("|")]
        parts = [p.replace("\0", "|") for p in parts]
        if columns is None:
            columns = parts
        elif columns[0] == first_column and not set(line) <= set("|-: "):
            assert len(parts) == len(columns), line
            found.append({"heading": heading, **dict(zip(columns, parts, strict=True))})
    return found
