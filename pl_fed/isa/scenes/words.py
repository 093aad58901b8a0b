"""What can happen in a scene and what can be told from it, with the words for both."""

from dataclasses import dataclass

from pl_fed.isa.scenes.shapes import ANIMALS, PEOPLE, THINGS

ANIMATE = PEOPLE + ANIMALS


@dataclass(frozen=True)
class Verb:
    """Something that can be done.

    Args:
        phrases: Ways to say it, after "The girl".
        agents: Kinds that can do it.
        targets: Kinds that it can be done to; empty for what has no target.
        is_trouble: Whether it calls for an answer; else it may be one.
    """

    phrases: tuple[str, ...]
    agents: tuple[str, ...] = PEOPLE
    targets: tuple[str, ...] = ()
    is_trouble: bool = False


VERBS = {
    "walks": Verb(("is walking", "walks along"), ANIMATE),
    "runs": Verb(("is running", "runs"), ANIMATE),
    "sits": Verb(("is sitting", "sits there"), ANIMATE),
    "stands": Verb(("is standing", "stands still"), ANIMATE),
    "chases": Verb(("is chasing", "runs after"), ANIMATE, ANIMATE, True),
    "frightens": Verb(("is frightening", "scares"), ANIMATE, ANIMATE, True),
    "splashes": Verb(("is splashing water on", "splashes"), ANIMATE, ANIMATE, True),
    "takes": Verb(("is stealing", "takes away"), ANIMATE, THINGS, True),
    "knocks over": Verb(("is knocking over", "tips over"), ANIMATE, THINGS, True),
    "hides behind": Verb(("is hiding behind", "hides behind"), ANIMATE, THINGS, True),
    "pushes": Verb(("is pushing", "shoves"), PEOPLE, ANIMATE, True),
    "scolds": Verb(("is scolding", "shouts at"), PEOPLE, ANIMATE),
    "comforts": Verb(("is comforting", "consoles"), PEOPLE, ANIMATE),
    "helps": Verb(("is helping", "gives a hand to"), PEOPLE, ANIMATE),
    "feeds": Verb(("is feeding", "gives food to"), PEOPLE, ANIMATE),
    "repairs": Verb(("is repairing", "mends"), PEOPLE, THINGS),
    "carries": Verb(("is carrying away", "brings to safety"), PEOPLE, THINGS),
    "watches": Verb(("is watching", "looks at"), ANIMATE, ANIMATE),
}
LIMITED = tuple(name for name, verb in VERBS.items() if not verb.targets)
FULL = tuple(name for name, verb in VERBS.items() if verb.targets)

# Signs: what is seen, and what follows; a {} is the name of who it is seen on.
TIMES = {
    "moon": ("The moon and stars are in a dark sky.", "It is night."),
    "snow": ("Snow is falling.", "It is winter."),
    "garland": ("A garland of coloured lights hangs at the top.", "It is Christmas time."),
    "balloons": ("Balloons hang at the top.", "It is a birthday."),
    "rain": ("Rain is falling from grey clouds.", "It is a rainy day."),
}
PLACES = {
    "sand": ("There are sand and the sea.", "The place is a beach."),
    "tiles": ("There are tiles on the wall.", "The place is a kitchen."),
    "road": ("There is a road with white marks.", "The place is a street."),
    "grass": ("There are grass and hills.", "The place is a park."),
    "cross": ("A red cross hangs on the white wall.", "The place is a hospital."),
    "board": ("A blackboard hangs on the wall.", "The place is a classroom."),
}
ROLES = {
    "white hat": ("{} wears a tall white hat.", "{} is a cook."),
    "blue cap": ("{} wears a blue cap with a badge.", "{} is a police officer."),
    "head mirror": ("{} wears a band with a round mirror.", "{} is a doctor."),
    "straw hat": ("{} wears a wide straw hat.", "{} is a farmer."),
}
RELATIONSHIPS = {
    "scarf": ("{} and {} wear the same striped scarf.", "{} and {} are family."),
    "heart": ("{} and {} wear the same heart.", "{} and {} are a couple."),
    "armband": ("{} and {} wear the same red armband.", "{} and {} are in one team."),
}
MOODS = {
    "smile": ("{} has a wide smile.", "{} is happy."),
    "tear": ("Tears run down the face of {}.", "{} is sad."),
    "brows": ("{} frowns with lowered brows.", "{} is angry."),
    "open mouth": ("{} has an open mouth and raised hands.", "{} is afraid."),
}
SIGNS = {
    "Special time": TIMES,
    "Special location": PLACES,
    "Character role": ROLES,
    "Character relationship": RELATIONSHIPS,
    "Mental state": MOODS,
}
