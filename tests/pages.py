"""The pages that a user reads, their code blocks and their sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/notebook"  # dated notes, out of the reader's path
CARDS = sorted(ROOT.glob("torchrl_vip/assets/*/README.md"))  # of the bundled checkpoints
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *CARDS, *ROOT.glob("docs/**/*.md")]
    if not page.is_relative_to(NOTEBOOK) and "_build" not in page.parts
)

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>.*?) -->\n)?^(?P<fence>`{3,})(?P<language>\S*)\n"
    r"(?P<code>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block. One that cannot run here has ``<!-- not run: why -->`` in the line above."""

    language: str
    code: str
    reason: str | None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    return [Block(m["language"], m["code"], m["reason"]) for m in FENCE.finditer(page.read_text())]


def snippets(page: Path) -> list[str]:
    """The Python that a reader can copy and run, in order."""
    return [b.code for b in blocks(page) if b.language == "python" and b.reason is None]


def sentences(text: str) -> list[str]:
    """Of prose, list items and table cells; code, headings and pictures are none."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # a card's YAML header
    text = FENCE.sub("\n\n", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^#.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\|.*$", lambda row: "\n\n" + row[0].replace("|", "\n\n"), text, flags=re.M)
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    found = (s for p in paragraphs for s in re.split(r"(?<=[.!?])[*_)]* +(?=[^a-z])", p))
    return [s for s in found if re.search(r"\w", s)]


def words(sentence: str) -> int:
    return len(re.findall(r"[^\W_]\S*", sentence))


def prose(page: Path) -> list[str]:
    """The sentences of a page. Table cells of less than six words are names and numbers, and left out."""
    text = page.read_text()
    rows = re.findall(r"^\|.*$", text, re.MULTILINE)
    cells = {cell.strip() for row in rows for cell in row.split("|")}
    return [s for s in sentences(text) if not (s in cells and words(s) < 6)]


# --- the notebook -----------------------------------------------------------------------------------


class Section(NamedTuple):
    """A heading of a notebook page. Its first line says when it was measured: ``*Measured 2026-11-23.*``"""

    page: Path
    title: str
    text: str
    dates: list[str]

    @property
    def link(self) -> str:
        anchor = re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")
        return f"[{self.title}]({self.page.name}#{anchor})"


def notebook_pages() -> list[Path]:
    return sorted(page for page in NOTEBOOK.glob("*.md") if page.name != "index.md")


def notebook_sections(page: Path) -> list[Section]:
    text = FENCE.sub("", page.read_text())
    found = []
    for part in re.split(r"^#{1,3} ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        measured = re.match(r"\s*\*Measured (.*)\*$", body, re.MULTILINE)
        dates = re.findall(r"\d{4}-\d\d-\d\d", measured[1]) if measured else []
        found.append(Section(page, title, body, dates))
    return found


def notebook_index() -> str:
    """The list of docs/notebook/index.md: what was measured on each day."""
    pages = [notebook_sections(page) for page in notebook_pages()]
    lines = []
    for day in sorted({date for page in pages for section in page for date in section.dates}):
        lines.append(f"\n## {day}\n")
        for title, *sections in pages:
            links = [section.link for section in sections if day in section.dates]
            if links or day in title.dates:
                page = f"[{title.title}]({title.page.name})"
                lines.append(f"* {page}: {'; '.join(links)}" if links else f"* {page}")
    return "\n".join(lines) + "\n"
