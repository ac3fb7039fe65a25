"""Which relative names of files are safe on every side: client, broker and agent check the same."""

import unicodedata

NAME_BYTES = 255  # what every common file system takes; a broker may allow less (limits.name_bytes)

_BAD_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible character",  # bidi overrides among them: a name must look like what it is
    "Cs": "half a character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10)}


def name_fault(name: str, most_bytes: int = NAME_BYTES) -> str:
    """Why `name` must not be used, in a person's words; empty if it may.

    Safe are relative names with forward slashes that stay below their root on any system.
    """
    if not name:
        return "the name is empty"
    if len(name.encode("utf-8", "surrogatepass")) > most_bytes:
        return f"the name is longer than {most_bytes} bytes, the limit name_bytes"
    for character in name:
        if reason := _BAD_CATEGORIES.get(unicodedata.category(character)):
            return f"the name holds {reason} (U+{ord(character):04X})"
    if name.startswith(("/", "\\", "~")) or name[1:2] == ":":
        return "an absolute path"
    if "\\" in name:
        return "the name holds a backslash"
    parts = name.split("/")
    if ".." in parts:
        return "'..' leads outside"
    if "" in parts or "." in parts:
        return "the name holds an empty part or '.'"
    for part in parts:
        if part.split(".")[0].lower() in _WINDOWS_DEVICES:
            return f"{part!r} is a device on Windows"
        if part.endswith((" ", ".")):
            return f"{part!r} ends with a space or a dot"
    return ""
