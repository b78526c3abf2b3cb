"""Configs that nobody should write: mutations of the shipped ones and of small ones, the same on every call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "fds_dist" / "configs").rglob("*.yaml"))

SMALL: dict[str, dict[str, Any]] = {
    "digits": {
        "task": {"name": "digits", "batch_size": 64, "val_fraction": 0.2},
        "model": {"name": "mlp", "hidden": [4]},
        "inner": {"steps": 3},
    },
    "synthetic": {
        "task": {"name": "synthetic", "dimension": 3, "samples": 6, "steps_per_epoch": 2, "condition": 4.0, "seed": 1},
        "inner": {"epochs": 2},
    },
    "text": {
        "task": {"name": "text", "path": str(ROOT / "README.md"), "context": 8, "batch_size": 4},
        "model": {"name": "transformer", "layers": 1, "width": 4, "heads": 1},
        "inner": {"steps": 2},
    },
    "wide": {"task": {"name": "digits", "batch_size": 8}, "model": {"name": "wrn-10-1"}, "inner": {"steps": 2}},
}
"""Configs whose `check` takes a second."""

LEARNED = {"hyperparameters": {"lr": {"init": 0.1, "buckets": 2, "step": 0.1, "min": 0.0, "max": 1.0}}}

KEYS = (
    *("seed", "inner.epochs", "inner.steps", "inner.clip_gradient", "inner.clip_norm", "inner.ema", "inner.accumulate"),
    *("outer.steps", "outer.step_decay", "outer.momentum", "outer.beta1", "outer.beta2", "outer.average"),
    *("outer.judge_seeds", "outer.tolerance", "outer.timeout", "outer.target", "outer.nonfinite_patience"),
    *("tangents.clip_hvp", "tangents.prune.ratio", "tangents.chunk_size", "random_directions.count"),
    *("reverse.memory_share", "greedy.discount", "mesh.tangent", "mesh.data", "mesh.replica", "consistency.every"),
    *(
        "checkpoint.every_seconds",
        "checkpoint.keep",
        "checkpoint.grace",
        "distributed.timeout",
        "compare.budget",
        "compare.seeds",
    ),
    *("compare.judge_seeds", "compare.retrain_seeds", "hyperparameters.lr.init", "hyperparameters.lr.buckets"),
    *("hyperparameters.lr.size", "hyperparameters.lr.step", "hyperparameters.lr.min", "hyperparameters.lr.max"),
    *("hyperparameters.momentum", "hyperparameters.weight_decay.init", "tracking.wandb.init_timeout"),
)
"""Keys of every config that hold a number."""

OPTIONS = {
    "digits": ("task.batch_size", "task.val_fraction", "model.hidden"),
    "synthetic": ("task.dimension", "task.samples", "task.steps_per_epoch", "task.condition", "task.seed"),
    "text": ("task.context", "task.batch_size", "model.layers", "model.width", "model.heads", "model.dropout"),
    "wide": ("task.batch_size", "task.val_fraction", "model.dropout"),
}
"""Keys of a task or a network that hold a number or several."""

WRONG = (
    *("0", "-1", "-1e-300", "1e300", "1e39", ".nan", ".inf", "-.inf", "1000000000", "9223372036854775807"),
    *("9223372036854775808", "1" + "0" * 400, "1" + "0" * 5000, "'3'", "text", "''", "null", "true", "[]", "[1, 2]"),
    *("[1e300]", "[[1]]", "{}", "{a: 1}", "{init: 1}", "[1000000000]", "[1000000000, 1000000000]", "0x10", "1_000"),
    *("2020-01-01", "&a 1", "*a", "!!python/object:os.system {}", "!!int x", "${env:FDS_NOT_SET}", "'\\0'", "1e-300"),
)
"""Values that a number's key cannot have, or can just so."""

OTHERS = (
    "model.name=wrn-100000-1",
    "model.name=wrn-10-100000",
    "model.name=wrn-1000000000000000000000-1",
    "model.name=wrn-10-0",
    "model={name: mlp, hidden: [1000000000]}",
    "model={name: mlp, hidden: [100000, 100000]}",
    f"model={{name: mlp, hidden: {[2] * 5000}}}",
    "model={name: resnet18, width_per_group: 1000000}",
    "model={name: resnet18, groups: 1000000007}",
    "model={name: vit_b_16, num_layers: 1000000000}",
    "model={name: vit_b_16, hidden_dim: 1200000}",
    "model={name: densenet121, growth_rate: 1000000}",
    "model.name=nothing",
    "model.name=a:b",
    "model.name=os:",
    "model.name=:",
    "task.name=nothing",
    "task.name=os.path:join",
    "task.name=sys:exit",
    "task.name=${env:FDS_NOT_SET}",
    "task={name: text, path: /dev/zero}",
    "task={name: text, path: /nowhere}",
    "task={name: text, path: '$FDS_NOT_SET'}",
    "task={name: imagefolder, root: /nowhere, size: 1000000000}",
    "task={name: cifar10, root: /nowhere, batch_size: 1000000000}",
    "inner.optimizer=nothing",
    "inner.optimizer={name: sgd, nesterov: 3}",
    "inner.groups={a: '('}",
    "inner.groups={a: '.*', a: '.*'}",
    "inner.groups={'': '.*'}",
    "inner.precision=bf17",
    "hyperparameters={}",
    "hyperparameters=3",
    "hyperparameters.nothing=3",
    "hyperparameters.lr.init={cosine: {peak: 1e300}}",
    "hyperparameters.lr.init={file: /nowhere}",
    "hyperparameters.lr.init={file: /dev/null}",
    "hyperparameters.lr.per_group={a: {init: .nan}}",
    "output_dir=/dev/null/x",
    "output_dir=~nobody-of-this-name/x",
    "name=../x",
    f"name={'n' * 5000}",
    "device=tpu",
    "dtype=float16",
    "=",
    "==",
    "a",
    "a.b.c=1",
    f"{'a.' * 5000}b=1",
    f"task.x={'[' * 5000}",
    f"task.x={'{a: ' * 300}1{'}' * 300}",
    "task.x=[",
    "task.x=\t1",
    "task.x=\x07",
    "tracking.wandb.mode=on",
    "tracking.wandb.tags=[1]",
    "compare.methods=[fds, fds]",
    "compare.ranges={lr: [1, 0]}",
    "compare.ranges={lr: [1e300, 1e301]}",
)
"""Overrides that no number's key takes."""


