"""A page to rate images by the rubric, in any browser and without a server.

It is blind: neither names nor scores are shown, and each rater sees the images in an order of their own. Ratings stay
in the browser until they are downloaded as a table with the columns file_name, rater, entity and semantic.
"""

import hashlib
import random
from collections.abc import Sequence
from html import escape

from pl_fed.isa.html import page, script_json
from pl_fed.isa.rubric import RUBRICS, Rubric

COLUMNS = ("file_name", "rater", "entity", "semantic")
_STYLE = """\
body { font-family: sans-serif; margin: 1em auto; max-width: 60em; padding: 0 1em; color: #222; background: #fff; }
img { display: block; margin: auto; max-width: 100%; max-height: 60vh; }
fieldset { margin: 0.6em 0; } label { display: block; padding: 0.15em 0; } button { padding: 0.4em 1em; }"""
_BODY = """\
<p>Rater: <b>{rater}</b>. <span id="progress"></span></p>
<img id="image" alt="the image to rate">
<form id="form">
{fields}
</form>
<p><button id="back">Back</button> <button id="next">Next</button> <button id="download">Download ratings</button></p>
<script>
"use strict";
const images = {images}, rater = {rater_json}, key = {key}, columns = {columns}, file = {file};
const form = document.getElementById("form");
let ratings = {{}}, at = 0;
try {{ ratings = JSON.parse(localStorage.getItem(key)) || {{}}; }} catch (error) {{ ratings = {{}}; }}
const done = name => ratings[name] && ratings[name].entity && ratings[name].semantic;
function show() {{
  const image = images[at], given = ratings[image.name] || {{}};
  document.getElementById("image").src = image.source;
  for (const input of form.elements) if (input.name) input.checked = String(given[input.name]) === input.value;
  const count = images.filter(other => done(other.name)).length;
  document.getElementById("progress").textContent =
    `Image ${{at + 1}} of ${{images.length}}, ${{count}} rated.`;
}}
function move(step) {{ at = Math.min(images.length - 1, Math.max(0, at + step)); show(); }}
form.addEventListener("change", event => {{
  const name = images[at].name;
  ratings[name] = {{...ratings[name], [event.target.name]: Number(event.target.value)}};
  try {{ localStorage.setItem(key, JSON.stringify(ratings)); }} catch (error) {{ /* a private window forgets */ }}
  show();
}});
const quote = value => `"${{String(value).replaceAll('"', '""')}}"`;
function table() {{
  const rows = images.filter(image => done(image.name)).map(image =>
    [quote(image.name), quote(rater), ratings[image.name].entity, ratings[image.name].semantic].join(","));
  return [columns.join(","), ...rows, ""].join("\\r\\n");
}}
function download() {{
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], {{type: "text/csv"}}));
  link.download = file;
  link.click();
}}
const click = (id, action) => document.getElementById(id).addEventListener("click", action);
click("back", () => move(-1)); click("next", () => move(1)); click("download", download);
at = Math.max(0, images.findIndex(image => !done(image.name)));
show();
</script>"""


def rating_page(images: Sequence[tuple[str, str]], rater: str) -> str:
    """Return the page of one rater.

    Args:
        images: Name and address of each image; the address may hold the image itself.
        rater: Whose ratings they are.
    """
    identity = hashlib.sha256("\0".join(sorted(name for name, _ in images)).encode()).hexdigest()[:16]
    order = list(images)
    random.Random(f"{rater} {identity}").shuffle(order)
    body = _BODY.format(
        rater=escape(rater),
        fields="\n".join(_fields(rubric) for rubric in RUBRICS),
        images=script_json([{"name": name, "source": source} for name, source in order]),
        rater_json=script_json(rater),
        key=script_json(f"isa-ratings {identity} {rater}"),
        columns=script_json(COLUMNS),
        file=script_json(f"ratings_{''.join(c if c.isalnum() else '_' for c in rater)}.csv"),
    )
    return page("Rate images", _STYLE, body, "data: file: 'self'")


def _fields(rubric: Rubric) -> str:
    levels = "".join(
        f'<label><input type="radio" name="{rubric.key}" value="{level}"> {level}: {escape(meaning)}</label>'
        for level, meaning in enumerate(rubric.levels, start=1)
    )
    return f"<fieldset><legend>{rubric.title}</legend>{levels}<small>{escape(rubric.rules)}</small></fieldset>"
