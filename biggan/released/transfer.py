"""Beginning a run from other weights: which numbers go where, and what the user is told about it.

Parameters go by name and shape. Only what depends on the classes is made to fit: tables of class vectors row by row,
and layers that take a class vector where one of the two models knows no classes. Another resolution is `promotion`'s.
"""

from __future__ import annotations

import csv
import dataclasses
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biggan.config import Config, ConfigError, ModelConfig, config_from_dict
from biggan.models import build_discriminator, build_generator
from biggan.released import promotion
from biggan.released.architecture import Tensors, check_tensors
from biggan.released.importing import opened
from biggan.released.package import Released
from biggan.sampling.generate import find_weights
from biggan.settings import nearest
from biggan.training.checkpoint import CheckpointError, read_state

G_KEPT = ("family", "g_ch", "dim_z", "shared_dim", "hierarchical", "g_depth", "norm", "g_spectral", "rgb_channels")
D_KEPT = ("d_ch", "d_depth", "d_wide", "d_spectral")


class Carried(NamedTuple):
    """What became of one tensor of the new model."""

    name: str
    numbers: int
    status: str  # "loaded", "adapted" or "initialised"; of the source's tensors also "unused"
    note: str = ""
    transferred: bool = True  # whether it says something that the source knew


# -- settings ---------------------------------------------------------------------------------------------------------


def starting_config(raw: dict[str, Any], path: Path, resolution: int | None = None, complete: bool = False) -> Config:
    """The config of a run that begins from the weights at `path`, for data of `resolution` (None: the source's).

    The architecture is the source's; `raw` may set what does not contradict it. Unless `raw` is `complete` (a preset or
    file was chosen), other settings are those that a source which is a run was trained with.
    """
    if not path.exists():
        raise ConfigError(f"--init-from {path}: it does not exist; a run that began from it continues with --run DIR")
    settings: dict[str, dict[str, Any]] = {} if complete else _trained_with(path)
    for section, values in raw.items():
        settings[section] = settings.get(section, {}) | values
    settings["ema"] = {"start": 0} | raw.get("ema", {}) | _without(settings.get("ema", {}), "start")
    with opened(path) as source:
        model = starting_model(raw.get("model", {}), source, resolution)
    settings["model"] = {key: value for key, value in dataclasses.asdict(model).items() if key != "classes"}
    settings["model"]["classes"] = raw.get("model", {}).get("classes", 0)
    settings.setdefault("transfer", {})["source"] = str(path)
    return config_from_dict(settings)


def _trained_with(path: Path) -> dict[str, dict[str, Any]]:
    """The settings of a run of this program, without those that belong to its data and architecture."""
    try:
        checkpoint = find_weights(path)
    except CheckpointError:  # of another program
        return {}
    if not (checkpoint / "state.json").exists():
        return {}
    config = read_state(checkpoint)["config"]
    config["data"] = _without(config["data"], "path", "weights")
    return _without(config, "model", "transfer")


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def starting_model(explicit: dict[str, Any], source: Released, resolution: int | None) -> ModelConfig:
    """The architecture for a run from `source`: its own, with what is given explicitly. Raises ConfigError if that
    contradicts it."""
    theirs = source.model
    has_discriminator = "discriminator" in source.models
    settings = dataclasses.asdict(theirs) | {"classes": 0}
    if not has_discriminator:
        settings["d_ch"] = explicit.get("g_ch", theirs.g_ch)
    size = explicit.get("resolution") or resolution or theirs.resolution
    if size != theirs.resolution:
        settings |= promotion.promoted_settings(theirs, size)
    ours = config_from_dict({"model": settings | explicit}).model
    kept = list(G_KEPT) + (list(D_KEPT) if has_discriminator else [])
    if size != theirs.resolution:
        promotion.check_settings(theirs, ours, source.source)
        kept = [name for name in kept if name not in ("g_ch", "dim_z")]
    if theirs.classes <= 1:
        kept.remove("shared_dim")
    for name in kept:
        if getattr(ours, name) != getattr(theirs, name):
            _contradicts(name, ours, theirs, source.source)
    for name in ("g_attention", "d_attention") if has_discriminator else ("g_attention",):
        if not set(getattr(theirs, name)) <= set(getattr(ours, name)):
            _contradicts(name, ours, theirs, source.source)
    return ours


