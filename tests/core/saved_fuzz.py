"""Mutations of saved files with a right checksum, and what may come of loading them (test_saved_fuzz.py).

``python -m tests.core.saved_fuzz FAMILY FIRST LAST`` tries the mutations FIRST to LAST - 1 of a family and prints one
line before and one after each, so that whoever started it knows which one ended the process.
"""

import faulthandler
import hashlib
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import moeapps
from moeapps.core.errors import FileFormatError, MoEAppsError
from tests.core import checkpoint_fuzz
from tests.core.fuzz_models import CHECKPOINTS, answers, original
from tests.core.hard_values import change_entry, places

ROOT = Path(__file__).parents[2]


def split(content):
    """Entries of the tensors, the document, and the data of a file."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    document = json.loads(header.pop("__metadata__")["moeapps"])
    return header, document, bytearray(content[8 + size :])


def join(header, document, data):
    """A file with a right checksum."""
    text = document if isinstance(document, str) else json.dumps(document)
    header = {"__metadata__": {"moeapps": text, "sha256": "0" * 64}, **header}
    head = json.dumps(header, separators=(",", ":")).encode()
    content = bytearray(struct.pack("<Q", len(head)) + head + data)
    start, end = re.compile(rb'"sha256":"([0-9a-f]{64})"').search(content).span(1)
    content[start:end] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def edit_json(rng, header, document, data):
    """One to three edits of the document: another value, one less, renamed, doubled, swapped, scaled."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(document))
        top = rng.choice(list(document))  # few entries have most of the values
        *path, last = rng.choice([place for place in found if place[0] == top])
        owner = document
        for key in path:
            owner = owner[key]
        action = rng.randrange(7)
        if action == 4 and isinstance(owner, dict):
            owner[str(last) + rng.choice(("_", "x", ""))[::-1]] = owner.pop(last)
        else:
            change_entry(rng, owner, last, {4: 5, 5: 4, 6: 5}.get(action, action))
        if not document:
            break
    return join(header, document, data)


def _tensor(rng, header):
    names = [name for name, entry in header.items() if entry["data_offsets"][1] > entry["data_offsets"][0]]
    return rng.choice(names) if names else None


def random_bytes(rng, header, document, data):
    """Random bytes in a part of one tensor, or in all of them."""
    name = _tensor(rng, header)
    start, end = (0, len(data)) if name is None or rng.random() < 0.1 else header[name]["data_offsets"]
    first = rng.randrange(start, max(end, start + 1))
    last = min(end, first + rng.choice((1, 8, 64, end - start)))
    data[first:last] = rng.randbytes(last - first)
    return join(header, document, data)


_DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "BOOL": "?", "U8": "u1"}


def hard_numbers(rng, header, document, data):
    """Some numbers of one tensor are set to others that are likely to hurt, or swapped."""
    for _ in range(rng.choice((1, 2))):
        name = _tensor(rng, header)
        if name is None:
            break
        start, end = header[name]["data_offsets"]
        values = np.frombuffer(data[start:end], dtype=_DTYPES[header[name]["dtype"]]).copy()
        hard = [0, 1, -1, -2, 2, 5, 64, 1000, 2**31 - 1, -(2**31)]
        if values.dtype.kind == "f":
            hard += [1e-300, 1e30, -1e300, float("nan"), float("inf"), -float("inf"), 0.5]
        for _ in range(rng.choice((1, 1, 3, len(values)))):
            i, j = rng.randrange(len(values)), rng.randrange(len(values))
            if rng.random() < 0.3:
                values[i], values[j] = values[j], values[i]
            else:
                with np.errstate(all="ignore"):
                    values[i] = np.array(rng.choice(hard)).astype(values.dtype)
        data[start:end] = values.tobytes()
    return join(header, document, data)


def edit_tensors(rng, header, document, data):
    """Tensors swap names, are renamed, left out, or have another shape or dtype."""
    if not header:
        return join(header, document, data)
    name, other = rng.choice(list(header)), rng.choice(list(header))
    action = rng.randrange(6)
    if action == 0:
        header[name], header[other] = header[other], header[name]
    elif action == 1:
        header[name + "x"] = header.pop(name)
    elif action == 2:
        del header[name]
    elif action == 3:
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice(([*shape, 1], [1, *shape], shape[::-1], [int(np.prod(shape))], [2**40, 0]))
    elif action == 4:
        header[name]["dtype"] = rng.choice(("F64", "F32", "I64", "I32", "BOOL", "U8", "BF16", "F8_E4M3", "U64"))
    else:  # a longer or shorter first axis, with the data for it
        entry = header[name]
        start, end = entry["data_offsets"]
        if entry["shape"] and entry["shape"][0] > 0 and end > start:
            row = (end - start) // entry["shape"][0]
            rows = rng.choice((-1, 1, 3))
            change = rows * row
            entry["shape"][0] += rows
            data[end + min(change, 0) : end] = rng.randbytes(max(change, 0))
            for each in header.values():
                each["data_offsets"] = [place + (change if place >= end else 0) for place in each["data_offsets"]]
            entry["data_offsets"][0] = start
    return join(header, document, data)


