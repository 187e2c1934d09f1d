"""How the workers of pytest-xdist share the tests: which of them stay together, and which are given out first."""

UNITS = {
    "streams": (
        "tests/stream/", "tests/core/test_saved_borders.py", "tests/core/test_saved_fuzz.py",
        "tests/test_everywhere.py", "tests/test_saved_by_0_1.py",
    ),
    "two processes": (
        "tests/cli/test_several_processes.py", "tests/core/test_two_processes.py", "tests/recsys/test_two_processes.py",
        "tests/test_every_module_in_two_processes.py",
    ),
    "a cluster": ("tests/scale/",),
}  # fmt: skip
"""Files that one worker runs: the first of the streams compiles the loops, a minute of work; each of the next needs two
processors; those of a cluster start it once. Any other file is a unit of its own, so its fixtures are made once."""

PROCESSES_OF_STREAMS = ("tests/stream/test_run.py", "tests/stream/io/test_kafka", "tests/stream/test_soak.py")
"""Files that run `moeapps stream run` as a process. Before the loops' machine code is on disk each would compile it."""

SEPARATE = ("tests/test_demo.py", "tests/test_docs.py", "tests/test_examples.py")
"""Files of long tests that share nothing: any worker takes the next test."""

LONG = (
    "tests/test_sklearn_contract.py", "tests/test_examples.py", "tests/test_demo.py", "tests/core/", "tests/graph/",
    "tests/cli/",
)  # fmt: skip
"""What the other workers begin with, so that no worker is left with a long file at the end."""


def unit(nodeid: str) -> str:
    """The unit that a test belongs to. xdist's marks of groups do nothing where pytest is 9.2 (its issue 1386)."""
    if not nodeid.startswith(PROCESSES_OF_STREAMS):
        for name, beginnings in UNITS.items():
            if nodeid.startswith(beginnings):
                return name
    return nodeid if nodeid.startswith(SEPARATE) else nodeid.partition("::")[0]


def turn(nodeid: str) -> int:
    """When a test's unit is given out: streams, long files, the rest, and at the end the doctests, which are short."""
    if unit(nodeid) == "streams":
        return 0
    if nodeid.startswith(LONG):
        return 1
    return 2 if nodeid.startswith("tests/") else 3
