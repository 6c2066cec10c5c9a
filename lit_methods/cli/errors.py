"""One line for a mistake in what the user gave: key path, value, nearest valid name.

jsonargparse says what is wrong in the middle of a tree of everything it tried. :func:`explain` walks down that text:
every line is held against :data:`RULES`; some only lead deeper (a key, a class), the first that knows the fault ends
the walk. The texts are those of jsonargparse 4.53; one that no rule knows is passed on whole, on one line.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lit_methods.cli.given import Given
from lit_methods.cli.safe import refusal

PACKAGES = ("lit_methods", "datamodules", "callbacks")  # their lazily imported names count as short class names
_PRINT = ("comments", "skip_default", "skip_null")
_BASES = {"model": LightningModule, "data": LightningDataModule, "trainer.callbacks": Callback}


def signature(cls: type) -> dict[str, Any]:
    """Argument names of a class with their defaults, those behind ``**kwargs`` included.

    Example:
        >>> class Base:
        ...     def __init__(self, lr: float = 0.1): ...
        >>> class Method(Base):
        ...     def __init__(self, rate: float = 0.5, **kwargs): super().__init__(**kwargs)
        >>> signature(Base)
        {'lr': 0.1}
    """
    parser = ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(cls, fail_untyped=False)
    defaults = parser.get_defaults()
    return {name: defaults.get(name) for name in names}


def find_class(path: str) -> type | None:
    """The class of a dotted path, or of a short name of this project; ``None`` where there is none."""
    home, _, name = path.rpartition(".")
    for package in (home,) if home else PACKAGES:
        try:
            found = getattr(import_module(package), name, None)
        except ImportError:
            continue
        if isinstance(found, type):
            return found
    return None


def root(error: BaseException) -> BaseException:
    """The innermost cause of an exception: jsonargparse wraps what constructors raise in a ``ValueError``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def blame(error: BaseException, given: Iterable[Given]) -> str:
    """A constructor's own complaint, with the key path of the argument it speaks of, where it names one.

    Indented lines that follow the complaint are a table (weights that do not fit) and stay as they are.

    Example:
        >>> blame(ValueError("lr must be positive, got -1.0"), [Given("model.lr", "-1"), Given("data.root", "x")])
        "model.lr='-1': lr must be positive, got -1.0"
        >>> blame(ValueError("root='x' does not exist"), [Given("data.root", "x")])
        "data.root='x' does not exist"
    """
    complaint, indent, table = str(root(error)).partition("\n  ")
    return _with_key(complaint, error, given) + indent + table


def _with_key(complaint: str, error: BaseException, given: Iterable[Given]) -> str:
    text = " ".join(complaint.split()) or type(root(error)).__name__
    pairs = [pair for pair in given if pair.value is not None]
    if any(text.startswith(f"{pair.key}=") for pair in pairs):
        return text
    named = [pair for pair in pairs if _speaks_of(text, pair)] or [
        pair for pair in pairs if isinstance(pair.value, str) and f"{pair.value!r}" in text
    ]
    if not named:
        maker = _maker(root(error))
        return f"{maker}: {text}" if maker else text
    # rather the argument that the text begins with than the last one it mentions
    named.sort(key=lambda pair: text.startswith(_leaf(pair.key)))
    shown = _show(named[-1])
    parent, _, _ = named[-1].key.rpartition(".")
    if parent and text.startswith(shown.removeprefix(f"{parent}.")):  # root='x' ... becomes data.root='x' ...
        return f"{parent}.{text}"
    return f"{shown}: {text}"


def _maker(error: BaseException) -> str | None:
    """The method, datamodule or callback whose constructor an exception came out of."""
    maker, trace = None, error.__traceback__
    while trace is not None:
        built = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "__init__" and isinstance(built, tuple(_BASES.values())):
            maker = type(built).__name__
        trace = trace.tb_next
    return maker


def _speaks_of(text: str, pair: Given) -> bool:
    leaf = re.escape(_leaf(pair.key))
    if not re.search(rf"\b{leaf}\b", text):
        return False  # a word such as "name" alone proves nothing: its value, quotes or the first place do
    return str(pair.value) in text or re.search(rf"^{leaf}\b|\b{leaf}=|[`'\"]{leaf}[`'\"]", text) is not None


def mismatch(error: BaseException, ckpt_path: str | None) -> str | None:
    """What to say when weights do not fit the network; ``None`` for any other error."""
    text = str(error)
    if not text.startswith("Error(s) in loading state_dict"):
        return None
    parts = []
    for title, pattern in (
        ("missing", r"Missing key\(s\)[^:]*: (.*?)\. *$"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*?)\. *$"),
    ):
        if match := re.search(pattern, text, re.MULTILINE):
            parts.append(_few(title, re.findall(r'"([^"]+)"', match[1])))
    if sizes := re.findall(r"size mismatch for ([^:\s]+)", text):
        parts.append(_few("other shape", sizes))
    where = f"ckpt_path={ckpt_path!r} holds" if ckpt_path else "the weights are of"
    return f"{where} another network than the recipe's: {'; '.join(parts)}"