def _contradicts(name: str, ours: ModelConfig, theirs: ModelConfig, source: str) -> None:
    found = getattr(theirs, name)
    mismatch = first_mismatch(dataclasses.replace(ours, classes=theirs.classes), theirs)
    raise ConfigError(
        f"model.{name} = {getattr(ours, name)!r}: {source} has {found!r}{mismatch}; leave the setting out, or set it "
        "to that"
    )


def first_mismatch(ours: ModelConfig, theirs: ModelConfig) -> str:
    """'; its tensor ... is ..., here it would be ...', or nothing if all shapes agree."""
    for build in (build_generator, build_discriminator):
        with torch.device("meta"):
            new, old = build(ours).state_dict(), build(theirs).state_dict()
        for name in [*new, *(name for name in old if name not in new)]:
            shapes = [list(tensors[name].shape) if name in tensors else "missing" for tensors in (old, new)]
            if shapes[0] != shapes[1]:
                return f" (its tensor {name} is {shapes[0]}, here it would be {shapes[1]})"
    return ""


# -- classes ----------------------------------------------------------------------------------------------------------


def match_classes(ours: list[str], theirs: list[str], how: str) -> list[int | None] | None:
    """For each of our classes the row of theirs that it begins as, or None for the mean of all rows.

    `how` is "name", "mean", "fresh" (then the result is None) or the path of a map file. Raises ConfigError.
    """
    if how == "fresh":
        return None
    if how == "mean":
        return [None] * len(ours)
    row = {name: i for i, name in enumerate(theirs)}
    chosen = {name: row.get(name) for name in ours}
    if how != "name":
        for mine, other in read_class_map(Path(how)):
            if mine not in chosen:
                raise ConfigError(f"transfer.classes: {how}: the data have no class {mine!r}{nearest(mine, ours)}")
            chosen[mine] = _their_row(other, row, how)
    return [chosen[name] for name in ours]


def _their_row(wanted: str, row: dict[str, int], file: str) -> int:
    if wanted in row:
        return row[wanted]
    if wanted.isdecimal() and int(wanted) < len(row):
        return int(wanted)
    close = "" if wanted.isdecimal() else nearest(wanted, row)
    if len(row) > 50 and "did you mean" not in close:
        close = ""  # nobody reads a list of all
    raise ConfigError(
        f"transfer.classes: {file}: the weights have no class {wanted!r}, of {len(row)} (0 to {len(row) - 1}){close}"
    )


