"""What a build-dataset command line asks for, and how that compares with what a file was made with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from data_tools.classes import ClassRules, RuleError
from data_tools.processing import Box, ImageSettings
from data_tools.schema import Layout, recipe_of

OPTIONS = {"merges": "--merge", "exclude": "--exclude", "boxes": "--boxes"}  # named otherwise than their fields


@dataclass(frozen=True)
class Request:
    """A build-dataset command line."""

    source: Path
    out: Path | None
    settings: ImageSettings
    explicit: frozenset[str]  # the settings and rules that were typed, not defaulted
    rules: ClassRules
    boxes: Path | None = None
    dedupe: bool = False
    workers: int = 1
    append: bool = False
    overwrite: bool = False
    report: bool | None = None  # None: the usual report; True: with near duplicates; False: none
    dry_run: bool = False


def recipe_text(request: Request, boxes: Mapping[str, Box]) -> str:
    """JSON of all that was asked for."""
    recipe = {"images": asdict(request.settings), "classes": asdict(request.rules), "dedupe": request.dedupe}
    if boxes:
        recipe["boxes"] = sha256(json.dumps(sorted(boxes.items())).encode()).hexdigest()
    return json.dumps(recipe, sort_keys=True, ensure_ascii=False)


def inherit(request: Request, base: Layout, origin: str) -> tuple[Request, list[str]]:
    """The request to append to a file: with its image settings, which typed ones must not contradict.

    A source that the file has images of already keeps its rules, too, unless others are typed. Returns the request
    and the options that it took over.
    """
    settings = ImageSettings(**recipe_of(base.generations[0])["images"])
    for name in sorted(request.explicit & set(asdict(settings))):
        asked, found = getattr(request.settings, name), getattr(settings, name)
        if asked != found:
            raise RuleError(
                f"{_option(name)} {asked} differs from {found} in {base.path}, which --append must keep: omit it."
            )
    request = replace(request, settings=settings)
    before = next((recipe_of(made) for made in reversed(base.generations) if made.origin == origin), None)
    if before is None:
        return request, []
    if "boxes" in before and request.boxes is None:
        raise RuleError(f"{base.path} has the images of {origin} cut by --boxes: give these for the new images, too.")
    rules = {name: tuple(value) if isinstance(value, list) else value for name, value in before["classes"].items()}
    kept = {name: value for name, value in rules.items() if name not in request.explicit}
    taken = [_option(name) for name in kept if kept[name] != getattr(request.rules, name)]
    if before.get("dedupe") and not request.dedupe:
        taken.append("--dedupe")
    rules = replace(request.rules, **kept)
    return replace(request, rules=rules, dedupe=request.dedupe or bool(before.get("dedupe"))), taken


def difference(old: dict, new: dict) -> str:
    """The first setting in which two recipes differ."""
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name), new.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                return difference(before, now)
            return f"{name.replace('_', ' ')} {_brief(before)} instead of {_brief(now)}"
    return "none"


def _option(name: str) -> str:
    return OPTIONS.get(name, "--" + name.replace("_", "-"))


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
