"""Images over HTTP: as base64, as data URLs, as a form of files, and as the body itself."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from moeapps.vision import WideNetClassifier

from .conftest import local


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((image * 15).astype(np.uint8)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [png(image) for image in load_digits().images[:3]]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    digits = load_digits()
    path = tmp_path_factory.mktemp("models") / "digits.safetensors"
    images = [png(image) for image in digits.images[:40]]
    model = WideNetClassifier(embed_dim=16, depth=1, max_epochs=1, validation_fraction=0.0, random_state=0)
    model.fit(images, digits.target[:40]).save(path)
    with local(path, max_body=20000) as found:
        yield found


@pytest.fixture(scope="module")
def expected(client, files):
    body = {"images": [base64.b64encode(file).decode() for file in files]}
    return client.post("/predict", json=body).json()["predictions"]


def same(answer, expected: list[dict]) -> None:
    """The same predictions; convolutions round by where a tensor lies in memory."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == [pytest.approx(row, rel=1e-5) for row in expected]


def test_data_urls_are_read(client, files, expected):
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    same(client.post("/predict", json={"images": urls}), expected)


def test_a_form_of_files_is_read_in_its_order(client, files, expected):
    form = [("images", (f"{i}.png", file, "image/png")) for i, file in enumerate(files)]
    same(client.post("/predict", files=form), expected)
    same(client.post("/predict", files=form[::-1]), expected[::-1])


def test_one_file_may_be_the_body(client, files, expected):
    answer = client.post("/predict", content=files[0], headers={"Content-Type": "image/png"})
    same(answer, expected[:1])


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"json": {"images": ["data:image/png,abc"]}}, 422, "images.0 is a data URL"),
        ({"json": {"images": ["https://example.org/cat.png"]}}, 422, "images.0 is a URL, which is not fetched"),
        ({"json": {"images": ["???"]}}, 422, "images.0 is not base64"),
        ({"files": [("images", ("a.png", b"no image", "image/png"))]}, 422, "images.0"),
        ({"files": [("images", ("a.png", b"", "image/png"))]}, 422, "images.0"),
        ({"files": [("images", (None, b"text"))]}, 422, "'images' holds text"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 422, "the form has no file"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be read"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 422, "no file"),
        ({"content": b"x" * 20001, "headers": {"Content-Type": "image/png"}}, 413, "20000 bytes"),
        ({"json": {"images": ["aGk="]}, "params": {"keep": "id"}}, 422, "keep: only rows"),
    ],
)
def test_what_is_no_image_is_refused(client, sent, status, message):
    answer = client.post("/predict", **sent)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_the_page_of_the_api_needs_no_other_server(client):
    page = client.get("/docs").text
    assert "https://" not in page
    assert "http://" not in page.replace("http://testserver", "")
    script = next(part for part in page.split('"') if part.endswith("swagger-ui-bundle.js"))
    assert len(client.get(script).content) > 100_000
    assert "multipart/form-data" in client.get("/openapi.json").text
