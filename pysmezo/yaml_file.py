"""YAML files of ours: a flat mapping, or one clear error."""

from __future__ import annotations

from collections import Counter

from .errors import ArgumentError, FormatError

MOST_BYTES = 1 << 20
# The parser takes time that grows with the square of how deep brackets are nested; ours need one level.
MOST_BRACKETS = 64


def mapping(path, where: str, expected: str) -> dict | None:
    """The mapping in a YAML file, its values scalars or lists of them; None for an empty one. ArgumentError: not
    readable; FormatError: anything else.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            text = f.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise FormatError(f"[{where}] {path} is longer than {MOST_BYTES} characters, expected {expected}")
        if _nesting(text) > MOST_BRACKETS:
            raise FormatError(f"[{where}] {path} has brackets in brackets in brackets, expected {expected}")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        # The parser takes the last of two.
        keys = Counter(str(k.value) for k, _ in node.value) if isinstance(node, yaml.MappingNode) else Counter()
        content = None if node is None else loader.construct_document(node)
    except OSError as e:
        raise ArgumentError(f"[{where}] {path}: {e.strerror}, expected {expected}") from None
    # A number or date that Python does not take, or a key that cannot be one, is a ValueError or TypeError.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        raise FormatError(f"[{where}] {path} is not YAML ({' '.join(str(e).split())}), expected {expected}") from None
    if content is None:
        return None
    if not isinstance(content, dict):
        raise FormatError(f"[{where}] {path} holds {type(content).__name__}, expected {expected}")
    for key, n in keys.items():
        if n > 1:
            raise FormatError(f"[{where}] {key!r} stands {n} times in {path}, expected it once")
    for key, value in content.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(x, (dict, list, set, tuple)) for x in items):
            raise FormatError(f"[{where}] {key!r} in {path} holds collections, expected {expected}")
    return content


def _nesting(text: str) -> int:
    deepest = depth = 0
    for c in text:
        if c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth = max(0, depth - 1)
    return deepest
