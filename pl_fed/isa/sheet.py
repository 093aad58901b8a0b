"""Contact sheets of chosen images, with scores and reasons: one PNG, or one HTML page that needs no other file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pl_fed.isa.html import data_uri, page
from pl_fed.isa.images import ImageFile, ImageReadError, printable, read_image, unescaped
from pl_fed.isa.rubric import RUBRICS, to_level
from pl_fed.isa.tables import Row

_SIDE, _GAP, _CAPTION, _REASONS = 240, 12, 44, 52  # pixels
_LINES = 3  # of reasons in a picture
_COLUMNS = 5
_PAGE_SIDE = 480  # pixels, in a page
_STYLE = """\
body { font-family: sans-serif; margin: 1.5em; color: #222; background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(18em, 1fr)); gap: 1em; }
figure { margin: 0; border: 1px solid #ccc; padding: 0.6em; overflow-wrap: anywhere; }
img { width: 100%; height: 16em; object-fit: contain; background: #f3f3f3; }
figcaption { font-size: 0.85em; } li { margin-left: -1em; } .description { white-space: pre-line; }"""


def find_image(row: Row, folder: Path | None) -> Image.Image | None:
    """Return the image of a row, or None if it is not there any more.

    Args:
        row: A row of scores.
        folder: Where the names are to be looked for; None means at the path of the row.
    """
    name = str(row["file_name"])
    path = folder / name if folder is not None else Path(str(row.get("path") or name))
    try:
        return read_image(ImageFile(unescaped(path), name)).pixels
    except (ImageReadError, OSError, ValueError):  # a zero byte in a name
        return None


def caption(row: Row) -> str:
    """Return the scores of a row on the scale of 1 to 5.

    Example:
        >>> caption({"entity_score": 0.5, "semantic_score": 0.75})
        'ES 3.00, SS 4.00'
    """
    scores = [(rubric, row[f"{rubric.key}_score"]) for rubric in RUBRICS]
    return ", ".join(f"{rubric.short} {'-' if score is None else f'{to_level(score):.2f}'}" for rubric, score in scores)


def write_png(rows: Sequence[Row], path: Path, folder: Path | None) -> None:
    """Draw the images in a grid, each with its name, its scores and the beginning of the reasons below.

    Args:
        rows: The images in their order.
        path: The file.
        folder: See `find_image`.
    """
    columns = max(1, min(_COLUMNS, len(rows)))
    lines = -(-len(rows) // columns)
    height = _SIDE + _CAPTION + _REASONS + _GAP
    size = (columns * (_SIDE + _GAP) + _GAP, lines * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(12)
    for i, row in enumerate(rows):
        left, top = _GAP + i % columns * (_SIDE + _GAP), _GAP + i // columns * height
        image = find_image(row, folder)
        if image is None:
            draw.text((left, top + _SIDE // 2), "image not found", "gray", font)
        else:
            image.thumbnail((_SIDE, _SIDE))
            sheet.paste(image, (left + (_SIDE - image.width) // 2, top + (_SIDE - image.height) // 2))
        name = _fitting(printable(str(row["file_name"])), font)
        draw.text((left, top + _SIDE + 4), f"{name}\n{caption(row)}", "black", font)
        draw.text((left, top + _SIDE + _CAPTION), "\n".join(_wrapped(reasons(row), small)), "dimgray", small)
    sheet.save(path)


def reasons(row: Row) -> str:
    """Return a row's clues in one line, or its description without any.

    Example:
        >>> reasons({"clues": [{"section": "Special time", "clues": ["a clock", "dusk"], "conclusion": "evening"}]})
        'Special time: a clock; dusk → evening'
    """
    found = " · ".join(f"{finding['section']}: {_said(finding)}" for finding in row.get("clues") or [])
    return " ".join((found or str(row.get("description") or "")).split())


def _said(finding: Row) -> str:
    clues = "; ".join(map(str, finding["clues"]))
    return clues + (f" → {finding['conclusion']}" if finding["conclusion"] else "")


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Return a text in lines as wide as an image; what has no room is left out."""
    lines, words = [""], printable(text).split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _SIDE:
            lines[-1] = longer
        elif len(lines) == _LINES:
            return [*lines[:-1], f"{lines[-1]} ..."]
        else:
            lines.append(_fitting(word, font))
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of a text that is as wide as an image; the end of a name says most."""
    short = text
    while font.getlength(short) > _SIDE and len(short) > 4:
        short = f"...{short[4:]}"
    return short


def write_html(rows: Sequence[Row], path: Path, folder: Path | None, title: str) -> None:
    """Write the images with scores, clues and descriptions.

    Args:
        rows: The images in their order.
        path: The file.
        folder: See `find_image`.
        title: What was asked for.
    """
    directions = "; ".join(f"{r.short} ({r.title}, 1 to 5): {r.direction}" for r in RUBRICS)
    figures = "\n".join(_figure(row, folder) for row in rows)
    head = f"<h1>{escape(title)}</h1>\n<p>{len(rows)} images. {escape(directions)}.</p>"
    path.write_text(page(title, _STYLE, f"{head}\n<main>\n{figures}\n</main>"), encoding="utf-8")


def _figure(row: Row, folder: Path | None) -> str:
    image = find_image(row, folder)
    name = escape(printable(str(row["file_name"])))
    shown = "<p>image not found</p>" if image is None else f'<img src="{data_uri(image, _PAGE_SIDE)}" alt="{name}">'
    sections = "".join(_section(finding) for finding in row.get("clues") or [])
    description = f'<p class="description">{escape(row.get("description") or "")}</p>'
    return (
        f"<figure>{shown}<figcaption><b>{name}</b><br>{caption(row)}"
        f"{f'<ul>{sections}</ul>' if sections else ''}{description}</figcaption></figure>"
    )


def _section(finding: Row) -> str:
    return f"<li><i>{escape(str(finding['section']))}:</i> {escape(_said(finding))}</li>"
