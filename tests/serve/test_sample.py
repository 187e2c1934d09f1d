"""POST /sample: images of a generator, the same for the same request, and everything that is refused."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

import moeapps
from moeapps.cli.main import main
from moeapps.serve.app import make_app
from moeapps.serve.batching import Limits, ModelServer
from moeapps.serve.drawing import BLOCK, wants_png
from moeapps.serve.jobs import Job, JobQueue
from moeapps.vision import SwitchDiTGenerator

from .conftest import LocalWorker, Server, local

SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "timesteps": 40, "max_epochs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Saved generators: of labelled images, of names as labels in colour, of images without labels."""
    folder = tmp_path_factory.mktemp("generators")
    X, y = (part[:96] for part in load_digits(return_X_y=True))
    X = X.reshape(-1, 8, 8)
    rgb = np.stack([(X * 15).astype(np.uint8)] * 3, axis=1)
    names = np.array(["odd" if label % 2 else "even" for label in y])
    models = {
        "digits": SwitchDiTGenerator(**SMALL).fit(X, y),
        "named": SwitchDiTGenerator("dit", **SMALL).fit(rgb, names),
        "no classes": SwitchDiTGenerator(**SMALL).fit(X),
    }
    for name, model in models.items():
        model.save(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}


@pytest.fixture(scope="module")
def digits(files):
    with local(files["digits"]) as client:
        yield client


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_arrays_are_what_sample_gives(digits, files):
    asked = {"n": 3, "y": [7, 7, 1], "guidance": 2.0, "steps": 10, "seed": 5, "form": "array"}
    answer = digits.post("/sample", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["labels"] == [7, 7, 1]
    expected = moeapps.load(files["digits"]).sample(3, y=[7, 7, 1], guidance=2.0, steps=10, seed=5)
    np.testing.assert_array_equal(np.array(answer.json()["images"], dtype=np.float32), expected)


def test_files_are_the_same_images_as_png(digits, files):
    answer = digits.post("/sample", json={"y": [0, 3], "steps": 5, "seed": 1}).json()
    model = moeapps.load(files["digits"])
    expected = model.to_pixels(model.sample(2, y=[0, 3], steps=5, seed=1))
    assert expected.dtype == np.uint8
    np.testing.assert_array_equal([pixels(text) for text in answer["images"]], expected)


def test_who_accepts_image_png_gets_one_picture(digits):
    body = {"n": 5, "steps": 3, "columns": 2}
    answer = digits.post("/sample", json=body, headers={"Accept": "image/png"})
    assert answer.headers["Content-Type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (3 * 9 - 1, 2 * 9 - 1)
    single = [pixels(text) for text in digits.post("/sample", json=body).json()["images"]]
    for number, image in enumerate(single):
        row, column = number // 2 * 9, number % 2 * 9
        np.testing.assert_array_equal(picture[row : row + 8, column : column + 8], image)
    assert digits.post("/sample", json={"n": 1}, headers={"Accept": "image/png"}).status_code == 200


def test_the_accepted_type_with_more_weight_counts():
    assert wants_png("image/png")
    assert wants_png("application/json;q=0.5, image/png")
    assert not wants_png("application/json, image/png;q=0.5")
    assert not wants_png("*/*")
    assert not wants_png("image/png;q=much")


def test_the_same_request_gets_the_same_images_and_another_seed_others(digits):
    body = {"n": 11, "steps": 8, "seed": 3, "form": "array", "sampler": "ddpm"}
    first, again = (digits.post("/sample", json=body).json()["images"] for _ in range(2))
    assert first == again
    other = digits.post("/sample", json={**body, "seed": 4}).json()["images"]
    assert np.abs(np.array(first) - np.array(other)).max() > 0.1
    assert digits.post("/sample", json={**body, "n": 8}).json()["images"] == first[:8]  # a whole block


def test_all_classes_come_in_turn_across_blocks(digits):
    answer = digits.post("/sample", json={"n": 12, "steps": 2}).json()
    assert answer["labels"] == [*range(10), 0, 1]
    one = digits.post("/sample", json={"n": 3, "y": 4, "steps": 2}).json()
    assert one["labels"] == [4, 4, 4]


def test_names_of_classes_in_colour(files):
    with local(files["named"]) as client:
        answer = client.post("/sample", json={"y": ["odd", "even"], "steps": 4, "seed": 2}).json()
        assert [pixels(text).shape for text in answer["images"]] == [(8, 8, 3)] * 2
        model = moeapps.load(files["named"])
        drawn = model.sample(2, y=["odd", "even"], steps=4, seed=2)
        assert drawn.shape == (2, 3, 8, 8)
        np.testing.assert_array_equal(pixels(answer["images"][0]), drawn[0].transpose(1, 2, 0))
        picture = client.post("/sample", json={"n": 2, "steps": 2}, headers={"Accept": "image/png"})
        assert np.asarray(Image.open(io.BytesIO(picture.content))).shape == (8, 17, 3)
        refused = client.post("/sample", json={"y": "prime"})
        assert refused.status_code == 422
        assert refused.json()["error"] == "y: 'prime' is no class of the model; there are 'even', 'odd'"


def test_without_classes_there_are_no_labels_and_no_guidance(files):
    with local(files["no classes"]) as client:
        answer = client.post("/sample", json={"n": 2, "steps": 2})
        assert list(answer.json()) == ["images"]
        for name, value in (("y", 1), ("guidance", 2.0)):
            refused = client.post("/sample", json={"n": 1, name: value})
            assert refused.status_code == 422
            assert refused.json()["error"].startswith(f"{name}: ")


REFUSED = [
    ({"n": 0}, "n: must be greater than or equal to 1"),
    ({"n": 65}, "n: must be less than or equal to 64"),
    ({"n": "3"}, "n: "),
    ({"n": True}, "n: "),
    ({"steps": 0}, "steps: must be greater than or equal to 1"),
    ({"steps": 41}, "steps: must be less than or equal to 40"),  # timesteps of the training
    ({"seed": -1}, "seed: "),
    ({"seed": 2**63}, "seed: "),
    ({"seed": 1.5}, "seed: "),
    ({"guidance": -1}, "guidance: "),
    ({"guidance": 21}, "guidance: must be less than or equal to 20"),
    ({"eta": 2}, "eta: "),
    ({"sampler": "magic"}, "sampler: must be 'ddim', 'ddpm' or 'dpm++'"),
    ({"form": "gif"}, "form: "),
    ({"columns": 0}, "columns: "),
    ({"y": 11}, "y: '11' is no class of the model; there are 0, 1, 2"),
    ({"y": [1, -1]}, "y.1: '-1' is no class"),
    ({"y": []}, "y: 0 labels, must be 1 to 64"),
    ({"y": [1] * 65}, "y: 65 labels, must be 1 to 64"),
    ({"y": [1, None]}, "y.1: "),
    ({"y": {"a": 1}}, "y: "),
    ({"n": 3, "y": [1, 2]}, "y: 2 labels for n=3 images: give one label, or one per image"),
    ({"m": 3}, "m: "),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=range(len(REFUSED)))
def test_impossible_requests_name_the_field_and_what_is_allowed(digits, body, message):
    answer = digits.post("/sample", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].startswith(message), answer.json()["error"]
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["faults"]


@pytest.fixture
def limited(files):
    def start(**limits):
        server = ModelServer(str(files["digits"]), None, Limits(**limits), make_worker=LocalWorker)
        return TestClient(make_app(server, server.start()), raise_server_exceptions=False)

    return start


def test_work_has_a_limit_that_counts_images_steps_values_and_guidance(limited):
    with limited(sample_work=64 * 4 * 10, sample_images=6, sample_steps=20) as client:
        assert client.post("/sample", json={"n": 4, "steps": 10}).status_code == 200
        for body, work in (
            ({"n": 5, "steps": 10}, 3200), ({"n": 4, "steps": 11}, 2816), ({"n": 4, "steps": 10, "guidance": 2}, 5120)
        ):  # fmt: skip
            answer = client.post("/sample", json=body)
            assert answer.status_code == 422
            assert f"are {work}, at most 2560 per request" in answer.json()["error"]
            assert f"n={body['n']}" in answer.json()["error"]
        assert "less than or equal to 6" in client.post("/sample", json={"n": 7}).json()["error"]
        assert "less than or equal to 20" in client.post("/sample", json={"steps": 21}).json()["error"]
        assert client.get("/info").json()["limits"]["sample_images"] == 6


def test_a_request_that_takes_too_long_is_given_up_and_the_server_lives_on(limited):
    with limited(timeout=0.1) as client:
        answer = client.post("/sample", json={"n": 64, "steps": 40, "guidance": 3.0})
        assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
        small = [client.post("/sample", json={"n": 1, "steps": 1}).status_code for _ in range(20)]
        assert 200 in small


def test_the_model_stops_at_its_own_limit(files):
    worker = LocalWorker(str(files["digits"]))
    content = {
        "n": 1, "labels": [1], "guidance": 1.0, "steps": 40, "sampler": "ddim", "eta": 0.0, "seed": 0, "form": "png",
        "first_block": 0, "blocks": 1, "seconds": -1.0,
    }  # fmt: skip
    (late,) = worker.call("sample", [content], 10)
    assert (late.status, late.code) == (504, "timeout")
    (found,) = worker.call("sample", [{**content, "seconds": 10.0}], 10)
    assert len(found) == 1
    assert len(found[0]) == 1
    worker.stop()


def test_a_large_request_goes_block_by_block_between_the_others():
    async def scenario():
        queue = JobQueue(Limits())
        queue.piece_rows = 1
        large, small = (
            Job("sample", {"n": n, "first_block": 0, "blocks": -(-n // BLOCK)}, -(-n // BLOCK)) for n in (20, 3)
        )
        queue.put(large)
        queue.put(small)
        order = []
        while batch := queue.next_batch():
            (piece,) = batch
            order.append((piece.job is large, piece.content["first_block"], piece.content["blocks"]))
            piece.finish([[piece.start]] * piece.rows)
        return order, large.answer.result(), small.answer.result()

    order, of_large, of_small = asyncio.run(scenario())
    assert order == [(True, 0, 1), (False, 0, 1), (True, 1, 1), (True, 2, 1)]
    assert of_large == [[0], [1], [2]]
    assert of_small == [[0]]


def test_images_do_not_depend_on_how_blocks_were_shared_out(files):
    worker = LocalWorker(str(files["digits"]))
    content = {
        "n": 20, "labels": [i % 10 for i in range(20)], "guidance": 1.5, "steps": 6, "sampler": "ddpm", "eta": 0.0,
        "seed": 2, "form": "array", "first_block": 0, "blocks": 3, "seconds": 30.0,
    }  # fmt: skip
    (whole,) = worker.call("sample", [content], 60)
    parts = [worker.call("sample", [{**content, "first_block": i, "blocks": 1}], 60)[0][0] for i in range(3)]
    assert whole == parts
    assert [len(block) for block in whole] == [8, 8, 4]
    worker.stop()


def test_info_metrics_health_and_the_openapi_page(digits):
    info = digits.get("/info").json()
    assert (info["kind"], info["shape"], info["timesteps"]) == ("generator", [1, 8, 8], 40)
    assert info["classes"] == list(range(10))
    digits.post("/sample", json={"n": 1, "steps": 1})
    text = digits.get("/metrics").text
    assert 'moeapps_requests_total{path="/sample",status="200"}' in text
    assert "moeapps_batch_rows_count" in text
    assert digits.get("/health").json() == {"ready": True}
    schema = digits.get("/openapi.json").json()
    assert {"n", "y", "guidance", "steps", "seed", "form", "columns"} <= set(
        schema["components"]["schemas"]["Sample"]["properties"]
    )
    assert "/predict" not in schema["paths"]
    answer = digits.post("/predict", json={"rows": [{}]})
    assert answer.status_code == 404
    assert "/sample" in answer.json()["error"]


def test_a_token_is_required(files):
    with local(files["digits"], token="secret") as client:
        assert client.post("/sample", json={"n": 1}).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post("/sample", json={"n": 1, "steps": 1}, headers=right).status_code == 200


def test_impossible_limits_are_named(files, capsys):
    assert main(["serve", str(files["digits"]), "--sample-images", "0"]) == 2
    assert "sample_images must be" in capsys.readouterr().err


@pytest.mark.slow  # the tests above are its fast twins: the application and the worker in one process
def test_moeapps_serve_answers_with_a_picture(files):
    with Server(files["digits"], "--sample-images", "4") as server:
        assert "/sample, /docs" in server.line
        answer = server.http.post("/sample", json={"n": 4, "steps": 5}, headers={"Accept": "image/png"})
        assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == (17, 17)
        assert server.http.post("/sample", json={"n": 5}).status_code == 422
        again = server.http.post("/sample", json={"n": 4, "steps": 5}, headers={"Accept": "image/png"})
        assert again.content == answer.content
