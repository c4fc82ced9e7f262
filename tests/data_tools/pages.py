"""What a report says."""

from html.parser import HTMLParser
from pathlib import Path


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


class Page(HTMLParser):
    """Checks that tags nest, and collects what the page refers to and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
