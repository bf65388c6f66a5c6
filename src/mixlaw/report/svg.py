"""SVG that can stand inside a page: nothing that collides, nothing that is fetched.

Text stays text, so that it can be read aloud, searched and copied; colours become CSS variables, so
that dark mode works; ids get the figure's own prefix.
"""

import re
from xml.etree import ElementTree

from mixlaw.report.palette import THEME

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_COLOUR = re.compile("|".join(THEME))
_LINK = "{http://www.w3.org/1999/xlink}href"


def inline_svg(text: str, *, key: str, title: str, description: str) -> str:
    """Returns a figure's SVG file as an element for a page.

    Args:
        text: The file, as Matplotlib wrote it.
        key: Prefix of the ids; another one for each figure of a page.
        title: What the figure is, for those who can't see it.
        description: What it shows.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - Matplotlib has just written it
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        _clean_attributes(element, key)
    _, _, width, height = root.get("viewBox", "0 0 0 0").split()
    root.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-description",
    }
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, id=f"{key}-{'title' if tag == 'title' else 'description'}")
        label.text = words
        root.insert(place, label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _clean_attributes(element: ElementTree.Element, key: str) -> None:
    link = element.attrib.pop(_LINK, None)
    if link is not None:
        element.set("href", f"#{key}-{link.removeprefix('#')}")
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == "style":
            themed = _COLOUR.sub(lambda match: f"var({THEME[match[0]]})", _FONT.sub("", value))
            element.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", themed))
        elif name != "href":
            element.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", value))
