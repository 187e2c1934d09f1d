"""Every code block of the README and of the guides runs as it is written, in the order of its page, in an empty folder.

Pages that train for long are slow tests, which CI runs.
"""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from moeapps import MoEClassifier
from moeapps.cli.main import main, make_parser
from moeapps.cli.training import SUMMARIES
from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SHORT = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
SMALL = {
    "widenet_folder.yaml": ["--data.image_size", "32", "--trainer.precision", "32-true", "--data.batch_size", "4"],
    "mixture_census.yaml": ["--data.validation_fraction", "0.9", "--model.cv", "2"],
    "compare customers.csv --target bought": ["--models", "logistic regression, random forest", "--splits", "2"],
    "compare customers.csv --target churned": ["--models", "logistic regression, random forest", "--splits", "2"],
}
# needs several devices, a broker or a cluster, or runs in CI: only parsed
ELSEWHERE = ("devices", "kafka://", "moeapps demo", "--engine ray --workers 2 --trainer", "s3://", "moeapps search")


def name_of(page: Path) -> str:
    """Name of a test of a page; benchmarks of a task are told apart from its guide."""
    return f"benchmarks-{page.stem}" if page.parent.name == "benchmarks" else page.stem


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in BLOCK.finditer(page.read_text())]


TRAINS_LONG = (
    "README", "graph", "graph_tasks", "index", "mixture", "moeify", "recsys", "report", "scaling", "search", "serve",
    "start", "stream", "tables", "tracking", "vision",
)  # fmt: skip
RUN = [
    pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page.stem in TRAINS_LONG else []) for page in PAGES
]


