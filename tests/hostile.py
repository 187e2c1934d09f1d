"""Files that are made to take a program down."""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
)
BAD_YAML = [
    (BOMB, "more than 50,000 values, aliases included"),
    ("a: &a [*a]", "the alias *a is inside of what it means"),
    ("a: " + "[" * 50_000, "not a YAML file"),
    ("".join(" " * n + "a:\n" for n in range(300)), "nested deeper than 100 levels"),
    ("a: !!python/object/apply:os.system ['touch pwned']", "the tag !!python/object/apply:os.system is not allowed"),
    ("a: 1\n" * 300_000, "more than 1,000,000"),
    ("a: \0", "not a YAML file"),
    (b"\x1f\x8b\x08\x00\xff\xfe", "utf-8"),
]
