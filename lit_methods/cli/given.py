"""Everything the user gave, command line and YAML alike, as flat (key, value) pairs.

jsonargparse keeps what it parsed, not who said it. Three questions need that: which class will the module have (before
the parser is built), was this argument given explicitly, and under which key does a rejected value stand. A value that
is wrong where it stands is named as its file has it, one that can be set otherwise by the option that sets it.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Given(NamedTuple):
    """One leaf of what the user gave.

    Args:
        key: dotted, as written; list items of YAML have their index: ``trainer.callbacks[0].init_args.keep``.
        value: text from the command line, a plain value from YAML; ``None`` for a mapping or a list.
        file: the YAML file; ``None`` for the command line.
    """

    key: str
    value: Any
    file: str | None = None

    @property
    def plain_key(self) -> str:
        """The key without indices and ``init_args``, in the form in which ``--model.lr`` gives it.

        Example:
            >>> Given("trainer.callbacks[0].init_args.keep", 1).plain_key
            'trainer.callbacks.keep'
        """
        return re.sub(r"\[\d+\]|\.init_args(?=\.|$)|\.class_path$", "", self.key)

    @property
    def leaf(self) -> str:
        """The last part of the key: the argument's own name."""
        return self.key.rpartition(".")[2]

    @property
    def shown(self) -> str:
        """How messages name it.

        Example:
            >>> Given("model.class_path", "HRnk").shown
            "model='HRnk'"
        """
        return f"{self.key.removesuffix('.class_path')}={self.value!r}"


def collect(argv: list[str]) -> list[Given]:
    """All pairs, in the order in which they take effect: a later one wins.

    Of files that cannot be read or parsed only the name is noted, as ``config``.

    Example:
        >>> collect(["--model", "HRank", "--trainer.callbacks+=X", "--input", "a.png", "b.png", "--print_config"])
        [Given(key='model', value='HRank', file=None), Given(key='trainer.callbacks', value='X', file=None),
         Given(key='input', value='a.png', file=None), Given(key='print_config', value=None, file=None)]
    """
    pairs: list[Given] = []
    for position, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = argv[position + 1] if position + 1 < len(argv) else "--"
        given = value if equals else None if following.startswith("--") else following
        if name == "config" and given is not None:
            pairs += read_file(given)
        else:
            pairs.append(Given(name.removesuffix("+"), given))
    return pairs


def read_file(path: str) -> list[Given]:
    """The pairs of a YAML file; of one that cannot be read, parsed or used only the name, as ``config``."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return [Given("config", path)]
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return flatten(content, path)
    return [Given("config", path, path)]  # read, but not a configuration


def flatten(node: Any, file: str | None = None, prefix: str = "") -> list[Given]:
    """The pairs of a nested configuration.

    Args:
        node: plain values, as YAML has them.
        file: where it stands.
        prefix: its key; empty for a whole configuration.

    Example:
        >>> [f"{pair.key} {pair.value}" for pair in flatten({"data": {"sizes": [1, 2], "parts": [{"a": 3}]}})]
        ['data None', 'data.sizes [1, 2]', 'data.parts None', 'data.parts[0].a 3']
    """
    pairs: list[Given] = []
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict) or _holds_parts(value):
                pairs.append(Given(path, None, file))
            pairs += flatten(value, file, path)
    elif _holds_parts(node):
        for index, item in enumerate(node):
            pairs += flatten(item, file, f"{prefix}[{index}]")
    else:  # a plain list is a value as a whole
        pairs.append(Given(prefix, node, file))
    return pairs


def _holds_parts(node: Any) -> bool:
    return isinstance(node, list) and any(isinstance(item, dict) for item in node)


def as_option(pair: Given, given: list[Given]) -> Given:
    """A pair of a file under the key that sets it on the command line.

    Args:
        pair: one of ``given``.
        given: everything the user gave.

    Returns:
        The pair as it is where no option sets it: of a list, options reach the last item alone.

    Example:
        >>> of_file = flatten({"trainer": {"callbacks": [{"init_args": {"keep": 1}}, {"init_args": {"keep": 2}}]}}, "a")
        >>> [as_option(pair, of_file).key for pair in of_file if pair.value]
        ['trainer.callbacks[0].init_args.keep', 'trainer.callbacks.keep']
    """
    if pair.file is None:
        return pair
    if item := re.match(r"(.*?)\[\d+\]", pair.key):
        later = [other.key for other in given[given.index(pair) :] if not other.key.startswith(item[0])]
        if any(key == item[1] or key.startswith(f"{item[1]}[") for key in later):
            return pair
    return pair._replace(key=pair.plain_key)


def last(pairs: list[Given], *keys: str) -> Any:
    """The value that wins among these keys, or ``None``."""
    return next((p.value for p in reversed(pairs) if p.key in keys and p.value is not None), None)
