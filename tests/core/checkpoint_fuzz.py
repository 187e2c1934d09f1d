"""Mutations of checkpoints of `moeapps fit` with a right checksum: the pickle inside, its values, and its tensors."""

import functools
import hashlib
import io
import zipfile

import torch

from tests.core.hard_values import HARD, change_entry, places

_MAGIC = b"MOEAPPS\x01"
FOOTER = len(_MAGIC) + 32


def signed(body: bytes) -> bytes:
    """A checkpoint with a right checksum."""
    return body + _MAGIC + hashlib.sha256(body).digest()


@functools.lru_cache(maxsize=1)
def _loaded(content: bytes) -> dict:
    return torch.load(io.BytesIO(content), weights_only=True)


def _written(checkpoint) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return signed(file.getvalue())


def _copy(value):
    """A copy whose dictionaries and lists can be edited; tensors are copied when they are edited."""
    if isinstance(value, dict):
        return type(value)((key, _copy(part)) for key, part in value.items())
    return type(value)(map(_copy, value)) if type(value) in (list, tuple) else value


def _owner(checkpoint, path):
    for key in path:
        checkpoint = checkpoint[key]
    return checkpoint


def _plain_places(checkpoint):
    found = [path for path in places(checkpoint) if path[0] not in ("state_dict", "optimizer_states")]
    return [path for path in found if isinstance(_owner(checkpoint, path[:-1]), dict | list)]


def edit_values(rng, content):
    """One to three edits of what is no tensor: another value, one less, renamed, swapped, scaled."""
    checkpoint = _copy(_loaded(content))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = _plain_places(checkpoint)
        tops = sorted({str(path[0]) for path in found})
        tops += [top for top in tops if top == "hyper_parameters" or top.startswith("moeapps")] * 3
        top = rng.choice(tops)
        *path, last = rng.choice([path for path in found if str(path[0]) == top])
        owner = _owner(checkpoint, path)
        change_entry(rng, owner, last, rng.randrange(6))
    return _written(checkpoint)


def edit_weights(rng, content):
    """Weights are renamed, left out, swapped, of another shape or dtype, NaN, or no tensors."""
    checkpoint = _copy(_loaded(content))
    weights = checkpoint["state_dict"]
    name, other = rng.choice(list(weights)), rng.choice(list(weights))
    old = weights[name]
    action = rng.randrange(9)
    if action == 0:
        weights[name], weights[other] = weights[other], weights[name]
    elif action == 1:
        weights[f"{name}x"] = weights.pop(name)
    elif action == 2:
        del weights[name]
    elif action == 3:
        weights[name] = rng.choice(
            (old[None], old.reshape(-1), torch.zeros(0), old.expand(2, *old.shape), old.mT if old.dim() > 1 else old)
        )
    elif action == 4:
        weights[name] = old.to(rng.choice((torch.float64, torch.int64, torch.bool, torch.complex64, torch.float16)))
    elif action == 5:
        weights[name] = rng.choice(HARD)
    elif action == 6:  # a few bytes that claim to be 2**40 numbers
        weights[name] = torch.zeros(1).expand(2**40)
    elif action == 7:
        weights[name] = old.to_sparse() if old.dim() else old.to("meta")
    else:
        changed = old.clone().double()
        flat = changed.view(-1)
        if len(flat):
            flat[rng.randrange(len(flat))] = rng.choice((float("nan"), float("inf"), 1e300, -1.0, 2.0**31))
        weights[name] = changed.to(old.dtype)
    return _written(checkpoint)


def edit_pickle(rng, content):
    """Some bytes of the pickle inside are others."""
    return _with_entries(rng, content, lambda name: name.endswith("data.pkl"))


def edit_data(rng, content):
    """Some bytes of the weights are others."""
    return _with_entries(rng, content, lambda name: "/data/" in name)


def _with_entries(rng, content, chosen):
    source = zipfile.ZipFile(io.BytesIO(content[:-FOOTER]))
    name = rng.choice([entry for entry in source.namelist() if chosen(entry)])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for entry in source.namelist():
            data = bytearray(source.read(entry))
            if entry == name and data:
                for _ in range(rng.choice((1, 1, 3, 20))):
                    first = rng.randrange(len(data))
                    kind = rng.randrange(4)
                    if kind == 0:
                        data[first] ^= 1 << rng.randrange(8)
                    elif kind == 1:
                        data[first : first + rng.choice((1, 4, 8))] = rng.randbytes(rng.choice((1, 4, 8)))
                    elif kind == 2:
                        del data[first : first + rng.choice((1, 2, 50))]
                    else:
                        other = rng.randrange(len(data) + 1)
                        data[first:first] = data[other : other + rng.choice((1, 8, 100))]
                    data = data or bytearray(b"\0")
            target.writestr(entry, bytes(data))
    return signed(file.getvalue())


def edit_archive(rng, content):
    """The archive lacks an entry, has one twice, or ends early; the checksum is right."""
    source = zipfile.ZipFile(io.BytesIO(content[:-FOOTER]))
    names = source.namelist()
    name, action = rng.choice(names), rng.randrange(4)
    if action == 0:
        body = bytearray(content[:-FOOTER])
        for _ in range(rng.choice((1, 5, 50))):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        return signed(bytes(body))
    if action == 1:
        return signed(content[: rng.randrange(4, len(content) - FOOTER)])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if action == 2 else zipfile.ZIP_STORED) as target:
        for entry in names:
            if action == 2 or entry != name:
                target.writestr(entry, source.read(entry))
    return signed(file.getvalue())


def flip_bits(rng, content):
    """Some bits of the file are flipped: the checksum does not hold."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 10))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_or_extend(rng, content):
    """The file is shorter or longer."""
    if rng.random() < 0.5:
        return content[: rng.randrange(len(content))]
    return content + rng.randbytes(rng.choice((1, 8, 1000)))


KINDS = (edit_values, edit_values, edit_values, edit_weights, edit_weights, edit_pickle, edit_data, edit_archive,
         flip_bits, cut_or_extend)  # fmt: skip
