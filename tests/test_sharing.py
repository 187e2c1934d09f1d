"""How the workers of pytest-xdist share the tests (sharing.py)."""

from pathlib import Path

import pytest

from tests.sharing import LONG, PROCESSES_OF_STREAMS, SEPARATE, UNITS, turn, unit

ROOT = Path(__file__).parent.parent
FILES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/**/test_*.py"))]


@pytest.mark.parametrize(
    "beginning", [*PROCESSES_OF_STREAMS, *SEPARATE, *LONG, *(path for paths in UNITS.values() for path in paths)]
)
def test_what_is_named_exists(beginning):
    assert any(file.startswith(beginning) for file in FILES)


def test_files_stay_whole_unless_named_and_the_streams_stay_together():
    assert (
        unit("tests/core/test_moe.py::test_a[1]") == unit("tests/core/test_moe.py::test_b") == "tests/core/test_moe.py"
    )
    assert unit("tests/stream/io/test_lines.py::test_a") == unit("tests/core/test_saved_fuzz.py::test_b[x::y]")
    assert unit("tests/test_docs.py::test_every_block_runs[start]") != unit(
        "tests/test_docs.py::test_every_block_runs[vision]"
    )
    assert unit("tests/stream/io/test_kafka_group.py::test_a") == "tests/stream/io/test_kafka_group.py"


def test_streams_are_given_out_first_and_doctests_last():
    paths = [
        "moeapps/graph/mowst.py",
        "tests/vision/test_data.py",
        "tests/core/test_moe.py",
        "tests/stream/test_run.py",
    ]
    assert [turn(path) for path in ["tests/stream/test_values.py", *reversed(paths)]] == [0, 2, 1, 2, 3]


def test_each_worker_gets_whole_files_in_the_order_of_collection(pytestconfig):
    xdist = pytest.importorskip("xdist.scheduler")
    from tests.conftest import pytest_xdist_make_scheduler

    assert "--dist loadfile" in pytestconfig.inipath.read_text()
    config = pytestconfig.__class__.fromdictargs({"dist": "loadfile", "tx": ["2*popen"]}, [])
    made = pytest_xdist_make_scheduler(config, None)
    assert isinstance(made, xdist.LoadFileScheduling)
    assert made._split_scope("tests/stream/test_values.py::test_a") == "streams"
    assert config.option.loadscopereorder is False
