"""What to type next with a model: the tables and columns of its training are in the commands."""

from types import SimpleNamespace

import pytest

from moeapps.cli.following import arguments_of_data, using

PLAIN = SimpleNamespace(catalogue_=None)
NODES = SimpleNamespace(node_table_=object())
LINKS = SimpleNamespace(node_table_=object(), read_graph=None)
RANKER = SimpleNamespace(catalogue_=object())
TABLES = {"nodes": "my people.csv", "edges": "calls.csv"}


@pytest.mark.parametrize(
    ("model", "data", "commands"),
    [
        (PLAIN, {"train": "rows.csv"}, ["moeapps serve m.safetensors"]),
        (
            NODES,
            TABLES,
            [
                "moeapps score m.safetensors --input 'my people.csv' --edges calls.csv --output predictions.csv",
                "moeapps serve m.safetensors --nodes 'my people.csv' --edges calls.csv",
            ],
        ),
        (
            LINKS,
            {},
            [
                "moeapps score m.safetensors --input PAIRS --nodes NODES --edges EDGES --output predictions.csv",
                "moeapps serve m.safetensors --nodes NODES --edges EDGES",
            ],
        ),
        (
            RANKER,
            {"train": "events.csv", "time": "when", "users": "users.csv"},
            [
                "moeapps score m.safetensors --input events.csv --recommend 10 --time when --users users.csv "
                "--output recommendations.csv",
                "moeapps serve m.safetensors  # POST /recommend",
            ],
        ),
    ],
    ids=["rows", "nodes", "links without a configuration", "recommendations"],
)
def test_a_command_has_the_tables_of_the_training(model, data, commands):
    assert using(model, "m.safetensors", data) == commands


def test_events_in_order_of_time_need_no_column_of_times():
    (score, _) = using(RANKER, "m.safetensors", {"train": "events.csv", "time": None})
    assert "--time ''" in score


def test_a_run_without_a_configuration_has_no_arguments(tmp_path):
    assert arguments_of_data(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("data: {class_path: X, init_args: {nodes: n.csv}}")
    assert arguments_of_data(tmp_path) == {"nodes": "n.csv"}
