"""Merging, reading and fingerprints of configurations."""

from pathlib import Path

import pytest

from pl_fed.compare.merge import CONFIGS, fingerprint, lookup, merged, parse_yaml, read_config
from pl_fed.errors import FederatedConfigError


def test_mappings_merge_and_the_rest_is_replaced() -> None:
    found = merged({"a": {"x": 1, "y": [1]}, "b": 1}, {"a": {"y": [2], "z": 3}}, {"a.x": 5, "c.d.e": 6})
    assert found == {"a": {"x": 5, "y": [2], "z": 3}, "b": 1, "c": {"d": {"e": 6}}}


def test_nothing_given_is_changed() -> None:
    base, top = {"a": {"list": [1]}}, {"a": {"list+": [2]}}
    merged(base, top)["a"]["list"].append(3)
    assert base == {"a": {"list": [1]}} and top == {"a": {"list+": [2]}}


def test_another_class_drops_stale_arguments() -> None:
    """Also below: of AFLoRA's `aggregation` nothing may reach FedIT."""
    base = {"rule": {"class_path": "AFLoRA", "init_args": {"aggregation": "slot"}}}
    assert merged(base, {"rule": {"class_path": "FedIT"}}) == {"rule": {"class_path": "FedIT"}}
    assert merged(base, {"rule": "FedIT"}) == {"rule": "FedIT"}
    kept = merged(base, {"rule": {"class_path": "AFLoRA", "init_args": {"init": "orthonormal"}}})
    assert kept["rule"]["init_args"] == {"aggregation": "slot", "init": "orthonormal"}


def test_the_short_form_of_a_class_takes_arguments() -> None:
    long = {"rule": {"class_path": "AFLoRA", "init_args": {"x": 1}}}
    assert merged({"rule": "AFLoRA"}, {"rule": {"init_args": {"x": 1}}}) == long


def test_entries_are_taken_out_then_added() -> None:
    base = {"callbacks": [{"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"}, "C"]}
    top = {"callbacks+": [{"class_path": "A", "init_args": {"x": 2}}], "callbacks-": ["A", "C"]}
    assert merged(base, top)["callbacks"] == [{"class_path": "B"}, {"class_path": "A", "init_args": {"x": 2}}]
    assert merged({}, {"callbacks+": "A"}) == {"callbacks": ["A"]}


def test_taking_out_what_is_not_there_is_an_error() -> None:
    with pytest.raises(FederatedConfigError, match=r"entries of `callbacks`.* but got \['B'\].*choose from \['A'\]"):
        merged({"callbacks": ["A"]}, {"callbacks-": ["B"]})


def test_fingerprint_is_of_what_matters() -> None:
    config = {"trainer": {"max_epochs": 8, "x": 1.0}, "data": {"dataset": "/home/me/texts.csv"}}
    first = fingerprint(config, True)
    same = merged(config, {"run.folder": "/tmp", "trainer.logger": False})
    assert fingerprint(merged(same, {"trainer.x": 1}), True) == first
    assert fingerprint(config, False) != first
    assert fingerprint(merged(config, {"trainer.max_epochs": 9}), True) != first
    assert fingerprint(merged(config, {"seed_everything": 1}), True) != first
    assert config["data"] == {"dataset": "/home/me/texts.csv"}


def test_files_of_one_name_in_different_folders_are_different_data() -> None:
    """Two hospitals may each have a /.../sums.jsonl; names relative to the working directory or of a hub are kept."""
    paths = ["/a/sums.jsonl", "/b/sums.jsonl", "a/sums.jsonl", "sums.jsonl", "user/sums"]
    assert len({fingerprint({"data": {"dataset": path}}, True) for path in paths}) == 5


def test_numbers_are_read_as_the_command_line_reads_them() -> None:
    assert parse_yaml("[1e-3, 1.0e-3, 2E+2, -1e3, e1, '1e-3']") == [0.001, 0.001, 200.0, -1000.0, "e1", "1e-3"]


def test_configurations_are_found_in_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("configs/smoke.yaml") == read_config("smoke.yaml") == read_config(str(CONFIGS / "smoke.yaml"))
    Path("mine.yaml").write_text("a: {b: 1}")
    assert lookup(read_config("mine.yaml"), "a.b") == 1
    with pytest.raises(FederatedConfigError, match="configuration file in `base` but got 'none.yaml'"):
        read_config("none.yaml")
    Path("list.yaml").write_text("[1]")
    with pytest.raises(FederatedConfigError, match="mapping in 'list.yaml' but got list"):
        read_config("list.yaml")
