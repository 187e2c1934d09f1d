"""Saved models: round trips, damage, versions, and no code from files (P1-P7)."""

import ast
import json
import pickle
import random
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moeapps
from moeapps import registry
from moeapps.core import saved_file
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.labels import labels_from_json, labels_to_json
from moeapps.core.saving import SavableModule, load
from moeapps.graph import Mowst

EDGES = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])


class Aliased(SavableModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.arguments, self.width = {"width": width}, width


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    Mowst(4, 3, hidden_channels=8).save(path)
    return path


def rewrite(path: Path, change) -> None:
    """Change the JSON document inside a saved file, with a correct checksum, as an attacker would."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    text = header["__metadata__"]["moeapps"]
    changed = change(text)
    header["__metadata__"] = {"moeapps": changed, "sha256": "0" * 64}
    new = json.dumps(header, separators=(",", ":")).encode()
    body = bytearray(struct.pack("<Q", len(new)) + new + content[8 + size :])
    start, end = saved_file.digest_span(body)
    body[start:end] = saved_file.hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(body)


def edit(path: Path, **changes) -> None:
    rewrite(path, lambda text: json.dumps({**json.loads(text), **changes}))


def test_a_model_comes_back_the_same(tmp_path):
    model = Mowst(4, 3, hidden_channels=8, norm=None, confidence="given").eval()
    model.save(tmp_path / "m.safetensors")
    twin = load(tmp_path / "m.safetensors")
    x = torch.randn(4, 4)
    assert torch.equal(twin(x, EDGES).log_probs, model(x, EDGES).log_probs)
    assert twin.arguments == model.arguments
    assert not twin.training
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_module_of_the_users_own_is_asked_for(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, edge_index):
            return self.linear(x)

    model = Mowst(4, 3, strong=Own()).eval()
    path = tmp_path / "m.safetensors"
    model.save(path)
    with pytest.raises(FileFormatError, match=r"strong=Own\(\.\.\.\)"):
        load(path)
    x = torch.randn(4, 4)
    assert torch.equal(load(path, strong=Own())(x, EDGES).log_probs, model(x, EDGES).log_probs)
    with pytest.raises(ConfigError, match="needs no module 'weak'"):
        load(path, strong=Own(), weak=Own())


def test_saving_an_unregistered_class_says_how_to_register_it(tmp_path):
    class Unknown(SavableModule):
        arguments = {}

    with pytest.raises(ConfigError, match=r"registry\.register"):
        Unknown().save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_class_registered_under_an_alias_can_be_saved(tmp_path, monkeypatch):
    path = f"{__name__}.Aliased"
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    registry.register("model", path, "for this test", alias="short")
    Aliased(3).save(tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").width == 3


def test_files_with_code_are_refused(tmp_path, saved):
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "pwned",)

    for name, content in (("a.pkl", pickle.dumps(Planted())), ("b.safetensors", pickle.dumps(Planted()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=f"{name}.*not a model saved by moeapps"):
            load(tmp_path / name)
    torch.save({"x": Planted()}, tmp_path / "c.pt")
    with pytest.raises(FileFormatError, match="c.pt"):
        load(tmp_path / "c.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_file_cut_short_is_refused(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=rf"model.safetensors \({length} bytes\) is damaged or incomplete"):
            load(saved)


def test_one_flipped_bit_is_always_noticed(saved):
    whole = saved.read_bytes()
    generator = random.Random(0)
    places = [generator.randrange(len(whole)) for _ in range(50)] + list(range(0, 400, 7))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="damaged"):
            load(saved)


def test_a_full_disk_leaves_the_old_model(saved):
    before = saved.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors.*bytes free"):
            Mowst(400, 3, hidden_channels=300).save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_what_could_not_be_read_again_is_not_written(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(saved_file, "_MAX_HEADER", 100)
    with pytest.raises(ConfigError, match="bytes of names and texts besides its arrays, at most 100 are possible"):
        Mowst(4, 3, hidden_channels=8).save(saved)
    assert saved.read_bytes() == before


def test_a_newer_format_is_refused_with_both_numbers(saved):
    edit(saved, format=7, versions={"moeapps": "9.0.0"})
    with pytest.raises(
        FileFormatError, match=rf"format 7 \(moeapps 9\.0\.0\).*moeapps {moeapps.__version__}.*format 1"
    ):
        load(saved)


def test_another_scikit_learn_is_a_warning(saved):
    edit(saved, versions={"moeapps": moeapps.__version__, "scikit-learn": "0.1"})
    with pytest.warns(UserWarning, match="saved with scikit-learn 0.1"):
        load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "moeapps.graph.Unknown",
        "../../etc/passwd",
        "",
        "moeapps.core.TopKRouter",
        "torch.nn.Linear",
    ],
)
def test_a_class_outside_the_registry_is_not_imported(saved, name):
    edit(saved, **{"class": name})
    with pytest.raises(FileFormatError, match="not a registered class|cannot be loaded"):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"format": 1', '"format": 1, "format": 1'),
        lambda text: text.replace('"format": 1', '"format": NaN'),
        lambda text: "[" * 10_000 + "]" * 10_000,
        lambda text: "not json",
        lambda text: "[]",
        lambda text: text.replace('"arguments": {', '"arguments": {"unheard_of": 1, '),
        lambda text: text.replace('"out_channels": 3', '"out_channels": 1'),
        lambda text: text.replace('"state"', '"stat"'),
    ],
    ids=["duplicate", "nan", "nesting", "text", "list", "unknown argument", "bad argument", "missing"],
)
def test_malformed_json_is_refused(saved, change):
    rewrite(saved, change)
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        load(saved)


def test_weights_of_another_shape_are_named(saved):
    edit(saved, arguments={**Mowst(4, 3, hidden_channels=9).arguments})
    with pytest.raises(
        FileFormatError, match=r"weak\.lins\.0\.weight is \(8, 4\) in the file and \(9, 4\) in the model"
    ):
        load(saved)


def test_a_missing_file_a_folder_and_a_url_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope does not exist"):
        load(tmp_path / "nope")
    with pytest.raises(FileFormatError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileFormatError, match="is a URL"):
        load("https://example.org/model")


def test_a_run_in_place_of_a_model_is_refused_with_its_checkpoint(tmp_path):
    (tmp_path / "version_0/checkpoints").mkdir(parents=True)
    (tmp_path / "version_0/checkpoints/last.ckpt").touch()
    with pytest.raises(FileFormatError, match=r"the checkpoint of this run is \S*version_0/checkpoints/last"):
        load(tmp_path / "version_0")


@pytest.mark.parametrize(
    "labels", [["a", "bc"], [True, False], [3, 7], [1.0, 2.0], np.array(["a", 3], dtype=object)], ids=str
)
def test_labels_keep_their_type(labels):
    labels = np.asarray(labels)
    back = labels_from_json(json.loads(json.dumps(labels_to_json(labels))))
    assert back.dtype == labels.dtype
    assert back.tolist() == labels.tolist()


def test_nothing_in_the_package_can_run_code_from_a_file():
    forbidden = {
        "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "eval", "exec", "joblib.load",
        "marshal.load", "marshal.loads", "os.system", "pandas.read_pickle", "pd.read_pickle", "pickle.Unpickler",
        "pickle.load", "pickle.loads", "shelve.open", "torch.jit.load", "yaml.full_load", "yaml.load",
        "yaml.unsafe_load",
    }  # fmt: skip
    for path in Path(moeapps.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):  # nor under a name of its own
                assert not {f"{node.module}.{name.name}" for name in node.names} & forbidden, f"{path}:{node.lineno}"
            if not isinstance(node, ast.Call):
                continue
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in forbidden, f"{path}:{node.lineno}"
            assert keywords.get("weights_only") != "False", f"{path}:{node.lineno}"
            assert keywords.get("allow_pickle") != "True", f"{path}:{node.lineno}"
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_every_registered_name_can_be_imported():
    for entry in registry.entries():
        assert registry.resolve(entry.path).__name__ == entry.path.rpartition(".")[2]
        assert len(entry.summary) < 90