def read_class_map(path: Path) -> list[tuple[str, str]]:
    """Pairs (our class, their class name or id) of a CSV file with two columns, or of a TOML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".toml":
            return [(mine, str(other)) for mine, other in tomllib.loads(text).items()]
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    except FileNotFoundError:
        raise ConfigError(
            f"transfer.classes = {str(path)!r}: there is no such file; it must be name, mean, fresh or a map file"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error) as error:
        raise ConfigError(f"transfer.classes: {path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ConfigError(f"transfer.classes: {path}, row {number}: {len(row)} cells; write: our class,their class")
    return [(mine, other) for mine, other in rows]


# -- tensors ----------------------------------------------------------------------------------------------------------


def transfer(
    generator: nn.Module, discriminator: nn.Module, source: Released, class_names: list[str], how: str
) -> dict[str, list[Carried]]:
    """Put the source's weights into freshly initialised models; returns what became of every tensor, by model.

    Raises CheckpointError if the source's tensors are not those of its own architecture, ConfigError for a bad `how`.
    """
    rows = match_classes(class_names, source.class_names or _numbers(source.model.classes), how)
    report = {}
    for model, holds in ((generator, "generator"), (discriminator, "discriminator")):
        file = "generator_ema" if holds == "generator" else holds
        if file not in source.models:
            report[holds] = _untouched(model, f"the source holds no {holds}")
            continue
        tensors = source.models[file]()
        check_tensors(source.model, holds, tensors, source.source)
        larger = promotion.Promoted(tensors, {}, [])
        if source.model.resolution != model.resolution:
            larger = promotion.promoted(holds, tensors, source.model, model.config)
        if not larger.tensors:
            report[holds] = _untouched(model, "the source's does not fit")
            continue
        report[holds] = carry(model, larger.tensors, rows, larger.notes)
        report[holds] += [Carried(name, tensors[name].numel(), "unused", "", False) for name in larger.unused]
    return report


def _untouched(model: nn.Module, why: str) -> list[Carried]:
    return [Carried(name, t.numel(), "initialised", why, False) for name, t in model.state_dict().items()]


def _numbers(classes: int) -> list[str]:
    return [str(i) for i in range(max(classes, 1))]


@torch.no_grad()
def carry(
    model: nn.Module, theirs: Tensors, rows: list[int | None] | None, notes: dict[str, tuple[str, str]]
) -> list[Carried]:
    """Copy into `model` what fits of `theirs`; `notes` are the status and note of tensors that are not as they were."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    result, used = [], set()
    for name, own in model.state_dict().items():
        of_table = name in tables or (name.endswith(".u") and name.removesuffix("u") + "weight" in tables)
        value, their_name, how = fitted(name, own, theirs, rows if of_table else None, of_table)
        if value is None:
            result.append(Carried(name, own.numel(), "initialised", how, transferred=False))
            continue
        own.copy_(value)
        used.add(their_name)
        status, note = notes.get(name, ("adapted" if how else "loaded", how))
        known = status != "initialised" and not (of_table and not any(row is not None for row in rows or []))
        result.append(Carried(name, own.numel(), status, note or how, known))
    result += [Carried(name, t.numel(), "unused", "", False) for name, t in theirs.items() if name not in used]
    return result


def fitted(
    name: str, own: Tensor, theirs: Tensors, rows: list[int | None] | None, of_table: bool
) -> tuple[Tensor | None, str, str]:
    """Their value for our tensor, the name of the tensor that it came from, and how it was made to fit."""
    if of_table:
        return _table(name, own, theirs, rows)
    if name not in theirs and f"{name}.weight" in theirs:
        return _mean_affine(name, theirs), f"{name}.weight", "mean of all classes"
    if name not in theirs:
        return None, "", ""
    value = theirs[name]
    if value.shape == own.shape:
        return value, name, ""
    if name.endswith(".u"):
        return _vectors(value, own), name, "another number of singular values"
    # What is left are linear layers that take the class vector in front of z in one of the models only.
    missing = own.shape[1] - value.shape[1]
    if missing < 0:
        return value[:, -missing:], name, "without the class vector"
    return F.pad(value, (missing, 0)), name, "the class vector begins without influence"


def _mean_affine(name: str, theirs: Tensors) -> Tensor:
    """The gain or bias of a norm that has one for each class, for a model that knows no classes."""
    weight = theirs[f"{name}.weight"]
    if "shared.weight" not in theirs:
        value = weight.mean(0)
    else:
        value = weight @ theirs["shared.weight"].mean(0)
        if (u := theirs.get(f"{name}.u")) is not None:  # divided by the largest singular value
            value = value / (F.normalize(u[0] @ weight, dim=0) @ weight.T).norm()
    return value + 1 if name.endswith("gain") else value


