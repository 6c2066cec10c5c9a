"""Everything the user gave, command line and YAML alike, as flat (key, value) pairs.

jsonargparse keeps what it parsed, not who said it. Three questions need that: which class will the module have (before
the parser is built), was this argument given explicitly, and under which key does a rejected value stand.
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
            pairs += _read(given)
        else:
            pairs.append(Given(name.removesuffix("+"), given))
    return pairs


def _read(path: str) -> list[Given]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return [Given("config", path)]
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return _flatten("", content, path)
    return [Given("config", path, path)]  # read, but not a configuration


def _flatten(prefix: str, node: Any, file: str) -> list[Given]:
    pairs: list[Given] = []
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict | list):
                pairs.append(Given(path, None, file))
            pairs += _flatten(path, value, file)
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for index, item in enumerate(node):
            pairs += _flatten(f"{prefix}[{index}]", item, file)
    elif isinstance(node, list):  # a plain list is a value as a whole
        pairs[:] = [Given(prefix, node, file)]
    else:
        pairs.append(Given(prefix, node, file))
    return pairs


def last(pairs: list[Given], *keys: str) -> Any:
    """The value that wins among these keys, or ``None``."""
    return next((p.value for p in reversed(pairs) if p.key in keys and p.value is not None), None)
