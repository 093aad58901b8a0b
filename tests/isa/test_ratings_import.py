"""The importers of ISA and CogBench, on files written here in their layouts."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pl_fed.errors import FederatedConfigError
from pl_fed.isa.ratings_import import import_cogbench, import_isa
from pl_fed.isa.story import Finding

ENTRY: dict[str, Any] = {
    "Image Name": "picnic.jpg",
    "Entities": ["boy", "kite", "None"],
    "Special Time Reasoning": ["None"],
    "Location Reasoning": ["Sand is on the ground.+ There is water. -> It is a beach."],
    "Character Reasoning": ["None"],
    "Character Relationship Reasoning": [],
    "Event Reasoning": ["The boy's hair blows. -> The wind is strong. ", "The boy runs."],
    "Event Relationship Reasoning": ["None"],
    "Next Moment Event Reasoning": ["The string tears. -> The kite will fly away."],
    "Mental State Reasoning": ["None"],
    "Description": ["A boy flies a kite at the beach."],
}
TEXT = """\
Special time
Clue(s):
None
Conclusion: None

Special location
Clue(s):
1. Sand is on the ground.
2. There is water.
Conclusion: It is a beach.

Character role
Clue(s):
None
Conclusion: None

Character relationship
Clue(s):
None
Conclusion: None

High-level event
Clue(s):
1. The boy's hair blows.
Conclusion: The wind is strong. The boy runs.

Event causal relationship
Clue(s):
None
Conclusion: None

Mental state
Clue(s):
None
Conclusion: None

Description: A boy flies a kite at the beach."""


def test_cogbench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps({"picnic": ENTRY}))
    with caplog.at_level(logging.INFO):
        (image,) = import_cogbench(path)
    assert "non-commercial" in caplog.text and "signed data use agreement" in caplog.text
    assert (image.file_name, image.entities) == ("picnic.jpg", ("boy", "kite"))
    assert image.next_moment == (Finding(("The string tears.",), "The kite will fly away."),)
    assert image.text == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "'c.json' to be a JSON file but got"),
        ("[]", "an entry for each image in 'c.json' but got none"),
        ('{"a": {}}', "an 'Image Name' in entry 'a' of 'c.json' but got none"),
        (json.dumps({"a": ENTRY | {"Entities": "boy"}}), "a list of texts under 'Entities' in entry 'a' .* got 'boy'"),
        (
            json.dumps({"a": {"Image Name": "x"}}),
            "a list of texts under 'Entities' in entry 'a' of 'c.json' but got",
        ),
    ],
)
def test_refused_cogbench(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(FederatedConfigError, match=message):
        import_cogbench(tmp_path / "c.json")


def test_isa(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "isa.csv"
    path.write_text("file_name,entity_score,semantic_score\na.png,1.0,1.0\n")  # the scale is known
    with caplog.at_level(logging.INFO):
        assert import_isa(path).means().tolist() == [[1.0, 1.0]]
    assert "signed agreement: non-commercial use, no transfer" in caplog.text
    path.write_text("file_name,entity_score,semantic_score\na.png,3,0.5\n")
    with pytest.raises(FederatedConfigError, match=r"entity rating of 'a.png' by 'mean' in .* from 0 to 1 but got 3"):
        import_isa(path)
    path.write_text("file_name,rater,entity,semantic\na.png,Ann,0.5,0.5\n")
    with pytest.raises(FederatedConfigError, match="one score for each image, as ISA has, but it has raters"):
        import_isa(path)