def _table(name: str, own: Tensor, theirs: Tensors, rows: list[int | None] | None) -> tuple[Tensor | None, str, str]:
    """The rows of a table of class vectors, or their entries in the spectral vectors of one."""
    plain = name.removesuffix(".weight")
    if plain != name and plain in theirs:  # one gain for all images
        offset = 1.0 if plain.endswith("gain") else 0.0
        return (theirs[plain] - offset).expand_as(own), plain, "the same for every class"
    if rows is None or name not in theirs:
        return None, "", "fresh" if name in theirs else ""
    value = theirs[name]
    if value.shape == own.shape and rows == list(range(own.shape[name.endswith(".u")])):
        return value, name, ""
    if name.endswith(".u"):
        return _vectors(F.normalize(_pick(value.T, rows).T, dim=1), own), name, _rows_note(rows)
    return _pick(value, rows), name, _rows_note(rows)


def _pick(table: Tensor, rows: list[int | None]) -> Tensor:
    mean = table.mean(0)
    return torch.stack([mean if row is None else table[row] for row in rows])


def _rows_note(rows: list[int | None]) -> str:
    known = sum(row is not None for row in rows)
    if not known:
        return "every class begins as the mean of the source's"
    rest = f", {len(rows) - known} as the mean of all" if known < len(rows) else ""
    return f"{known} of {len(rows)} classes from theirs{rest}"


def _vectors(value: Tensor, own: Tensor) -> Tensor:
    """Spectral vectors [values, out] for as many values as we track; further ones as they were initialised."""
    return torch.cat([value[: len(own)], own[len(value) :].to(value)])


def begin(
    generator: nn.Module, discriminator: nn.Module, path: Path, class_names: list[str], how: str
) -> tuple[dict[str, Any], list[str]]:
    """Begin from the weights at `path`: what a run records about that, and a table for the user."""
    with opened(path) as source:
        report = transfer(generator, discriminator, source, class_names, how)
    lines = [f"from    {path} ({source.format}):", *describe(report)]
    rows = match_classes(class_names, source.class_names or _numbers(source.model.classes), how)
    if generator.conditional and source.model.classes > 1 and rows and None in rows:
        unknown = [name for name, row in zip(class_names, rows, strict=True) if row is None]
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        lines.append(f"as the mean of all classes: {', '.join(unknown[:8])}{more}")
    return origin_of(source, path, report), lines


# -- report -----------------------------------------------------------------------------------------------------------


def origin_of(source: Released, path: Path, report: dict[str, list[Carried]]) -> dict[str, Any]:
    """What a run records about where it came from."""
    return {
        "source": str(path),
        "format": source.format,
        "resolution": source.model.resolution,
        "transferred": {
            side: [item.name for item in report[holds] if item.transferred]
            for side, holds in (("g", "generator"), ("d", "discriminator"))
        },
    }


def describe(report: dict[str, list[Carried]]) -> list[str]:
    """A table: what was loaded, adapted, initialised and left unused, and which parts of the models that is."""
    lines = []
    for holds, items in report.items():
        lines.append(f"{holds:<14} {'tensors':>8} {'numbers':>13}")
        groups: dict[tuple[str, str], list[Carried]] = {}
        for item in items:
            groups.setdefault((item.status, item.note), []).append(item)
        for (status, note), group in groups.items():
            numbers = sum(item.numbers for item in group)
            parts = _parts([item.name for item in group])
            what = f"{parts}: {note}" if note else parts
            lines.append(f"  {status:<12} {len(group):>8,} {numbers:>13,}   {what}")
    return lines


def _parts(names: list[str]) -> str:
    """'shared, linear, blocks 0-4, output_conv' for the names of tensors."""
    blocks = sorted({int(name.split(".")[1]) for name in names if name.startswith("blocks.")})
    span = f"blocks {blocks[0]}-{blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}" if blocks else ""
    firsts = (name.partition(".")[0] for name in names)
    return ", ".join(dict.fromkeys(span if first == "blocks" else first for first in firsts))
