"""Values that hurt, and where values are inside others; for the mutations of saved files."""

HARD = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-320, 1e308, 10**6, 10**9, 2**31, 2**63, 10**18, 10**30, 10**300, "",
    "x", "a" * 1000, "<U268435456", "object", "hf-hub:timm/none", "/dev/zero", "../../x", "\ud800", [], [[]], {}, [0],
    [None], [1e9] * 3, {"": None}, [[["t", []]]],
)  # fmt: skip


def places(value, path=()):
    """Paths of everything inside dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from places(part, (*path, key))


def change_entry(rng, owner, place, action):
    """Change one entry of a dict or list by one of six actions: 0 to 2 a hard value, 3 delete, 4 another number,
    else (also where there is no number) repeat an entry of a list, or swap two of a dict."""
    if action <= 2:
        owner[place] = rng.choice(HARD)
    elif action == 3:
        del owner[place]
    elif action == 4 and isinstance(owner[place], int | float):
        owner[place] = rng.choice((owner[place] + 1, owner[place] - 1, owner[place] * 1000, -owner[place]))
    elif isinstance(owner, list):
        owner.insert(place, owner[rng.randrange(len(owner))])
    else:
        other = rng.choice(list(owner))
        owner[place], owner[other] = owner[other], owner[place]