def flip_bits(rng, header, document, data):
    """Some bits of the file are flipped: the checksum does not hold."""
    content = bytearray(join(header, document, data))
    for _ in range(rng.choice((1, 2, 10))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def cut_or_extend(rng, header, document, data):
    """The file, or its data, is shorter or longer; or its first number is another."""
    content = join(header, document, data)
    action = rng.randrange(4)
    if action == 0:
        return content[: rng.randrange(len(content))]
    if action == 1:
        return content + rng.randbytes(rng.choice((1, 8, 1000)))
    if action == 2:
        return join(header, document, data[: rng.randrange(len(data) + 1)] if rng.random() < 0.5 else data + b"\0" * 64)
    return struct.pack("<Q", rng.choice((0, 1, 2, 2**20, 2**40, 2**64 - 1, 100_000_000))) + content[8:]


def break_text(rng, header, document, data):
    """The document is no longer what a JSON writer writes."""
    text = json.dumps(document)
    i = rng.randrange(len(text))
    cut = rng.choice((text[:i], text[:i] + rng.choice('[]{},:"0-e') + text[i:], "[" * 100_000, "1e999", "{}", text * 2))
    return join(header, cut.replace("0.", "1e999", 1) if rng.random() < 0.1 else cut, data)


KINDS = (edit_json, edit_json, edit_json, random_bytes, hard_numbers, hard_numbers, edit_tensors, edit_tensors,
         flip_bits, cut_or_extend, break_text)  # fmt: skip


def mutated(family, seed):
    """Kind and content of a mutation."""
    rng = random.Random(f"{family} {seed}")
    if family in CHECKPOINTS:
        kind = rng.choice(checkpoint_fuzz.KINDS)
        return kind.__name__, kind(rng, original(family))
    kind = rng.choice(KINDS)
    return kind.__name__, kind(rng, *split(original(family)))


class Trial:
    """Loads files of a family and uses what was loaded."""

    def __init__(self, family):
        self.family = family
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / ("model.ckpt" if family in CHECKPOINTS else "model.safetensors")
        outcome, self.answers = self.outcome(original(family))
        assert outcome == "other", outcome

    def outcome(self, content):
        """``"refused"``; ``"equal"``, or ``"other"`` (a model that predicts something else), or ``"error: ..."``."""
        self.path.write_bytes(content)
        try:
            model = moeapps.load(self.path)
        except FileFormatError as error:
            return ("refused" if str(self.path) in str(error) else f"error: no file in {error}"), None
        try:
            found = answers(self.family, model)
        except MoEAppsError as error:  # of another table, say: refused in use
            return f"refused in use: {type(error).__name__}: {str(error)[:80]}", None
        except ValueError as error:
            if not str(error).startswith("The feature names should match"):  # scikit-learn's word, of other columns
                raise
            return f"refused in use: {type(error).__name__}: {str(error)[:80]}", None
        if any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in found.values()):
            if isinstance(model, torch.nn.Module):  # an estimator refuses what a plain module answers
                return "other", found
            return "error: predictions that are not finite", None
        before = getattr(self, "answers", None)
        same = before is not None and all(np.array_equal(before[key], found.get(key)) for key in before)
        return "equal" if same else "other", found


def campaign(family, total, mib=100):
    """Outcomes of mutations 0 to ``total`` - 1, in a process that is started again where one ended it.

    Returns
    -------
    outcomes : Counter of str
        How many were refused, refused in use, loaded as a model that predicts the same ("equal") or something else
        ("other"), raised another error, or ended the process.
    failures : list of str
        Every error, end of the process, and growth of its memory by more than ``mib`` MiB.
    most : int
        By how many MiB one mutation made the process grow at most.
    """
    outcomes: Counter[str] = Counter()
    failures, first, most = [], 0, 0
    while first < total:
        command = [sys.executable, "-m", "tests.core.saved_fuzz", family, str(first), str(total)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(run.stderr)
        for line in lines:
            if "outcome" not in line:
                continue
            outcome = line["outcome"]
            outcomes[outcome.partition(":")[0]] += 1
            most = max(most, line["MiB"])
            if outcome.startswith("error") or line["MiB"] > mib:
                failures.append(told(family, line["seed"], line["kind"], f"{outcome}, {line['MiB']} MiB"))
        first = lines[-1]["seed"] + 1
        if "outcome" not in lines[-1]:
            outcomes["process ended"] += 1
            end = f"ended with {run.returncode}: {run.stderr[-800:]}"
            failures.append(told(family, first - 1, lines[-1]["kind"], end))
    return outcomes, failures, most


def told(family, seed, kind, outcome):
    """A mutation and what came of it."""
    return f"{family}, mutation {seed} ({kind}): {outcome}"


def main(family, first, last):
    """Try mutations; a line before and after each."""
    warnings.simplefilter("ignore")
    trial = Trial(family)
    for seed in range(min(first, 3)):  # code that is imported or compiled when first needed is not a file's memory
        trial.outcome(mutated(family, seed)[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, last):
        kind, content = mutated(family, seed)
        print(json.dumps({"seed": seed, "kind": kind}), flush=True)
        faulthandler.dump_traceback_later(30, exit=True)
        try:
            outcome, _ = trial.outcome(content)
        except Exception as error:
            outcome = f"error: {type(error).__name__}: {str(error)[:200]}"
        faulthandler.cancel_dump_traceback_later()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown, before = (peak - before) // 1024, peak
        print(json.dumps({"seed": seed, "kind": kind, "outcome": outcome, "MiB": grown}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
