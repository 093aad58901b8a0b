"""The texts of a scene: what an extractor with perfect eyes would write, in two kinds and in varying words."""

from collections.abc import Sequence

import numpy as np

from pl_fed.isa.scenes.graph import Clue, Event, Scene
from pl_fed.isa.scenes.words import SIGNS, VERBS
from pl_fed.isa.story import Finding, gather, render

KINDS = ("naive", "cot")
EVENTS, LINKS = "High-level event", "Event causal relationship"
THERE = ("The picture shows {}.", "There are {}.", "One can see {}.", "In the picture are {}.")
REASONS = ("{1} because {0}", "since {0}, {1}", "{0}, and so {1}", "{0}, which is why {1}")
NOTHING = ("Nothing special happens.", "There is no particular event.", "Not much is going on.")


class Teller:
    """Tells one scene.

    Args:
        scene: What to tell.
        seed: Seed of the choice of words.
    """

    def __init__(self, scene: Scene, seed: int = 0) -> None:
        self.scene = scene
        self._rng = np.random.default_rng([scene.seed, seed, 0x7E])

    def naive(self) -> str:
        """Return a description of what is to be seen: no conclusions, no reasons."""
        events = [_sentence(self._event(event)) for event in self.scene.events]
        seen = [self._clue(clue)[0] for clue in self.scene.clues]
        return " ".join([self._inventory(), *events, *seen])

    def chain_of_thought(self) -> str:
        """Return the sections with clues and conclusions, then the story."""
        sections: dict[str, list[Finding]] = {}
        for clue in self.scene.clues:
            seen, conclusion = self._clue(clue)
            sections.setdefault(clue.section, []).append(Finding((seen,), conclusion))
        for event in self.scene.events:
            if not event.limited:
                told = Finding((self._marked(event),), _sentence(self._event(event)))
                sections.setdefault(EVENTS, []).append(told)
        for first, second in self.scene.links:
            clues = tuple(_sentence(self._event(self.scene.events[i])) for i in (first, second))
            sections.setdefault(LINKS, []).append(Finding(clues, _sentence(self._reason(first, second))))
        return render(gather(sections, self._story()))

    def _choose(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _inventory(self) -> str:
        names = [_with_article(entity.name) for entity in self.scene.entities]
        return self._choose(THERE).format(f"{', '.join(names[:-1])} and {names[-1]}")

    def _event(self, event: Event) -> str:
        words = [self.scene.entities[event.agent].name, self._choose(VERBS[event.verb].phrases)]
        return " ".join(words if event.target is None else [*words, self.scene.entities[event.target].name])

    def _marked(self, event: Event) -> str:
        assert event.target is not None, "only events of the small kind have none"
        agent, target = (self.scene.entities[i].name for i in (event.agent, event.target))
        return _sentence(self._choose((f"{agent} turns to {target}", f"an arrow leads from {agent} to {target}")))

    def _reason(self, first: int, second: int) -> str:
        events = [self._event(self.scene.events[i]) for i in (first, second)]
        return self._choose(REASONS).format(*events)

    def _clue(self, clue: Clue) -> tuple[str, str]:
        """Return what is seen and what follows."""
        names = [self.scene.entities[i].name for i in clue.subjects]
        seen, follows = SIGNS[clue.section][clue.sign]
        return _capital(seen.format(*names)), _capital(follows.format(*names))

    def _story(self) -> str:
        told = {i for link in self.scene.links for i in link}
        sentences = [self._clue(clue)[1] for clue in self.scene.clues if not clue.subjects]
        sentences.append(self._inventory())
        sentences += [self._clue(clue)[1] for clue in self.scene.clues if clue.subjects]
        sentences += [_sentence(self._event(e)) for i, e in enumerate(self.scene.events) if i not in told]
        sentences += [_sentence(self._reason(*link)) for link in self.scene.links]
        return " ".join(sentences if self.scene.events else [*sentences, self._choose(NOTHING)])


def _sentence(text: str) -> str:
    return _capital(text) + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _with_article(name: str) -> str:
    bare = name.removeprefix("the ")
    if bare.split()[0] in ("second", "third", "fourth", "fifth"):
        return f"a {bare}"
    return f"an {bare}" if bare[0] in "aeiou" else f"a {bare}"
