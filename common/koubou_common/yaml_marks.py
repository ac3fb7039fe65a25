"""YAML read with the place of every value, so that a fault can be shown where it was written."""

import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from koubou_common.errors import ConfigError

FILE_BYTES_MAX = 1 << 20  # a thousand workers are 300 KiB; more is not a settings file
_NODES_MAX = 100_000  # aliases of aliases multiply: a few lines can stand for billions of values
_SOURCE_CHARS_MAX = 160  # of a line shown under a problem
_MERGE_TAG = "tag:yaml.org,2002:merge"
_STRING_TAG = "tag:yaml.org,2002:str"

Route = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a file, both counted from 1; columns count characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a settings file; str() is what a person reads."""

    file: str
    line: int
    column: int
    path: str  # "workers.local_workers.0.model"; empty for the file as a whole
    message: str
    hint: str = ""
    source: str = ""  # the line as written

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        lines = [_printable(f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}")]
        if self.source:
            lines += _quoted(self.source, self.line, self.column)
        if self.hint:
            lines.append(_printable(f"  hint: {self.hint}"))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data, where each part of it stands, and the faults of its form."""

    file: str
    lines: tuple[str, ...]
    data: object  # None: empty or broken
    values: Mapping[Route, Place]
    keys: Mapping[Route, Place]
    texts: Mapping[Route, str]  # scalars exactly as written
    problems: tuple[Problem, ...]

    def problem(self, route: Route, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem of what stands at `route`; what is not in the file is shown at what should hold it."""
        keys_first = (self.keys, self.values) if at_key else (self.values, self.keys)
        place = Place(1, 1)
        for length in range(len(route), -1, -1):
            found = keys_first[0].get(route[:length]) or keys_first[1].get(route[:length])
            if found is not None:
                place = found
                break
        return Problem(self.file, place.line, place.column, dotted(route), message, hint, self._source(place.line))

    def _source(self, line: int) -> str:
        return self.lines[line - 1] if 0 < line <= len(self.lines) else ""


def read_document(path: Path) -> Document:
    """Read and parse a file; ConfigError if it cannot be read at all."""
    return parse_document(read_bytes(path), str(path))


def parse_document(raw: bytes, file: str) -> Document:
    """Parse YAML. Faults of its form are collected, never raised."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8-sig", "replace")) + 1
        return _broken(Problem(file, line, column, "", "this is not UTF-8 text", "save the file as UTF-8"))
    lines = tuple(text.splitlines())
    try:
        return _Walk(file, lines).document(text)
    except yaml.reader.ReaderError as error:
        # A YAML reader counts characters, not lines; its own text is about code points.
        read = text[: error.position]
        line, column = read.count("\n") + 1, len(read.rpartition("\n")[2]) + 1
        message = "this character is not allowed in YAML"
        return _broken(Problem(file, line, column, "", message, "delete it", _line(lines, line)), lines)
    except yaml.MarkedYAMLError as error:
        return _broken(_syntax_problem(file, lines, error), lines)
    except RecursionError:
        return _broken(Problem(file, 1, 1, "", "values are nested too deeply"), lines)


