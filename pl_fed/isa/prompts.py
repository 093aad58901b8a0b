"""What a vision-language model is asked about an image."""

import hashlib

from pl_fed.isa.story import NONE, SECTIONS

MAX_NEW_TOKENS = 1000  # for the long prompt; a short question needs far fewer
MAX_ANSWER_TOKENS = 120

DESCRIBE = (
    "Write a detailed description of this picture. Name every person, animal and object, say where each is and what it"
    " does, and tell what is going on."
)

_ASKED = "\n".join(f"{i}. {section.title}: {section.asks}." for i, section in enumerate(SECTIONS, start=1))

REASON = f"""\
Study this picture and work out the story that it tells, step by step. Go through these sections in this order:

{_ASKED}

Write every section like this:

<title of the section>
Clue(s):
1. <something that can be seen in the picture and points to it>
2. <the next one>
Conclusion: <what follows from the clues, in one sentence>

Use only what the picture shows. Where it shows nothing of the kind, write {NONE} for the clues and {NONE} for the
conclusion; do not guess.

After the last section write a line that begins with "Description:" and tell the whole story of the picture there, with
the people, what they do, why, and how the events belong together."""

_SHORT = f"Answer in a few short sentences. If the picture does not show it, answer {NONE}."

QUESTIONS = {section.key: f"{section.question} {_SHORT}" for section in SECTIONS}

PROMPT_VERSION = hashlib.sha256("\0".join([DESCRIBE, REASON, *QUESTIONS.values()]).encode()).hexdigest()[:12]