def make_world(page: str) -> None:
    """The files that a page speaks of."""
    Path("examples").symlink_to(ROOT / "examples")
    rng = np.random.default_rng(0)
    n = 200
    if page in ("README", "stream"):
        a = rng.normal(size=1200)  # more than a window
        pd.DataFrame({"a": a, "b": rng.choice(["x", "y"], 1200), "label": a > 0}).to_csv("events.csv", index=False)
    if page == "stream_production":
        frame = pd.DataFrame({"order": range(1200), "customer": "Ann", "created": "2026-01-01T10:00:00"})
        a = rng.normal(size=1200)
        frame.assign(a=a, label=a > 0).to_csv("events.csv", index=False)
    if page == "recsys":
        frame = pd.DataFrame({"user_id": rng.integers(0, 20, n), "item_id": rng.integers(0, 30, n)})
        frame["age"], frame["item_id_history"] = rng.normal(40, 9, n), [[1, 2]] * n
        for target in ("click", "long_view", "like"):
            frame[target] = rng.integers(0, 2, n)
        for name in ("clicks", "later"):
            frame.to_parquet(f"{name}.parquet")
        frame.drop(columns=["click", "long_view", "like"]).to_parquet("new.parquet")
        taken = frame[["user_id", "item_id"]].drop_duplicates()
        taken.assign(timestamp=range(len(taken))).to_csv("events.csv", index=False)
    if page in ("README", "compare"):
        age, region = rng.normal(40, 9, n), rng.choice(["north", "south"], n)
        frame = pd.DataFrame({"customer_id": range(n), "age": age, "region": region, "churned": age > 42})
        frame.to_csv("customers.csv", index=False)
    if page == "vision":
        for i in range(12):
            for folder in (f"photos/{'cats' if i % 2 else 'dogs'}", "new"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")
    if page == "report":
        from sklearn.datasets import load_iris

        MoEClassifier(num_experts=2, max_epochs=2, log_dir="moeapps-runs").fit(*load_iris(return_X_y=True))
    if page == "mixture":
        from sklearn.datasets import load_breast_cancer

        load_breast_cancer(as_frame=True).data[:50].to_csv("people.csv", index=False)
    if page == "scaling":
        customers = pd.DataFrame({"id": range(40), "age": [31, 40] * 20})
        customers.to_csv("customers.csv", index=False)
        Path("parts").mkdir()
        customers.to_csv("parts/0.csv", index=False)
        MoEClassifier(num_experts=2, max_epochs=2).fit(customers[["age"]], [0, 1] * 20).save("bought.safetensors")
    if page == "serve":
        frame = pd.DataFrame({"age": [31, 40] * 20, "city": ["Ulm", "Kiel"] * 20})
        MoEClassifier(num_experts=2, max_epochs=2, random_state=0).fit(frame, [0, 1] * 20).save("bought.safetensors")
        digits = load_digits()
        generator = SwitchDiTGenerator(dim=16, depth=1, num_heads=2, max_epochs=1, random_state=0)
        generator.fit(digits.images, digits.target).save("digits.safetensors")
        for name, image in zip(("cat.png", "dog.jpg"), digits.images[:2], strict=True):
            Image.fromarray((image * 15).astype("uint8")).resize((64, 64)).save(name)
        images = (digits.images[:40, None] * 15).astype("uint8").repeat(3, axis=1)
        classifier = WideNetClassifier(embed_dim=16, depth=1, image_size=8, max_epochs=1, random_state=0)
        classifier.fit(images, digits.target[:40]).save("photos.safetensors")


def sent_by(curl: list[str]) -> dict:
    """What a command of curl sends: -d TEXT, --data-binary @FILE, or a form of -F NAME=@FILE."""
    forms = [curl[i + 1].partition("=@") for i, word in enumerate(curl) if word == "-F"]
    if forms:
        return {"files": [(name, (file, Path(file).read_bytes())) for name, _, file in forms]}
    if "--data-binary" in curl:
        return {"content": Path(curl[curl.index("--data-binary") + 1].removeprefix("@")).read_bytes()}
    return {"content": curl[curl.index("-d") + 1]}


def run_shell(text: str) -> None:
    server, url = None, ""
    try:
        for line in text.replace("\\\n", " ").strip().splitlines():
            if line.startswith("pip "):
                continue  # installs what the tests have already
            if line.startswith("curl "):
                assert server is not None
                asked = shlex.split(line)
                url = url or re.search(r"http://\S+:\d+", server.stdout.readline())[0]
                headers = dict(asked[i + 1].split(": ") for i, word in enumerate(asked) if word == "-H")
                path = next(found[1] for word in asked if (found := re.fullmatch(r"(?:http://)?[\w.]+:\d+(/.*)", word)))
                answer = httpx.post(url + path, timeout=60, headers=headers, **sent_by(asked))
                assert answer.status_code == 200, answer.text
            elif line.startswith("moeapps serve"):
                command = [*shlex.split(line)[1:], "--port", "0"]
                server = subprocess.Popen(
                    [sys.executable, "-m", "moeapps", *command], stdout=subprocess.PIPE, text=True
                )
            else:
                assert line.startswith("moeapps "), line
                run_command(line)
    finally:
        if server is not None:
            server.terminate()
            server.communicate()


def run_command(line: str) -> None:
    arguments = shlex.split(line)[1:]
    extra = [word for name, words in SMALL.items() if name in line for word in words]
    if any(word in line for word in ELSEWHERE):
        if arguments[0] in SUMMARIES:
            arguments = [*arguments[:3], "--print_config"]  # the rest asks for devices that are not here
            with pytest.raises(SystemExit) as end:
                main(arguments)
            assert not end.value.code
        else:
            make_parser().parse_args(arguments)
        return
    if arguments[0] == "fit":
        extra += SHORT
    elif arguments[0] in SUMMARIES and "--config" in arguments:
        extra += SHORT[2:]
    assert main([*arguments, *extra]) == 0, line


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUN)
def test_every_block_runs(page, empty_folder):
    if found := blocks(page):
        make_world(page.stem)
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, text in found:
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "py":
            continue  # the recipe for Spark, which tests/scale/test_spark.py runs
        elif language == "yaml":
            Path("config.yaml").write_text(text)
        elif language == "sh" and "pip install -e" not in text:
            run_shell(text)
        else:
            assert language == "sh"  # the two commands of the README, which CI runs word for word


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_stand_in_fences(page):
    assert not re.search(r"^    (moeapps|python|pip) ", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, *PROJECT], ids=name_of)
