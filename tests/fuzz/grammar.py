"""Experiment files by a grammar: sections, entries, sweeps, rows and figures, right and wrong ones.

Most of what hypothesis draws is nearly right, since what is quite wrong is refused at the first
key. Nothing is drawn that names data sets or files outside: a plan is all that is asked for.
"""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

ODD_NAMES = ["", ".", "..", "../x", "/tmp/x", "a" * 300, "{", "{x}", "{w.a}", "*", "ü", "null"]
# Values of no use anywhere, by kind: they stand in for right ones.
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**60, 1e308, float("nan"), float("inf"), -0.0]),
    st.sampled_from(ODD_NAMES),
    st.text(max_size=8),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.just([[[[]]]]),
)
LOSSES = ["ce", "focal", "balanced-softmax", "ldam", "kps", "logit-adjustment", "none-such"]
NAMES = st.sampled_from(
    [*ODD_NAMES, "A", "B", "A", "B", "CE", "FFN", "w-{w1}", "x{w}", "a.b", "-a", "A b", "Ä"]
)


def either(right: st.SearchStrategy[Any], odds: int = 30) -> st.SearchStrategy[Any]:
    """Return what is right, and once in `odds` times something odd."""
    return st.integers(0, odds - 1).flatmap(lambda n: ODD if n == odds // 2 else right)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a mapping with some of the keys."""
    return st.fixed_dictionaries({}, optional={key: either(value) for key, value in keys.items()})


def loops() -> dict[str, st.SearchStrategy[Any]]:
    values = st.lists(st.sampled_from([0, 0.5, 1, "a", None]), max_size=3)
    axes = st.dictionaries(st.sampled_from(["w", "w1", "epochs", "a.b"]), values, max_size=3)
    return {"sweep": axes, "for": axes}


DATASETS = st.dictionaries(
    st.sampled_from([*["digits-lt"] * 9, "D{w}", "mine", "../x"]),
    st.none()
    | some(
        use=st.just("digits-lt"),
        imbalance=st.sampled_from([1, 10, 100.0]),
        max_count=st.integers(0, 200),
        profile=st.sampled_from(["exp", "step", "pareto"]),
        val_fraction=st.sampled_from([0, 0.2, 1]),
        groups=st.sampled_from(["ranks", "thresholds"]),
        **loops(),
    ),
    min_size=1,
    max_size=2,
)
BACKBONES = st.dictionaries(
    st.sampled_from(["ce", "kps", "ce-{w}", "cws"]),
    some(
        use=st.sampled_from(["resnet8-ce", "resnet8-kps", "resnet8-cws", "ce"]),
        epochs=st.integers(-1, 30),
        loss=some(name=st.sampled_from(LOSSES), gamma=st.floats(), scale=st.integers()),
        rule=some(name=st.sampled_from(["none", "drw", "rs", "dcb"]), start=st.integers()),
        head=st.sampled_from(["linear", "cosine"]),
        features=some(views=st.integers(-1, 4)),
        schedule=some(kind=st.sampled_from(["cosine", "step"]), warmup=st.integers()),
        **loops(),
    ),
    max_size=3,
)
ROLES = some(features=st.sampled_from(["ce", "kps"]), ce=st.just("ce"), kps=st.just("kps"))
METHODS = st.dictionaries(
    NAMES,
    some(
        use=st.sampled_from(["backbone-head", "ffn", "dlsa-small", "crt", "ncm", "A"]),
        kind=st.sampled_from(["ncm", "classifier", "ffn", "stacked"]),
        backbones=st.one_of(
            st.just({"features": "ce"}), st.just({"ce": "ce", "kps": "kps"}), ROLES
        ),
        w1=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=3),
        epochs=st.integers(-1, 20),
        blocks=st.integers(-1, 3),
        views=st.sampled_from(["plain", "cached"]),
        **loops(),
    ),
    min_size=1,
    max_size=3,
)
ROW = some(method=st.sampled_from(["*", "CE", "FFN", "A", "none"]), label=st.text(max_size=5))
TABLES = st.dictionaries(
    st.sampled_from([*["main", "table.1"] * 6, *ODD_NAMES]),
    some(rows=st.lists(ROW, min_size=1, max_size=2), metrics=st.just(["accuracy"])),
    max_size=2,
)
KINDS = [
    "class_distribution",
    "per_class_accuracy",
    "sweep_curve",
    "tsne",
    "confusion",
    "separation",
]
FIGURE = some(
    kind=st.sampled_from(KINDS),
    dataset=st.sampled_from(["digits-lt", "mine", "*"]),
    methods=st.lists(st.sampled_from(["*", "CE", "A"]), max_size=2),
    method=st.sampled_from(["CE", "A", "*"]),
    backbones=st.just(["ce"]),
)
RUN = some(
    datasets=st.just(["*"]),
    methods=st.lists(st.sampled_from(["*", "CE", "no*"]), max_size=2),
    seeds=st.lists(st.integers(-1, 3), max_size=3),
)


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an experiment file's contents."""
    values: dict[str, Any] = {
        "experiment": draw(either(st.sampled_from(["x", "a.b", "x-1"]))),
        "seeds": draw(either(st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True))),
        "datasets": draw(either(DATASETS)),
        "backbones": {"ce": {"use": "resnet8-ce"}, "kps": {"use": "resnet8-kps"}},
        "methods": draw(either(METHODS)),
    }
    if draw(st.integers(0, 3)):
        values["methods"] = {"CE": {"use": "backbone-head", "backbones": {"features": "ce"}}}
    else:
        values["backbones"] |= draw(BACKBONES)
    more = some(
        tables=TABLES,
        figures=st.lists(FIGURE, max_size=2),
        runs=st.lists(RUN, min_size=1, max_size=2),
        title=st.text(max_size=10),
        device=st.sampled_from(["cpu", "auto"]),
        data=some(root=st.sampled_from([None, "nowhere"])),
        missing=st.sampled_from(["error", "skip"]),
        include=st.lists(st.sampled_from(["x", "demo", "../x"]), max_size=1),
    )
    values |= draw(more)
    for key in draw(st.lists(st.sampled_from(sorted(values)), max_size=1)):
        if not draw(st.integers(0, 4)):
            del values[key]
    return values


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Draw an experiment file's text: of YAML's own tricks, too."""
    text = yaml.safe_dump(draw(experiments()), sort_keys=False, allow_unicode=draw(st.booleans()))
    trick = draw(st.integers(0, 12))
    if trick == 0:
        name = draw(st.sampled_from(["experiment", "seeds", "methods", "zzz"]))
        text += f"{name}: 1\n"
    elif trick == 1:
        text += "common: &a {x: 1}\ntitle: *a\n"
    elif trick == 2:
        text = text.replace("experiment:", "? [a]\n: 1\nexperiment:", 1)
    elif trick == 3:
        text = text.replace(
            ": ", draw(st.sampled_from([":", ":\t", ": &a ", ": !!str ", ": !x "])), 1
        )
    elif trick == 4:
        text += f"title: {'[' * 60}{']' * 60}\n"
    elif trick == 5:
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.sampled_from("\"'{}[]&*!|>%@`\0\u2028")) + text[place + 1 :]
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in nested mappings and lists."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        found += places(inner, (*path, key))
    return found
