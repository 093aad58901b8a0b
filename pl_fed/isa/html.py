"""Pieces of the HTML pages: everything that comes from outside is escaped, and a page needs no other file."""

import base64
import io
import json
from html import escape
from typing import Any

from PIL import Image

from pl_fed.isa.images import shrink

_FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src {sources}; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, style: str, body: str, sources: str = "data:") -> str:
    """Return a whole page.

    Args:
        title: Its title, as text.
        style: CSS.
        body: HTML, escaped already.
        sources: Where images may come from, as a Content-Security-Policy says it.
    """
    return _FRAME.format(title=escape(title), style=style, body=body, sources=sources)


def data_uri(image: Image.Image, max_side: int) -> str:
    """Return an image as an address that holds it.

    Args:
        image: An RGB image.
        max_side: Longest side in pixels.
    """
    buffer = io.BytesIO()
    shrink(image, max_side).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def script_json(value: Any) -> str:
    r"""Return a value for a script inside a page; no text in it can end the script.

    Example:
        >>> script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