def _few(title: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{title} {', '.join(names[:3])}{more}"


@dataclass
class Walk:
    """Where the walk through an error text stands.

    Args:
        given: everything the user gave.
        options: every dotted option of the parser.
        keys: the key path so far.
        owner: class path of the innermost class that was tried.
        wanted: types that were expected.
    """

    given: list[Given]
    options: list[str]
    keys: list[str] = field(default_factory=list)
    owner: str = ""
    wanted: list[str] = field(default_factory=list)

    def found(self, key: str, value: str | None = None) -> str:
        """``key=value`` as the user wrote it: of the pairs with this key the last, rather one with this value."""
        pairs = [g for g in self.given if g.plain_key == Given(key, None).plain_key and g.value is not None]
        same = [g for g in pairs if value is not None and str(g.value) == value]
        if same or pairs:
            return _show((same or pairs)[-1])
        return key if value is None else f"{key}={value!r}"

    def path(self, leaf: str | None = None) -> str:
        """The dotted key, with ``leaf`` at its end."""
        return ".".join([*self.keys, *([leaf] if leaf else [])])


def explain(message: str, given: list[Given], options: list[str]) -> str:
    """The one line for an error text of jsonargparse.

    Args:
        message: the text.
        given: everything the user gave.
        options: every dotted option of the parser.

    Example:
        >>> explain("unrecognized arguments: --trainer.max_epoch 3", [], ["trainer.max_epochs", "run_dir"])
        "trainer.max_epoch='3': no such option; did you mean trainer.max_epochs?"
    """
    walk = Walk(given, options)
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        for pattern, rule in RULES:
            if match := re.match(pattern, line):
                if (answer := rule(walk, *match.groups())) is not None:
                    return " ".join(answer.split())
                break
    return (
        " ".join(f"{walk.path()}: {message}".lstrip(": ").split())
        if "Parser key" not in message
        else " ".join(message.split())
    )


def _enter_key(walk: Walk, key: str, rest: str) -> str | None:
    walk.keys += key.split(".")
    if missing := re.match(r"File does not exist: '?(.*?)'?$", rest):
        return f"{walk.found(walk.path(), missing[1])}: there is no such file"
    return None


def _not_a_group(walk: Walk) -> str:
    return f"{walk.found(walk.path())}: give the arguments below it, such as --{walk.path()}.NAME VALUE"


def _enter_class(walk: Walk, path: str) -> None:
    walk.owner = path


def _unknown_in_class(walk: Walk, name: str) -> str:
    if not walk.owner:  # a key at the top of a YAML file
        return f"{walk.found(name)}: no such option{_nearest_option(name, walk.options)}"
    cls = find_class(walk.owner)
    near = _nearest(name, signature(cls) if cls else [])
    return f"{walk.found(walk.path(name))}: {_leaf(walk.owner)} has no argument {name!r}{near}"


def _unknown_in_group(walk: Walk, group: str, name: str) -> str:
    key = f"{group}.{name}"
    return f"{walk.found(key)}: no such option{_nearest_option(key, walk.options)}"


def _unrecognised(walk: Walk, word: str, value: str | None) -> str:
    if not word.startswith("-"):
        return f"{word!r}: not understood; a recipe's name comes first, everything else has two dashes"
    key, equals, inline = word.lstrip("-").partition("=")
    key = key.removesuffix("+")
    shown = inline if equals else value if value and not value.startswith("--") else None
    return f"{walk.found(key, shown)}: no such option{_nearest_option(key, walk.options)}"


def _required(walk: Walk, names: str) -> str:
    if walk.owner:
        return f"{walk.path()}: {_leaf(walk.owner)} needs the argument {names}, give --{walk.path(names.split(',')[0])}"
    return f"{names}: missing; name a recipe or a --config that has it, or give --{names.split(',')[0]}"


def _no_class(walk: Walk, path: str) -> str:
    if (known := find_class(path)) and not issubclass(known, _BASES.get(walk.path(), object)):
        return f"{walk.found(walk.path(), path)}: not a {_BASES[walk.path()].__name__}"
    return f"{walk.found(walk.path(), path)}: no such class{_nearest_class(path, walk.path())}"


def _no_help(walk: Walk, key: str, path: str) -> str:
    return f"{key}.help={path!r}: no such class{_nearest_class(path, key)}"


def _no_print_option(walk: Walk, value: str) -> str:
    return (
        f"print_config={value!r}: expected nothing or one of comments, skip_default, skip_null{_nearest(value, _PRINT)}"
    )


def _no_attribute(walk: Walk, module: str, name: str) -> str:
    home = import_module(module)
    near = _nearest(name, [n for n in dir(home) if isinstance(getattr(home, n, None), type)])
    return f"{walk.found(walk.path(), walk.owner)}: no class {name!r} in {module}{near}"


def _no_module(walk: Walk, name: str) -> str:
    return f"{walk.found(walk.path(), walk.owner)}: no module {name!r}{_nearest_class(walk.owner, walk.path())}"


def _wrong_base(walk: Walk, base: str) -> str:
    return f"{walk.found(walk.path())}: not a {base}"


def _expected(walk: Walk, kind: str, value: str | None) -> str | None:
    walk.wanted.append(kind)
    return None if value is None else _wrong_type(walk, value)


def _wrong_type(walk: Walk, value: str) -> str | None:
    if not walk.wanted:
        return None
    choices = [c for kind in walk.wanted if "Literal" in kind for c in re.findall(r"'([^']*)'|(\d+)", kind)]
    names = [a or b for a, b in choices]
    kinds = [k.removeprefix("<class '").removesuffix("'>") for k in walk.wanted if "Literal" not in k]
    kinds = ["none" if k == "NoneType" else k.rpartition(".")[2] if "[" not in k else k for k in kinds]
    expected = " or ".join(dict.fromkeys([*([f"one of {', '.join(names)}"] if names else []), *kinds]))
    return f"{walk.found(walk.path(), value)}: expected {expected}{_nearest(value, names)}"


def _no_value(walk: Walk, key: str) -> str:
    # the option that argparse names may only be the front of what was written: --model for --model.lr
    bare = [g.key for g in walk.given if g.value is None and g.file is None and f"{g.key}.".startswith(f"{key}.")]
    return f"{bare[-1] if bare else key}: its value is missing"


def _bad_yaml(walk: Walk, reason: str) -> str:
    return f"{walk.found('config')}: not valid YAML: {reason}"


def _denied(walk: Walk, path: str) -> str:
    return f"{walk.found(walk.path(), path) if walk.keys else repr(path)}: {refusal()}"  # no key: --model.help PATH


RULES: list[tuple[str, Callable[..., str | None]]] = [
    (r".*Importing '([^']+)' is not allowed, denied by", _denied),
    (r"Parser key \"([^\"]+)\":?\s*(.*)$", _enter_key),
    (r"Unable to load config", _not_a_group),
    (r"Problem with given class_path '([^']+)':", _enter_class),
    (r"Option '([^']+)' is not accepted", _unknown_in_class),
    (r"Group '([^']+)' does not accept option '([^']+)'", _unknown_in_group),
    (r"unrecognized arguments: (\S+)(?: (.*))?", _unrecognised),
    (r"the following arguments are required: (.+)", _required),
    (r"Expected a dot import path string: (.*)", _no_class),
    (r"--([\w.]+)\.help: Expected a dot import path string: (.*)", _no_help),
    (r"Invalid option \"([^\"]*)\" for --print_config", _no_print_option),
    (r"module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"No module named '([^']+)'", _no_module),
    (r"Import path does not correspond to a subclass of (\w+)", _wrong_base),
    (r"Expected a (?!path but)(.+?)(?:\. Got value: (.*))?$", _expected),
    (r"Given value: ?(.*)$", _wrong_type),
    (r"argument (?:-c/)?--([\w.+]+): expected ", _no_value),
    (r"Problems parsing config: (.*)", _bad_yaml),
]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _show(pair: Given) -> str:
    return f"{pair.key.removesuffix('.class_path')}={pair.value!r}"