class Fuzzed(NamedTuple):
    """One config: the content of its file, and overrides."""

    name: str
    content: bytes
    overrides: tuple[str, ...] = ()
    small: bool = True
    """Whether `check` may build what it describes; else only the config is read."""


def fuzzed(count: int, seed: int = 15) -> list[Fuzzed]:
    """`count` configs: all files, all special overrides, and random draws among the rest."""
    draws = random.Random(seed)
    files = list(_files())
    special = [Fuzzed(text[:60], _text("digits"), (text,)) for text in OTHERS]
    numbers = [
        Fuzzed(f"{base}: {key}={value[:40]}", _text(base), (f"{key}={value}",))
        for base in SMALL
        for key in (*(KEYS if base == "digits" else ()), *OPTIONS[base])
        for value in WRONG
    ]
    of_shipped = [
        Fuzzed(f"{path.stem}: {key}={value[:40]}", path.read_bytes(), (f"{key}={value}",), small=False)
        for path in SHIPPED
        for key in KEYS
        for value in WRONG
    ]
    rest = count - len(files) - len(special)
    drawn = draws.sample(numbers, min(len(numbers), rest * 3 // 4))
    return [*files, *special, *drawn, *draws.sample(of_shipped, rest - len(drawn))]


def _text(base: str) -> bytes:
    return yaml.safe_dump({**SMALL[base], **LEARNED}).encode()


def _files() -> Iterator[Fuzzed]:
    """Files that are hardly YAML, or that ask for too much while they are read."""
    good = _text("digits")
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 30)
    )
    for name, content in {
        "nested lists": b"task: " + b"[" * 100_000,
        "nested mappings": b"task: " + b"{a: " * 100_000,
        "closed nested lists": b"task: " + b"[" * 100_000 + b"]" * 100_000,
        "nested blocks": b"".join(b" " * depth + b"a:\n" for depth in range(1_300)),
        "nested sequences": b"- " * 100_000 + b"x",
        "billion laughs": laughs.encode(),
        "a billion laughs among options": good + b"x: " + laughs.replace("\n", "\n  ").encode(),
        "an alias of itself": b"task: &a [*a]",
        "a mapping of itself": b"task: &a {name: *a}",
        "merged laughs": b"a: &a {x: 1}\n" + b"".join(b"<<: [*a, *a]\n" for _ in range(100)),
        "100 MB": good + b"# " + b"x" * 100_000_000,
        "100 MB on a line": b"a: " + b"x" * 100_000_000,
        "many keys": b"".join(b"key%d: 1\n" % number for number in range(100_000)),
        "many options": b"task: {name: digits, " + b"".join(b"k%d: 1, " % number for number in range(20_000)) + b"}",
        "many numbers": good + b"x: [" + b"1, " * 200_000 + b"]",
        "zeros": b"\0" * 1000,
        "random bytes": random.Random(1).randbytes(5000),
        "an image": b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(5000),
        "latin-1": "task: {name: größe}".encode("latin-1"),
        "utf-16": good.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "only a byte order mark": b"\xef\xbb\xbf",
        "carriage returns": good.replace(b"\n", b"\r\n"),
        "tabs": good.replace(b"  ", b"\t"),
        "empty": b"",
        "blank": b"\n\n  \n",
        "a comment": b"# nothing\n",
        "a number": b"3",
        "a text": b"hello",
        "a list": b"[1, 2]",
        "null": b"null",
        "two documents": good + b"\n---\n" + good,
        "a duplicate key": good + b"task: {name: digits}\n",
        "duplicate options": b"task: {name: digits, name: digits, name: digits}",
        "a tag": b"task: !!python/object/apply:os.system ['true']",
        "an unknown tag": b"task: !thing {name: digits}",
        "a set": b"task: !!set {a, b}",
        "a binary": b"task: !!binary AAAA",
        "a key of a list": b"? [a, b]\n: 1\n",
        "a key of a number": b"1: 2\ntask: {3: 4, name: digits}\n",
        "a key of null": b"~: 2\n",
        "an open quote": b"task: {name: 'digits",
        "an open brace": b"task: {name: digits",
        "percent": b"%YAML 9.9\n---\n" + good,
        "anchors": good.replace(b"task:", b"task: &t", 1),
        "a missing alias": b"task: *nothing",
        "a million digits": good + b"seed: " + b"9" * 500_000,
        "a long key": good + b"k" * 2_000 + b": 1",
        "a control character": good + b"x: \x01\n",
        "a surrogate": good + b'x: "\\ud800"\n',
        "deep quotes": good + b"x: " + b"'" * 100_001,
    }.items():
        yield Fuzzed(name, content)
