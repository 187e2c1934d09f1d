"""A saved file that was changed, with a right checksum, is refused or loads as a possible model: never a signal, a hang
or memory beyond the file's."""

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tests.core.saved_fuzz import FAMILIES, KINDS, Trial, mutated

FEW, MANY = 40, 2_000
ROOT = Path(__file__).parents[2]


FAMILY_PARAMETERS = [
    pytest.param(name, marks=pytest.mark.xdist_group("stream")) if name.startswith("stream") else name
    for name in FAMILIES
]


def fail(family, seed, kind, outcome):
    return f"{family}, mutation {seed} ({kind}): {outcome}"


@pytest.mark.parametrize("family", FAMILY_PARAMETERS)
def test_a_changed_file_is_refused_or_a_possible_model(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = Trial(family)
        for seed in range(FEW):
            kind, content = mutated(family, seed)
            outcome, _ = trial.outcome(content)
            assert outcome == "refused" or kind not in ("flip_bits", "cut_or_extend"), fail(family, seed, kind, outcome)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILY_PARAMETERS)
def test_two_thousand_changed_files_neither_end_the_process_nor_hang_nor_take_memory(family):
    outcomes, failures = campaign(family, MANY)
    assert not failures, failures[:5]
    assert sum(outcomes.values()) == MANY


def campaign(family, total):
    """Outcomes of mutations 0 to ``total`` - 1, in a process that is started again where one ended it."""
    outcomes: Counter[str] = Counter()
    failures, first = [], 0
    while first < total:
        command = [sys.executable, "-m", "tests.core.saved_fuzz", family, str(first), str(total)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        assert lines, run.stderr
        for line in lines:
            if "outcome" not in line:
                continue
            outcome = line["outcome"]
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith("error") or line["MiB"] > 100:
                failures.append(fail(family, line["seed"], line["kind"], f"{outcome}, {line['MiB']} MiB"))
        first = lines[-1]["seed"] + 1
        if "outcome" not in lines[-1]:
            outcomes["process ended"] += 1
            failures.append(
                fail(family, first - 1, lines[-1]["kind"], f"ended with {run.returncode}: {run.stderr[-800:]}")
            )
    return outcomes, failures


def test_every_kind_of_mutation_is_tried():
    assert {mutated("stream data", seed)[0] for seed in range(FEW)} == {kind.__name__ for kind in KINDS}
