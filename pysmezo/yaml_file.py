"""YAML files of ours: a mapping, or one clear error."""

from __future__ import annotations

from .errors import ArgumentError, FormatError


def mapping(path, where: str, expected: str) -> dict | None:
    """The mapping in a YAML file, None for an empty one. ArgumentError: not readable; FormatError: not a mapping."""
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            content = yaml.safe_load(f)
    except OSError as e:
        raise ArgumentError(f"[{where}] {path}: {e.strerror}, expected {expected}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise FormatError(f"[{where}] {path} is not YAML: {' '.join(str(e).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise FormatError(f"[{where}] {path} holds {type(content).__name__}, expected {expected}")
    return content