def read_bytes(path: Path) -> bytes:
    """A settings file's bytes; ConfigError says why it cannot be read and what to do."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: this is a folder", "name the settings file inside it")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: this is not an ordinary file", "name an ordinary YAML file")
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file", "create it, or name the right one") from error
    except PermissionError as error:
        raise ConfigError(
            f"{path}: this account may not read it", f"its owner can allow it: chmod u+r {path}"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}", "name a readable file") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes", "is it a settings file? name the right one")
    return raw


def dotted(route: Route) -> str:
    """A route as people read it: `workers.local_workers.0.model`."""
    return ".".join(str(part) for part in route)


@dataclass(slots=True)
class _Walk:
    """From YAML's nodes to plain data, noting places; one use each."""

    file: str
    lines: tuple[str, ...]
    values: dict[Route, Place] = field(default_factory=dict)
    keys: dict[Route, Place] = field(default_factory=dict)
    texts: dict[Route, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    open_nodes: list[yaml.Node] = field(default_factory=list)
    nodes: int = 0

    def document(self, text: str) -> Document:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            data = None if root is None else self._value(loader, root, ())
        finally:
            loader.dispose()
        return Document(self.file, self.lines, data, self.values, self.keys, self.texts, tuple(self.problems))

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, route: Route) -> object:
        self._count(node)
        if any(node is holder for holder in self.open_nodes):
            raise _refusal(node, "this value contains itself")
        self.values[route] = _place(node)
        self.open_nodes.append(node)
        try:
            match node:
                case yaml.MappingNode():
                    return self._mapping(loader, node, route)
                case yaml.SequenceNode():
                    return [self._value(loader, item, (*route, n)) for n, item in enumerate(node.value)]
                case _:
                    self.texts[route] = str(node.value)
                    return _scalar(loader, node)
        finally:
            self.open_nodes.pop()

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, route: Route) -> dict[str, object]:
        made: dict[str, object] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                merged.append(value_node)
                continue
            name = self._key(key_node)
            if name is None:
                continue
            here = (*route, name)
            if name in made:
                first = self.keys[here].line
                self._report(key_node, route, f"duplicate key {name!r} (first at line {first})")
                continue
            self.keys[here] = _place(key_node)
            made[name] = self._value(loader, value_node, here)
        # Merged values must come after the mapping's own, which win whatever the order in the file.
        for source in merged:
            for part in _merge_sources(source):
                self._merge(loader, part, route, made)
        return made

    def _merge(self, loader: yaml.SafeLoader, part: yaml.Node, route: Route, made: dict[str, object]) -> None:
        self._count(part)
        if not isinstance(part, yaml.MappingNode):
            raise _refusal(part, "'<<' takes a mapping, or a list of mappings")
        for key_node, value_node in part.value:
            if key_node.tag == _MERGE_TAG:
                for inner in _merge_sources(value_node):
                    if any(inner is holder for holder in self.open_nodes) or inner is part:
                        raise _refusal(inner, "this value contains itself")
                    self._merge(loader, inner, route, made)
                continue
            name = self._key(key_node)
            if name is not None and name not in made:
                self.keys[(*route, name)] = _place(key_node)
                made[name] = self._value(loader, value_node, (*route, name))

    def _count(self, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > _NODES_MAX:
            raise _refusal(node, "too many values")

    def _key(self, node: yaml.Node) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _STRING_TAG:
            return str(node.value)
        shown = f"the key {node.value}" if isinstance(node, yaml.ScalarNode) else "a key"
        self._report(node, (), f"{shown} is not text", "put it in quotes")
        return None

    def _report(self, node: yaml.Node, route: Route, message: str, hint: str = "") -> None:
        at = _place(node)
        source = _line(self.lines, at.line)
        self.problems.append(Problem(self.file, at.line, at.column, dotted(route), message, hint, source))


def _merge_sources(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    else:
        yield node


def _scalar(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    try:
        value: object = loader.construct_object(node)
    except yaml.constructor.ConstructorError as error:
        raise _refusal(node, f"the tag {node.tag} is not allowed") from error
    except (ValueError, OverflowError) as error:  # 2026-02-30 looks like a date and is none
        raise _refusal(node, f"{node.value} cannot be read", "put it in quotes if it is text") from error
    return value


def _refusal(node: yaml.Node, message: str, hint: str | None = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark, note=hint)


def _syntax_problem(file: str, lines: tuple[str, ...], error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    source, hint = _line(lines, line), error.note or ""
    message = error.problem or "this is not YAML"
    if "\t" in source[: len(source) - len(source.lstrip())] or "'\\t'" in message:
        message, hint = "a tab cannot indent YAML", "use spaces"
    elif "expected a single document" in (error.context or ""):
        message, hint = "a second document begins here", "keep one document a file: delete the line '---'"
    elif error.context and "while scanning a quoted" in error.context:
        message, hint = "a quote is opened and never closed", "close it"
    return Problem(file, line, column, "", message, hint, source)


def _broken(problem: Problem, lines: tuple[str, ...] = ()) -> Document:
    return Document(problem.file, lines, None, {}, {}, {}, (problem,))


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _line(lines: tuple[str, ...], number: int) -> str:
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _quoted(source: str, line: int, column: int) -> list[str]:
    """The source line with a caret under the column, safe to print."""
    start = max(0, column - _SOURCE_CHARS_MAX // 2) if len(source) > _SOURCE_CHARS_MAX else 0
    shown = "".join(
        char if char == "\t" or char.isprintable() else "?" for char in source[start : start + _SOURCE_CHARS_MAX]
    )
    # The caret stands under the character: a tab stays a tab, a Japanese character is two columns wide.
    before = "".join(_blank(char) for char in shown[: column - 1 - start])
    return [f"{line:>6} | {shown}", f"{'':>6} | {before}^"]


def _printable(text: str) -> str:
    """Keys of a file may hold what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _blank(char: str) -> str:
    if char == "\t":
        return char
    return "  " if unicodedata.east_asian_width(char) in {"W", "F"} else " "
