"""The disk that a power cut leaves: what was synced is there, what was not may be lost, torn, or there by chance.

The strict reading of POSIX, harder than usual file systems: fsync of a file makes its bytes durable and not its name,
fsync of a folder makes the names in it durable; what was not synced survives in any part and any order.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, assert_never

from powercut.journal import Call, Kind

SECTOR_BYTES = 512  # what a disk writes whole or not at all

# SQLite maps this file into memory and builds it anew after a crash: what is in it was never meant to be durable.
_NOT_DURABLE = "-shm"
_MADE, _EMPTIED = 1, 2  # as shim.c says it of a file that was opened

Tree = dict[str, bytes | None]  # by path below the root; None: a folder
Change = TypeVar("Change")
Survivors = Callable[[Sequence[Change]], Iterable[Change]]


@dataclass(frozen=True, slots=True)
class _Write:
    """Bytes at a place; `length` is the file's from then on, or -1 for at least what was written."""

    at: int
    data: bytes
    length: int = -1

    def sectors(self) -> Iterator["_Write"]:
        """The parts that a disk writes whole."""
        if not self.data:
            yield self
        at, end = self.at, self.at + len(self.data)
        while at < end:
            next_at = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            yield _Write(at, self.data[at - self.at : next_at - self.at])
            at = next_at


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, _Write]] = field(default_factory=list)  # with the time it was done


@dataclass(slots=True)
class _Folder:
    durable: "dict[str, _File | _Folder]" = field(default_factory=dict)
    current: "dict[str, _File | _Folder]" = field(default_factory=dict)
    pending: "list[tuple[int, _Names]]" = field(default_factory=list)


_Node = _File | _Folder
_Names = dict[str, _Node | None]  # names that change at once; None: it is gone


class Disk:
    """Everything below one folder; begins with what is there, all of it durable."""

    def __init__(self, root: Path) -> None:
        self._root_path = str(root)
        self._by_inode: dict[int, _Node] = {}
        self._root = self._found(root)

    def do(self, call: Call) -> None:
        """Do what a process did; in the order in which it was done."""
        if call.error:
            if call.kind is Kind.SYNCED:
                # The kernel takes the pages to be clean: they are read as written, and never written again.
                self._by_inode[call.inode].pending.clear()
            return
        match call.kind:
            case Kind.OPENED if call.number == _MADE:
                node = self._by_inode[call.inode] = _File()
                self._name(call, call.path, node)
            case Kind.OPENED if call.number == _EMPTIED:
                self._write(call, _Write(0, b"", 0))
            case Kind.OPENED:
                assert call.inode in self._by_inode, f"nobody wrote down how {call.path} came to be"
            case Kind.WRITTEN:
                self._write(call, _Write(call.number, call.data))
            case Kind.TRUNCATED:
                self._write(call, _Write(0, b"", call.number))
            case Kind.ALLOCATED:
                self._write(call, _Write(call.number, b""))
            case Kind.SYNCED:
                self._sync(self._by_inode[call.inode], call.began_ns)
            case Kind.RENAMED:
                self._rename(call)
            case Kind.UNLINKED | Kind.FOLDER_GONE:
                self._name(call, call.path, None)
            case Kind.FOLDER_MADE:
                folder = self._by_inode[call.inode] = _Folder()
                self._name(call, call.path, folder)
            case Kind.LINKED:
                self._name(call, call.other, self._by_inode[call.inode])
            case _:
                assert_never(call.kind)

    def now(self) -> Tree:
        """As the processes see it."""
        return dict(_walk(self._root, lambda folder: folder.current, lambda file: bytes(file.current)))

    def synced(self) -> Tree:
        """After a power cut, when nothing survives that was not synced."""
        return dict(_walk(self._root, lambda folder: folder.durable, lambda file: bytes(file.durable)))

    def some(self, dice: random.Random) -> Tree:
        """After a power cut, when some of what was not synced survives: all, a beginning, or any part of it."""

        def entries(folder: _Folder) -> dict[str, _Node]:
            names = dict(folder.durable)
            for _, change in _survivors(folder.pending, dice):
                _rename_in(names, change)
            return names

        def content(file: _File) -> bytes:
            parts = [(at_ns, part) for at_ns, write in file.pending for part in write.sectors()]
            data = bytearray(file.durable)
            for _, write in _survivors(parts, dice):
                _write_in(data, write)
            return bytes(data)

        return dict(_walk(self._root, entries, content))

    def _found(self, path: Path) -> _Node:
        node: _Node
        if path.is_dir():
            entries = {one.name: self._found(one) for one in path.iterdir()}
            node = _Folder(entries, dict(entries))
        else:
            data = path.read_bytes()
            node = _File(bytearray(data), bytearray(data))
        self._by_inode[path.stat().st_ino] = node
        return node

    def _write(self, call: Call, write: _Write) -> None:
        file = self._by_inode[call.inode]
        assert isinstance(file, _File), call.path
        _write_in(file.current, write)
        file.pending.append((call.ended_ns, write))

    def _sync(self, node: _Node, began_ns: int) -> None:
        """What was done before the sync began is durable; what came meanwhile may have missed it."""
        if isinstance(node, _File):
            for _, write in _taken(node.pending, began_ns):
                _write_in(node.durable, write)
        else:
            for _, names in _taken(node.pending, began_ns):
                _rename_in(node.durable, names)

    def _rename(self, call: Call) -> None:
        folder, name = self._place(call.path)
        other_folder, other_name = self._place(call.other)
        node = folder.current[name]
        if folder is other_folder:
            self._change(call, folder, {name: None, other_name: node})
        else:
            self._change(call, other_folder, {other_name: node})
            self._change(call, folder, {name: None})

    def _name(self, call: Call, path: str, node: _Node | None) -> None:
        folder, name = self._place(path)
        self._change(call, folder, {name: node})

    def _change(self, call: Call, folder: _Folder, names: _Names) -> None:
        _rename_in(folder.current, names)
        folder.pending.append((call.ended_ns, names))

    def _place(self, path: str) -> tuple[_Folder, str]:
        *folders, name = path.removeprefix(self._root_path).strip("/").split("/")
        at = self._root
        for part in folders:
            assert isinstance(at, _Folder), path
            at = at.current[part]
        assert isinstance(at, _Folder), path
        return at, name


