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

from lit_methods.cli.classes import BASES, find_class, known_classes, offered, signature
from lit_methods.cli.given import Given, as_option
from lit_methods.cli.safe import refusal

_PRINT = ("comments", "skip_default", "skip_null")


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
            return (same or pairs)[-1].shown
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
    text = message if "Parser key" in message else f"{walk.path()}: {message}".lstrip(": ")
    return " ".join(text.split())


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
    hint = _option_of_last_item(key, walk) if "[" in key else _nearest_option(key, walk.options)
    return f"{walk.found(key, shown)}: no such option{hint}"


def _required(walk: Walk, names: str) -> str:
    if walk.owner:
        return f"{walk.path()}: {_leaf(walk.owner)} needs the argument {names}, give --{walk.path(names.split(',')[0])}"
    return f"{names}: missing; name a recipe or a --config that has it, or give --{names.split(',')[0]}"


def _no_class(walk: Walk, path: str) -> str:
    if (known := find_class(path)) and not issubclass(known, BASES.get(walk.path(), object)):
        return f"{walk.found(walk.path(), path)}: not a {BASES[walk.path()].__name__}"
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


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


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


def _option_of_last_item(key: str, walk: Walk) -> str:
    """Items of a list are counted in files alone; the command line reaches the arguments of the last one."""
    item = f"{key.partition('].')[0]}]."
    of_files = [pair for pair in walk.given if pair.file and pair.key.startswith(item)]
    if any(as_option(pair, walk.given) != pair for pair in of_files):
        return f"; did you mean {Given(key, None).plain_key}?"
    name = key.partition("[")[0]
    return f"; --{name}.NAME VALUE sets an argument of the last one, a --config FILE the whole list"


def _nearest_class(path: str, key: str) -> str:
    """The closest class among those of this project and those imported already that may stand under this key."""
    classes = known_classes(key)
    if "." in path:
        return _nearest(path, [f"{c.__module__}.{c.__name__}" for c in classes])
    ours = offered(key)
    near = _nearest(path, [*ours, *sorted(c.__name__ for c in classes)])
    return near or (f"; there are {', '.join(ours)}" if ours else "")