def _nearest(word: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(names), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_option(key: str, options: list[str]) -> str:
    abbreviated = [option for option in options if option.startswith(key) or option.endswith(f".{key}")]
    alike = [option for option in options if option.count(".") == key.count(".")]
    if near := abbreviated or difflib.get_close_matches(key, alike, 1, 0.75):
        return f"; did you mean {near[0]}?"
    head, dot, tail = key.partition(".")
    roots = dict.fromkeys(option.partition(".")[0] for option in options)
    if head in roots:
        return _nearest(key, [option for option in options if option.startswith(head + ".")])
    near = difflib.get_close_matches(head, roots, 1)
    return f"; did you mean {near[0]}{dot}{tail}?" if near else ""


def _nearest_class(path: str, key: str) -> str:
    """The closest class among those of this project and those imported already that may stand under this key."""
    base = _BASES.get(key, object)
    classes = {c for c in _subclasses(base) if not c.__name__.startswith("_")} if base is not object else set()
    if "." in path:
        return _nearest(path, [f"{c.__module__}.{c.__name__}" for c in classes])
    lazy = [name for package in PACKAGES for name in getattr(import_module(package), "__all__", [])]
    return _nearest(path, [*lazy, *sorted(c.__name__ for c in classes)])


def _subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*map(_subclasses, direct))