def build(tree: Tree, folder: Path) -> None:
    """Write a tree into a new folder, everything its owner's alone."""
    folder.mkdir(mode=0o700)
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir(mode=0o700)
        else:
            (folder / path).touch(mode=0o600)
            (folder / path).write_bytes(data)


def found(folder: Path) -> Tree:
    """What is below a folder, as a Tree."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith(_NOT_DURABLE):
            tree[str(path.relative_to(folder))] = None if path.is_dir() else path.read_bytes()
    return tree


def _walk(
    node: _Node, entries: Callable[[_Folder], dict[str, _Node]], content: Callable[[_File], bytes], at: str = ""
) -> Iterator[tuple[str, bytes | None]]:
    if isinstance(node, _File):
        yield at, content(node)
        return
    if at:
        yield at, None
    for name, inner in sorted(entries(node).items()):
        if not name.endswith(_NOT_DURABLE):
            yield from _walk(inner, entries, content, f"{at}/{name}" if at else name)


def _survivors(changes: Sequence[Change], dice: random.Random) -> Sequence[Change]:
    match dice.randrange(4):
        case 0:
            return ()
        case 1:
            return changes
        case 2:
            return changes[: dice.randint(0, len(changes))]
        case _:
            share = dice.random()
            return [change for change in changes if dice.random() < share]


def _taken(pending: list[tuple[int, Change]], until_ns: int) -> list[tuple[int, Change]]:
    taken = [one for one in pending if one[0] <= until_ns]
    pending[:] = [one for one in pending if one[0] > until_ns]
    return taken


def _write_in(data: bytearray, write: _Write) -> None:
    end = write.at + len(write.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[write.at : end] = write.data
    if write.length >= 0:
        del data[write.length :]
        data.extend(bytes(write.length - len(data)))


def _rename_in(entries: dict[str, _Node], names: _Names) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
