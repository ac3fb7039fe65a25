"""`koubou-ctl submit --each GLOB`: one prompt, a task for every file that matches."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from koubou_client.ctl.submit_jsonl import Line, refuse_faults
from koubou_client.inputs import InputLimits
from koubou_client.layout import lay_out
from koubou_client.outputs import check_out_path, digest_of
from koubou_client.tasks import draft_task
from koubou_common.did_you_mean import did_you_mean
from koubou_common.errors import Code, KoubouError
from koubou_common.messages.limits import BATCH_TASKS

PLACEHOLDERS = ("name", "stem", "dir", "path")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


def read_each(
    pattern: str,
    prompt: str | bytes,
    *,
    files: Sequence[str],
    root: Path,
    limits: InputLimits,
    out: str,
    target: str,
    settings: Mapping[str, Any],
    allow_secrets: bool = False,
    force: bool = False,
) -> list[Line]:
    """A task for each file below `root` that matches, sorted by path; KoubouError lists what is wrong with which.

    `out` and `target` may hold {name}, {stem}, {dir} and {path} of the file. `files` come first in every task, the file
    itself last; one that is among `files` already is not sent twice.
    """
    for what, template in (("-o", out), ("-t", target)):
        _check_template(what, template)
    common = [_plain(path) for path in files]
    bodies: dict[bytes, bytes] = {}  # a file that all tasks have is held once
    takers: dict[str, str] = {}
    lines: list[Line] = []
    faults: list[str] = []
    for number, item in enumerate(find_items(pattern, root), start=1):
        try:
            out_path, out_digest = _out(out, item, root, takers, force=force)
            draft = draft_task(
                prompt,
                files=common if item in common else [*common, item],
                root=root,
                limits=limits,
                allow_secrets=allow_secrets,
                target=_filled(target, item),
                custom_id=item,
                out_path=out_path,
                out_digest=out_digest,
                **settings,
            )
        except KoubouError as error:
            named = "" if error.message.startswith(f"{item}:") else f"{item}: "
            faults.append(named + error.message + (f" ({error.hint})" if error.hint else ""))
            continue
        held = {sha256: bodies.setdefault(sha256, data) for sha256, data in draft.bodies.items()}
        lines.append(Line(number, replace(draft, bodies=held)))
    refuse_faults(faults, f"{len(faults)} of {len(faults) + len(lines)} files cannot be submitted", "mend this")
    laid_out = lay_out([line.draft for line in lines])
    return [replace(line, draft=draft) for line, draft in zip(lines, laid_out, strict=True)]


def find_items(pattern: str, root: Path) -> list[str]:
    """The files below `root` that match, sorted; KoubouError if there are none, or too many.

    `*`, `?` and `[…]` stay within a name, `**` stands for any folders. As in a shell they match no name that begins
    with a dot. Symbolic links are not followed, nor taken: no task may have them.
    """
    found: set[str] = set()  # a pattern with several ** may find a file several times
    for item in _matches(root, "", _parts(pattern)):
        found.add(item)
        if len(found) > BATCH_TASKS:
            break
    if not found:
        raise KoubouError(
            Code.BAD_INPUT,
            f"--each {pattern}: no file below {root} matches",
            "quote the pattern, which counts from --root; ** stands for any folders: 'src/**/*.py'",
        )
    if len(found) > BATCH_TASKS:
        raise KoubouError(
            Code.TOO_LARGE,
            f"--each {pattern}: more than {BATCH_TASKS} files match, the most of one submission",
            "choose a narrower pattern",
        )
    return sorted(found)


def _parts(pattern: str) -> list[str]:
    parts = pattern.replace(os.sep, "/").split("/")
    if PurePath(pattern).is_absolute() or ".." in parts:
        raise KoubouError(
            Code.BAD_INPUT,
            f"--each {pattern}: leads outside of --root",
            "the pattern counts from --root, which may be another folder",
        )
    return [part for part in parts if part not in ("", ".")]


def _matches(folder: Path, prefix: str, parts: Sequence[str]) -> Iterator[str]:
    if not parts:
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        # At the end it means every file; else what follows may begin here or in any folder below.
        yield from _matches(folder, prefix, rest or ["*"])
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise KoubouError(Code.BAD_INPUT, f"{folder}: {error.strerror}", "check that you may read it") from error
    for entry in entries:
        is_folder = entry.is_dir()
        if entry.is_symlink() or not _fits(entry.name, "*" if first == "**" else first):
            continue
        if first == "**":
            if is_folder:
                yield from _matches(entry, f"{prefix}{entry.name}/", parts)
        elif rest and is_folder:
            yield from _matches(entry, f"{prefix}{entry.name}/", rest)
        elif not rest and not is_folder:
            yield prefix + entry.name


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def _out(out: str, item: str, root: Path, takers: dict[str, str], *, force: bool) -> tuple[str, str]:
    if not out:
        return "", ""
    name = check_out_path(_filled(out, item), root)
    first = takers.setdefault(name, item)
    if first != item:
        hint = "tell them apart with {stem} or {path}: -o 'docs/{dir}/{stem}.md'"
        raise KoubouError(Code.BAD_INPUT, f"-o {name}: {first} would be written there too", hint)
    digest = digest_of(root, name)
    if digest and not force:
        raise KoubouError(Code.BAD_INPUT, f"{name}: exists already", "replace it with --force, or choose another path")
    return name, digest


def _check_template(what: str, template: str) -> None:
    for word in _PLACEHOLDER.findall(template):
        if word not in PLACEHOLDERS:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            hint = did_you_mean(word, PLACEHOLDERS) or f"known are: {known}"
            raise KoubouError(Code.BAD_INPUT, f"{what} {template}: {{{word}}} is not known beside --each", hint)


def _filled(template: str, item: str) -> str:
    if not template:
        return ""
    path = PurePosixPath(item)
    values = {"name": path.name, "stem": path.stem, "dir": path.parent.as_posix(), "path": item}
    filled = _PLACEHOLDER.sub(lambda found: values[found[1]], template)
    # A file in the root itself has the folder ".": as a path that is nothing.
    return PurePosixPath(filled).as_posix()


def _plain(path: str) -> str:
    return PurePath(path).as_posix()