def test_every_link_and_picture_is_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *PROJECT], ids=name_of)
def test_every_link_to_a_heading_finds_it(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert anchor in anchors(page.parent / target if target else page), (target, anchor)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation


def test_every_path_in_the_guides_for_contributors_is_there():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs/release.md"):
        for path in re.findall(r"`((?:moeapps|tests|docs|examples|benchmarks)/[\w./]*)`", page.read_text()):
            assert (ROOT / path).exists(), (page.name, path)


def test_every_promise_of_robustness_has_tests_that_are_there():
    page = (ROOT / "docs/robustness.md").read_text()
    cases = re.split(r"^\*\*(?=[A-Z]\d+ )", page, flags=re.MULTILINE)[1:]
    numbers = [case.split()[0] for case in cases]
    assert len(numbers) == len(set(numbers)) == page.count("*Promise:*") >= 82
    for number, case in zip(numbers, cases, strict=True):
        tests = re.findall(r"^- `([\w/]+\.py)::(\w+)`$", case, re.MULTILINE)
        assert tests, number
        for file, test in tests:
            path = ROOT / "tests" / file
            assert path.exists(), (number, file)
            assert re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), (number, file, test)


def test_every_case_of_the_border_has_tests_that_are_there():
    page = (ROOT / "docs/borders.md").read_text()
    cases = re.split(r"^\*\*(?=[A-Z]\d+\*\* )", page, flags=re.MULTILINE)[1:]
    numbers = [case.partition("**")[0] for case in cases]
    expected = [*(f"T{i}" for i in range(1, 16)), *(f"G{i}" for i in range(1, 7)), *(f"S{i}" for i in range(1, 18))]
    assert numbers == [*expected, *(f"I{i}" for i in range(1, 9)), *(f"W{i}" for i in range(1, 19))]
    for number, case in zip(numbers, cases, strict=True):
        tests = re.findall(r"^- `([\w/]+\.py)(?:::(\w+))?`$", case, re.MULTILINE)
        assert tests, number
        for file, test in tests:
            content = (ROOT / "tests" / file).read_text()
            assert not test or re.search(rf"^def {test}\(", content, re.MULTILINE), (number, file, test)


def test_docstrings_become_markdown(monkeypatch):
    griffe = pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(ROOT / "docs")
    owner = griffe.Class("Layer", parent=griffe.Module("package"))
    text = "See :func:`~package.other.run`, :meth:`fit` and :meth:`it <package.Other.fit>`: :math:`x^2`."
    assert importlib.import_module("reference").as_markdown(text, owner) == (
        'See <autoref optional identifier="package.other.run">`run`</autoref>, '
        '<autoref optional identifier="package.Layer.fit">`fit`</autoref> and '
        '<autoref optional identifier="package.Other.fit">`it`</autoref>: `x^2`.'
    )


@pytest.mark.parametrize(
    "package", ["comparison", "core", "tables", "graph", "stream", "recsys", "vision", "report", "scale"]
)
def test_every_public_name_has_a_place_in_the_reference(package):
    shown: dict[str, list[str]] = {}
    for page in PAGES[1:]:
        for target, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text() + "\n", re.MULTILINE):
            members = re.search(r"members: \[(.*)\]", options)
            shown.setdefault(target, []).extend(re.split(r",\s*", members[1]) if members else ["*"])
    module = importlib.import_module(f"moeapps.{package}")
    homes = {name: getattr(getattr(module, name), "__module__", "") for name in module.__all__}
    missing = [
        name
        for name, home in homes.items()
        if f"moeapps.{package}.{name}" not in shown
        and f"{home}.{name}" not in shown
        and not {"*", name} & set(shown.get(home, []))
    ]
    assert missing == []
