import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.recsys import (
    AWMoERanker,
    ImplicitData,
    MultiTaskRanker,
    Schema,
    SparseFeature,
    implicit_feedback,
    ranks_of,
    recommendation_table,
)
from moeapps.recsys.neighbours import Neighbours
from moeapps.recsys.recommend import top_items
from moeapps.serve.services import RecommendService, open_service


def events(n=1500, users=60, items=30, seed=0):
    """Users of two tastes: even users take even items, odd ones odd items, one time in eight the others."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, n)
    taste = np.where(rng.random(n) < 0.875, user % 2, 1 - user % 2)
    frame = pd.DataFrame({"user_id": user, "item_id": taste + 2 * rng.integers(0, items // 2, n)})
    return frame.assign(timestamp=range(n)).drop_duplicates(["user_id", "item_id"], ignore_index=True)


def users_of(frame):
    return pd.DataFrame({"user_id": sorted(frame["user_id"].unique())}).assign(
        country=lambda f: np.where(f["user_id"] % 3, "de", "fr")
    )


def items_of(frame):
    return pd.DataFrame({"item_id": range(int(frame["item_id"].max()) + 1)}).assign(
        price=lambda f: f["item_id"] * 0.5, colour=lambda f: np.where(f["item_id"] % 2, "red", "blue")
    )


SETTINGS = {"embedding_dim": 8, "lr": 0.02, "batch_size": 256, "max_epochs": 6, "random_state": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def feedback():
    frame = events()
    return implicit_feedback(frame, users=users_of(frame), items=items_of(frame), max_history=10)


@pytest.fixture(scope="module")
def ranker(feedback):
    train, validation, _ = feedback.leave_last_out()
    return AWMoERanker("din", **SETTINGS).fit(train, validation=validation)


def test_a_ranker_learns_the_tastes(ranker, feedback):
    test = feedback.leave_last_out()[2]
    table = ranker.evaluate_recommendations(test)
    assert table.loc[0, "auc"] > 0.65
    assert table.loc[0, "events"] == len(test)


def test_recommended_items_are_new_to_the_user_and_in_order(ranker, feedback):
    found = ranker.recommend(feedback, 5)
    pairs = feedback.joined(feedback.events.user, feedback.events.item)[["user_id", "item_id"]]
    assert len(found.merge(pairs)) == 0
    for _, own in found.groupby("user_id"):
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        assert own["score"].is_monotonic_decreasing
        assert own["item_id"].is_unique


def test_seen_items_come_back_if_asked_for(ranker, feedback):
    pairs = feedback.joined(feedback.events.user, feedback.events.item)[["user_id", "item_id"]]
    assert len(ranker.recommend(feedback, 30, exclude_seen=False).merge(pairs)) == len(pairs)


def test_a_score_is_the_logit_of_the_pair(ranker, feedback):
    found = ranker.recommend(feedback, 3)
    history = feedback.names_of(feedback.latest(np.arange(len(feedback.users))))
    rows = found.merge(feedback.users.assign(item_id_history=history)).merge(feedback.items)
    logit = np.log(p := ranker.predict_proba(rows.drop(columns=["rank", "score"]))["interaction"]) - np.log1p(-p)
    np.testing.assert_allclose(logit, rows["score"], atol=1e-5)


def test_a_frame_of_users_gets_the_same_as_their_events(ranker, feedback):
    history = feedback.names_of(feedback.latest(np.arange(len(feedback.users))))
    frame = feedback.users.assign(item_id_history=history)
    left_out = feedback.names_of(
        np.array([np.pad(own := feedback.pairs().of_users(np.array([user]))[1], (0, 30 - len(own)), constant_values=-1)
                  for user in range(len(frame))])
    )  # fmt: skip
    found = ranker.recommend(frame, 4, exclude=left_out)
    pd.testing.assert_frame_equal(found, ranker.recommend(feedback, 4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_wrong_item_never_appears(data):
    number, users = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    k = data.draw(st.integers(1, 14))
    grid = st.lists(st.lists(st.integers(0, 3), min_size=number, max_size=number), min_size=users, max_size=users)
    scores = torch.tensor(data.draw(grid), dtype=torch.float32)  # many are equal
    seen = [data.draw(st.sets(st.integers(0, number - 1))) for _ in range(users)]
    near = data.draw(st.booleans())
    chosen = np.array([data.draw(st.permutations([*range(number), -1])) for _ in range(users)])[
        :, : data.draw(st.integers(1, number + 1))
    ]

    def score(part, candidates):
        return (
            scores[part] if candidates is None else scores[part].gather(1, torch.from_numpy(np.maximum(candidates, 0)))
        )

    def left_out(part):
        rows = [row for row, own in enumerate(seen[part]) for _ in own]
        return np.array(rows, dtype=np.int64), np.array([item for own in seen[part] for item in own], dtype=np.int64)

    for part, items, values in top_items(
        score, users, number, k, left_out, (lambda part: chosen[part]) if near else None
    ):
        for row, user in enumerate(range(part.start, part.stop)):
            kept = items[row][items[row] >= 0]
            allowed = set(chosen[user].tolist()) - {-1} if near else set(range(number))
            allowed -= seen[user]
            assert len(set(kept)) == len(kept) == min(k, len(allowed))
            assert set(kept) <= allowed
            best = sorted((float(scores[user, item]) for item in allowed), reverse=True)[: len(kept)]
            assert values[row][: len(kept)].tolist() == best


def test_ranks_are_those_of_a_loop_over_the_events():
    feedback = implicit_feedback(events(400, 20, 15)).leave_last_out()[2]
    number = len(feedback.items)
    scores = torch.rand(len(feedback), number, generator=torch.Generator().manual_seed(0)).mul(8).round()  # with ties
    table = recommendation_table(
        ranks_of(lambda part, candidates: scores[part], feedback, k=3), number, 3, num_events=len(feedback)
    )
    ranks, areas, covered = [], [], set()
    for event, (user, item) in enumerate(zip(feedback.events.user, feedback.events.item, strict=True)):
        before = set(feedback.earlier.item[feedback.earlier.user == user].tolist())
        rivals = [scores[event, other].item() for other in range(number) if other not in before and other != item]
        own = scores[event, item].item()
        ranks.append(1 + sum(rival > own for rival in rivals) + sum(rival == own for rival in rivals) / 2)
        areas.append(1 - (ranks[-1] - 1) / len(rivals))
        order = sorted((o for o in range(number) if o not in before), key=lambda o: (-scores[event, o].item(), o))
        covered |= set(order[:3])
    hit = np.array(ranks) <= 3
    expected = {
        "hr@3": hit.mean(),
        "ndcg@3": np.mean(np.where(hit, 1 / np.log2(1 + np.array(ranks)), 0)),
        "mrr": np.mean(1 / np.array(ranks)),
        "auc": np.mean(areas),
    }
    for name, value in expected.items():
        assert table.loc[0, name] == pytest.approx(value), name
    assert (
        abs(table.loc[0, "coverage"] - len(covered) / number) < 0.15
    )  # of equal scores at the end any may be in a list


def test_drawn_rivals_estimate_the_area_of_all():
    feedback = implicit_feedback(events(1500, 60, 30)).leave_last_out()[2]
    scores = torch.rand(len(feedback), 30, generator=torch.Generator().manual_seed(0))

    def score(part, candidates):
        rows = scores[part]
        return rows if candidates is None else rows.gather(1, torch.from_numpy(np.maximum(candidates, 0)))

    every, drawn = (
        recommendation_table(ranks_of(score, feedback, negatives=n), 30, num_events=len(feedback)) for n in (None, 500)
    )
    assert drawn.loc[0, "auc"] == pytest.approx(every.loc[0, "auc"], abs=0.01)
    assert np.isnan(drawn.loc[0, "coverage"])


def test_slices_are_measured_separately(ranker, feedback):
    test = feedback.leave_last_out()[2]
    short = test.history_lengths() < 20
    table = ranker.evaluate_recommendations(test, slices={"short": short}).set_index("slice")
    assert table.loc["short", "events"] == short.sum()
    with pytest.raises(DataError, match="slices: 'short' has 2 rows, expected one per event"):
        ranker.evaluate_recommendations(test, slices={"short": [True, False]})


def test_candidates_are_scored_only(ranker, feedback):
    few = ranker.recommend(feedback, 30, candidates=7)
    assert few.groupby("user_id").size().max() <= 7
    every = ranker.recommend(feedback, 30, candidates="all")
    assert len(few.merge(every, on=["user_id", "item_id"])) == len(few)
    with pytest.raises(ConfigError, match="candidates must be 'auto', 'all' or a whole number, got 'some'"):
        ranker.recommend(feedback, candidates="some")


def test_no_users_get_no_items(ranker):
    users = pd.DataFrame({"user_id": [0], "country": ["de"], "item_id_history": [[2, 4, 2]]})
    one, none = ranker.recommend(users, 2), ranker.recommend(users.head(0), 2)
    assert len(none) == 0
    assert none.columns.tolist() == one.columns.tolist()
    assert none["item_id"].dtype == one["item_id"].dtype


def test_candidates_are_chosen_among_items_that_are_not_left_out(ranker):
    users = pd.DataFrame({"user_id": [0], "country": ["de"], "item_id_history": [[2, 4, 2]]})
    again = ranker.recommend(users, 30, candidates=2, exclude_seen=False)
    assert set(again["item_id"]) == {2, 4}
    every = ranker.recommend(users, 30, candidates="all")["item_id"].tolist()
    rest = ranker.recommend(users, 30, candidates=6, exclude=[every[6:]])
    assert rest["item_id"].tolist() == every[:6]


def test_a_network_without_a_history_needs_none_of_its_users(feedback):
    schema = Schema([SparseFeature("user_id"), SparseFeature("item_id"), SparseFeature("country")])
    settings = {**SETTINGS, "max_epochs": 1, "schema": schema}
    model = MultiTaskRanker("shared_bottom", **settings).fit(feedback, "interaction")
    assert len(model.recommend(feedback.users, 3, exclude_seen=False)) == 3 * len(feedback.users)
    with pytest.raises(DataError, match="the table of users lacks the column 'item_id_history'"):
        model.recommend(feedback.users, 3)


def test_neighbours_are_the_cosines_of_users():
    users, items = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 0, 1, 0, 2, 2])
    near = Neighbours.of(users, items, 3, 4)
    assert near.items[0, :2].tolist() == [1, 2]
    assert near.items[3].tolist() == [-1, -1, -1]
    np.testing.assert_allclose(near.similarity[0, :2], [2 / np.sqrt(6), 1 / np.sqrt(3)], rtol=1e-6)
    assert near.counts.tolist() == [3, 2, 1, 0]
    nothing = np.array([], dtype=np.int64)
    found = near.candidates([np.array([1]), nothing], 3)
    assert found.tolist() == [[0, 2, 3], [0, 1, 2]]  # neighbours first, then the most popular
    assert near.candidates([np.array([1])], 3, [nothing]).tolist() == [[1, 0, 2]]  # the own ones before them
    assert near.candidates([np.array([1])], 2, [np.array([0, 1])]).tolist() == [[2, 3]]


def test_a_saved_ranker_recommends_the_same(ranker, feedback, tmp_path):
    ranker.save(tmp_path / "ranker.safetensors")
    loaded = moeapps.load(tmp_path / "ranker.safetensors")
    pd.testing.assert_frame_equal(loaded.recommend(feedback, 5), ranker.recommend(feedback, 5))
    pd.testing.assert_frame_equal(
        loaded.recommend(feedback, 5, candidates=9), ranker.recommend(feedback, 5, candidates=9)
    )


def test_a_catalogue_that_contradicts_its_columns_is_refused(ranker):
    state, tensors = ranker.saved_state(), ranker.saved_tensors()
    wrong = {**tensors, "catalogue.sparse": tensors["catalogue.sparse"] + 1000}
    with pytest.raises(FileFormatError, match="its catalogue contradicts its columns"):
        AWMoERanker.from_saved(ranker.saved_arguments(), state, wrong, "the file")


def test_a_multi_task_ranker_learns_from_implicit_feedback_too(feedback):
    train, validation, test = feedback.leave_last_out()
    model = MultiTaskRanker("shared_bottom", **SETTINGS).fit(train, "interaction", validation=validation)
    assert model.evaluate_recommendations(test).loc[0, "auc"] > 0.6


def test_a_ranker_of_a_table_knows_no_catalogue(feedback):
    rows = feedback.rows()
    model = AWMoERanker("din", **{**SETTINGS, "max_epochs": 1}).fit(rows, "interaction")
    with pytest.raises(ConfigError, match="this ranker knows no catalogue: fit it on implicit_feedback"):
        model.recommend(feedback)


def test_events_of_unknown_items_are_refused_for_measuring(ranker):
    other = implicit_feedback(events().assign(item_id=lambda f: f["item_id"] + 5))
    with pytest.raises(DataError, match="events are of items that the ranker does not know"):
        ranker.evaluate_recommendations(other)


def test_other_targets_than_interaction_are_refused(feedback):
    with pytest.raises(ConfigError, match="the target of implicit feedback is 'interaction', got"):
        AWMoERanker("din").fit(feedback, "liked")


def test_negatives_are_anew_in_each_epoch_and_the_same_when_resumed(feedback):
    def epoch(number, start=0):
        data = ImplicitData(feedback, batch_size=100, seed=1)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        loader.load_state_dict({"position": start})
        return [(rows.sparse, labels) for rows, labels in loader]

    whole, resumed, other = epoch(1), epoch(1, start=3), epoch(2)
    assert len(resumed) == len(whole) - 3
    for (rows, labels), (again, labels_again) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(rows, again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(whole[0][0], other[0][0])


def test_batches_hold_each_event_and_its_negatives(feedback):
    data = ImplicitData(feedback, batch_size=100, seed=1)
    data.setup("fit")
    rows, labels = next(iter(data.train_dataloader()))
    assert len(rows) == 100
    assert labels.view(20, 5)[:, 0].eq(1).all()
    assert labels.view(20, 5)[:, 1:].eq(0).all()
    user = [feature.name for feature in data.encoder.schema.sparse].index("user_id")
    assert (rows.sparse[:, user].view(20, 5) == rows.sparse[:, user].view(20, 5)[:, :1]).all()


def test_expected_counts_of_labels_are_those_of_many_epochs(feedback):
    data = ImplicitData(feedback, validation_fraction=0.0)
    data.setup("fit")
    positive, negative = data.label_counts("item_id")
    assert positive.sum() == len(feedback)
    assert negative.sum() == pytest.approx(4 * len(feedback))
    assert data.label_counts("country")[1].sum() == 4 * len(feedback)


def test_a_checkpoint_becomes_an_estimator_that_recommends(feedback, tmp_path, capsys):
    frame = events()
    for name, table in (("events", frame), ("users", users_of(frame)), ("items", items_of(frame))):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    config = {
        "seed_everything": 0,
        "model": {"class_path": "moeapps.recsys.RankingModule", "init_args": {"model": "din", "lr": 0.02}},
        "data": {
            "class_path": "moeapps.recsys.ImplicitData",
            "init_args": {
                "train": str(tmp_path / "events.csv"), "users": str(tmp_path / "users.csv"),
                "items": str(tmp_path / "items.csv"), "split": "leave_last_out", "batch_size": 256,
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(tmp_path)},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    told = capsys.readouterr().out
    assert f"moeapps score MODEL.safetensors --input {tmp_path / 'events.csv'} --recommend 10 --users" in told
    assert main(["test", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", str(checkpoint)]) == 0
    assert "test/hr@10" in capsys.readouterr().out
    model = moeapps.load(checkpoint)
    assert isinstance(model, AWMoERanker)
    assert model.model == "din"
    model.save(tmp_path / "ranker.safetensors")

    score = ["score", str(checkpoint), "--input", str(tmp_path / "events.csv"), "--recommend", "3"]
    assert main([*score, "--users", str(tmp_path / "users.csv"), "--output", str(tmp_path / "best.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "best.parquet")
    assert len(found) == 3 * frame["user_id"].nunique()
    assert len(found.merge(frame, on=["user_id", "item_id"])) == 0
    assert main([*score[:4], "--output", str(tmp_path / "none.csv")]) == 2
    assert "no column 'item_id_history'; of events (who took what, and when) --recommend K" in capsys.readouterr().err
    assert main([*score, "--output", str(tmp_path / "none.csv")]) != 0
    assert "the table of users lacks the column 'country'" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


def test_a_file_of_users_with_histories_is_scored(ranker, feedback, tmp_path):
    frame = feedback.users.assign(
        item_id_history=feedback.names_of(feedback.latest(np.arange(len(feedback.users)))).map(json.dumps)
    )
    frame.to_csv(tmp_path / "users.csv", index=False)
    rows = ranker.recommend_file(tmp_path / "users.csv", tmp_path / "best.csv", 2)
    assert rows == 2 * len(frame) == len(pd.read_csv(tmp_path / "best.csv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recommend", "2", "--keep", "country"], "--keep is not for --recommend"),
        (["--recommend", "2", "--weights"], "--weights is not for --recommend"),
        (["--keep-seen"], "--keep-seen is for --recommend K"),
    ],
)
def test_options_that_would_do_nothing_are_refused(ranker, tmp_path, capsys, options, message):
    ranker.save(tmp_path / "ranker.safetensors")
    pd.DataFrame({"user_id": [0], "country": ["de"], "item_id_history": ["[2]"]}).to_csv(tmp_path / "users.csv")
    paths = ["--input", str(tmp_path / "users.csv"), "--output", str(tmp_path / "best.csv")]
    assert main(["score", str(tmp_path / "ranker.safetensors"), *paths, *options]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "best.csv").exists()


def test_a_request_gets_a_list_for_each_user(ranker, feedback, tmp_path):
    ranker.save(tmp_path / "ranker.safetensors")
    service = open_service(str(tmp_path / "ranker.safetensors"))
    assert isinstance(service, RecommendService)
    assert service.describe()["recommends"]["users"] == {
        "user_id": "category", "country": "category", "item_id_history": "list",
    }  # fmt: skip
    user = {"user_id": 0, "country": "de", "item_id_history": [2, 4, 6], "exclude": [8, 999]}
    (answer,) = service.recommend([{"rows": [user, user], "k": 27, "exclude_seen": True}])
    assert [len(own) for own in answer] == [26, 26]
    assert answer[0] == answer[1]
    assert not {2, 4, 6, 8} & {record["item_id"] for record in answer[0]}
