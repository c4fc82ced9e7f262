"""biggan-train (also train.py): train a model, or continue where it was."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
from pathlib import Path

from biggan.cli import Parser, UsageError, run_command
from biggan.cli.runs import run_directory
from biggan.config import (
    Config,
    ConfigError,
    RunConfig,
    TransferConfig,
    config_from_dict,
    load_config,
    preset_names,
    read_config,
)

DATA = Path("data")


def main(argv: list[str] | None = None) -> None:
    run_command(train, make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="biggan-train",
        description="Train a class-conditional GAN. The same command line continues its run where it was.",
        epilog=f"Presets: {', '.join(preset_names())}.",
    )
    add = parser.add_argument
    add("--config", metavar="NAME|FILE", help="a preset, or a TOML file like a run's config.toml")
    add("--data", nargs="+", metavar="PATH", help="data set files or folders of class folders; default: data/*.h5")
    add("--run", metavar="DIR", help="run directory; default: weights/<config>-<data>")
    add("--fresh", action="store_true", help="start another run instead of continuing")
    add("--set", action="append", default=[], metavar="S.KEY=V", help="override a setting, e.g. train.seed=1")
    add("--batch-size", type=int, metavar="N", help="real images per discriminator update (train.batch_size)")
    add("--micro-batch", type=int, metavar="N", help="images per device and pass (train.micro_batch)")
    add("--d-accumulation", type=int, metavar="K", help="micro-batches per device in a discriminator update")
    add("--g-accumulation", type=int, metavar="K", help="the same for the generator")
    add("--save-every", metavar="N", help="when to save: 500000 (real images), or 20min; replaces the config's cadence")
    add(
        "--init-from",
        metavar="PATH",
        help="begin a new run from these weights (run, directory or file)",
    )
    add("--freeze-g", type=int, metavar="N", help="train D alone for N real images first (transfer.freeze_g)")
    add("--rollback", type=int, metavar="STEP", help="first go back to the checkpoint after STEP generator updates")
    add("--new-order", action="store_true", help="go on with other data or another seed; the epoch stays incomplete")
    add("--checkpointing", action="store_true", help="less memory for more time (train.checkpointing)")
    add("--dry-run", action="store_true", help="resolve and check everything, print it, and stop")
    add("--audit", metavar="RUN", help="replay the recorded history of a run and report on every epoch, then stop")
    return parser


def train(args: argparse.Namespace) -> int:
    if args.audit:
        return audit(Path(args.audit))
    config, name = resolve_config(args)
    # Imported late, so that a mistyped setting is reported before torch has loaded.
    from biggan.data.dataset import find_data_file, open_data

    paths = [Path(p) for p in config.data.path] or [find_data_file(DATA, config.model.resolution)]
    data = open_data(paths, resolution=config.model.resolution, weights=config.data.weights or None)
    config = resolve_classes(config, data)
    run = Path(args.run) if args.run else run_directory(name, data.name, data.resolution, args.fresh)
    if args.run and args.fresh and run.exists():
        raise UsageError(f"--run {run} exists already; --fresh needs a new name")
    if args.dry_run:
        print(config.to_toml())
        print(summary(config, data, run))
        if config.transfer.source:
            from biggan.models import build_discriminator, build_generator

            models = build_generator(config.model), build_discriminator(config.model)
            print("\n".join(begin_from_weights(config, *models, data)[1]))
        return 0
    return start(config, data, run, args)


def resolve_config(args: argparse.Namespace) -> tuple[Config, str]:
    """The config that the command line asks for, and the name that a run of it goes by."""
    source = args.config
    if source is None and args.run and (Path(args.run) / "config.toml").exists():
        source = str(Path(args.run) / "config.toml")
    if args.freeze_g is not None:
        args.set.append(f"transfer.freeze_g={args.freeze_g}")
    if args.init_from:
        config, name = config_from_weights(source, args)
    elif source is None:
        raise ConfigError(f"--config is missing; give a TOML file or one of: {', '.join(preset_names())}")
    else:
        config, name = load_config(source, args.set), Path(source).stem
    if args.data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=tuple(args.data)))
    if args.checkpointing:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpointing=True))
    if args.save_every:
        config = dataclasses.replace(config, run=save_cadence(config.run, args.save_every))
    return apply_batch_flags(config, args, int(os.environ.get("WORLD_SIZE", "1"))), name


def config_from_weights(source: str | None, args: argparse.Namespace) -> tuple[Config, str]:
    """The config of a run with --init-from: the architecture of the weights, the resolution of the data."""
    from biggan.data.dataset import open_data
    from biggan.released.transfer import starting_config

    path = Path(args.init_from)
    files = [Path(p) for p in args.data or [] if Path(p).is_file()]
    resolution = open_data(files[0], verify=False).resolution if files else None
    config = starting_config(read_config(source, args.set), path, resolution, complete=source is not None)
    place = path.parent.parent if path.parent.name == "checkpoints" else path
    return config, Path(source).stem if source else place.stem


def save_cadence(run: RunConfig, text: str) -> RunConfig:
    """Saving every so many real images, or every so many minutes, and for no other reason."""
    match = re.fullmatch(r"([\d_]+|\d*\.?\d+)\s*(min)?", text)
    amount = float(match[1]) if match else 0
    if not amount or (not match[2] and amount != int(amount)):
        raise UsageError(f"--save-every {text}: it must be a number of real images, or minutes such as 20min")
    minutes = amount if match[2] else 0.0
    return dataclasses.replace(run, save_every=0, save_images=0 if minutes else int(amount), save_minutes=minutes)


def apply_batch_flags(config: Config, args: argparse.Namespace, processes: int) -> Config:
    """batch = accumulation x micro-batch x processes: an accumulation count sets the batch, the micro-batch stays."""
    given = {flag: getattr(args, flag) for flag in ("batch_size", "micro_batch", "d_accumulation", "g_accumulation")}
    for flag, value in given.items():
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: it must be at least 1")
    if args.batch_size and (args.d_accumulation or args.g_accumulation):
        raise UsageError(
            "--batch-size and an accumulation count say the same thing twice (batch = accumulation x micro-batch x "
            "processes); give one of them, and --micro-batch if need be"
        )
    micro = args.micro_batch or config.train.micro_batch
    changes = {"micro_batch": micro}
    if args.batch_size:
        changes["batch_size"] = changes["g_batch_size"] = args.batch_size
    if args.d_accumulation:
        changes["batch_size"] = args.d_accumulation * micro * processes
    if args.g_accumulation:
        changes["g_batch_size"] = args.g_accumulation * micro * processes
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def resolve_classes(config: Config, data) -> Config:
    classes = len(data.class_names)
    if config.model.classes not in (0, 1, classes):
        raise ConfigError(f"model.classes = {config.model.classes}: {data.name} has {classes}; leave it at 0")
    return config.with_model(classes=config.model.classes or classes)


def summary(config: Config, data, run: Path) -> str:
    counts = data.class_counts
    train = config.train
    classes = "1 class" if len(counts) == 1 else f"{len(counts)} classes of {_range(counts.min(), counts.max())}"
    return (
        f"data   {data.name}: {len(data):,} images, {classes}\n"
        f"run    {run}\n"
        f"batch  D {train.batch_size} and G {train.g_batch_size}, in micro-batches of {train.micro_batch}; "
        f"{train.d_steps} D update(s) per G update; {train.images:,} images in all"
    )


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def start(config: Config, data, run: Path, args: argparse.Namespace) -> int:
    """Train in all processes of a launch; the first holds the lock and decides where to go on."""
    from biggan.training.distributed import Group, make_accelerator
    from biggan.training.runlog import exclusive

    accelerator = make_accelerator()
    group = Group.of(accelerator)
    run = Path(group.from_first(str(run)))
    # The first machine decides, for micro-batches must be the same everywhere.
    if not micro_batch_is_given(args):
        config = group.from_first(fit_micro_batch(config, accelerator))
    with exclusive(run) if group.first else contextlib.nullcontext():
        checkpoint = group.from_first(choose_checkpoint(run, args.rollback) if group.first else None)
        return run_training(config, data, run, accelerator, checkpoint, args)


def micro_batch_is_given(args: argparse.Namespace) -> bool:
    """Whether the command line settles the micro-batch, itself or as the unit that accumulation counts are in."""
    overridden = any(text.replace(" ", "").startswith("train.micro_batch=") for text in args.set)
    return bool(overridden or args.micro_batch or args.d_accumulation or args.g_accumulation)


def fit_micro_batch(config: Config, accelerator) -> Config:
    """The config with a smaller micro-batch where the preset's does not fit into this machine's memory."""
    from biggan.training.memory import fitting_micro_batch
    from biggan.training.precision import resolve_precision

    device = accelerator.device
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    size = fitting_micro_batch(config, device, resolve_precision(config.train.precision, device), here)
    if size == config.train.micro_batch:
        return config
    if accelerator.is_main_process:
        print(f"micro-batches of {config.train.micro_batch} do not fit into this machine's memory; taking {size}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=size))


def choose_checkpoint(run: Path, rollback: int | None) -> Path | None:
    """The newest whole checkpoint; with `rollback` that of the given update, and newer ones are set aside."""
    from biggan.training.checkpoint import find_checkpoint, newest_checkpoint, remove_unfinished, set_aside_after

    remove_unfinished(run)
    if rollback is None:
        return newest_checkpoint(run, report=lambda text: print(f"warning: {text}"))
    checkpoint = find_checkpoint(run, rollback)
    for path in set_aside_after(run, checkpoint):
        print(f"set aside {path}")
    return checkpoint


def run_training(
    config: Config, data, run: Path, accelerator, checkpoint: Path | None, args: argparse.Namespace
) -> int:
    from biggan.sampling.sheets import SampleSheet
    from biggan.training.checkpoint import read_state, replace_text
    from biggan.training.runlog import RunLog, Silent
    from biggan.training.trainer import Trainer

    say = functools.partial(print, flush=True) if accelerator.is_main_process else lambda text: None
    state = read_state(checkpoint) if checkpoint else None
    if state:
        check_model(config, state, checkpoint)
        config = keep_origin(config, state, checkpoint)
    sheet = SampleSheet(config.run.sample_classes, config.run.sample_rows, config.run.standing_images, data.class_names)
    trainer = Trainer(config, data, run, accelerator, draw=sheet)
    table: list[str] = []
    if state:
        trainer.restore(checkpoint, state, override=args.new_order)
    elif config.transfer.source:
        networks = trainer.networks
        origin, table = begin_from_weights(config, networks.generator, networks.discriminator, data)
        trainer.begin_from(origin)
    if accelerator.is_main_process:
        replace_text(run / "config.toml", config.to_toml())
    say(config.to_toml())
    say(summary(config, data, run))
    say(describe_machine(trainer))
    if table:
        say("\n".join(table))
    if state:
        say(f"resuming {checkpoint}: {trainer.updates:,} updates, {trainer.images_seen:,} images seen")
    if trainer.change:
        say(trainer.change)
    if trainer.finished:
        say(f"{run} is finished; to go on, raise train.images with --set train.images=N")
        return 0
    log = RunLog(run, config.train.images, trainer.images_seen) if accelerator.is_main_process else Silent()
    with contextlib.closing(log):
        place = {"update": trainer.updates, "images_seen": trainer.images_seen}
        if trainer.origin and not state:
            log.event("transfer", **place, **trainer.origin)
        rolled_back = args.rollback is not None
        log.event("start", **place, rolled_back=rolled_back, processes=trainer.processes, config=config.to_dict())
        finished = trainer.train(log)
        log.event("end" if finished else "stop", update=trainer.updates, images_seen=trainer.images_seen)
    if finished:
        say(f"finished: {trainer.images_seen:,} images. Pictures in {run / 'samples'}; next: sample.py --run {run}")
    else:
        say(f"stopped and saved at {trainer.images_seen:,} images; the same command line continues here")
    accelerator.end_training()
    return 0


def check_model(config: Config, state: dict, checkpoint: Path) -> None:
    """A run keeps its architecture."""
    before = config_from_dict({"model": state["config"]["model"]}).to_dict()["model"]  # with settings that are newer
    if before["classes"] != config.model.classes:
        raise ConfigError(
            f"the data has {config.model.classes} classes, but {checkpoint} was trained with {before['classes']}; "
            f"start another run from its weights with --init-from {checkpoint.parent.parent} --run NAME"
        )
    for key, value in config.to_dict()["model"].items():
        if before[key] != value:
            raise ConfigError(
                f"model.{key} = {value!r}: {checkpoint} was trained with {before[key]!r}; a run keeps its "
                "architecture, so set it back, or start another run with --fresh"
            )


def keep_origin(config: Config, state: dict, checkpoint: Path) -> Config:
    """A run keeps what it began from; the settings that go with it need not be given again."""
    before = state["config"].get("transfer", {})
    if not config.transfer.source and before.get("source"):
        return dataclasses.replace(config, transfer=TransferConfig(**before))
    if config.transfer.source != before.get("source", ""):
        began = f"began from {before['source']}" if before.get("source") else "began from random weights"
        raise ConfigError(
            f"--init-from {config.transfer.source}: {checkpoint} is of a run that {began}; start another with --fresh"
        )
    return config


def begin_from_weights(config: Config, generator, discriminator, data) -> tuple[dict, list[str]]:
    """Put the weights that --init-from names into new networks; what to record, and a table of what was done."""
    from biggan.released.transfer import begin

    source, classes = Path(config.transfer.source), config.transfer.classes
    return begin(generator, discriminator, source, list(data.class_names), classes)


def describe_machine(trainer) -> str:
    count = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in trainer.models.items()}
    return (
        f"model  G {count['generator']:.2f} M and D {count['discriminator']:.2f} M parameters\n"
        f"on     {trainer.processes} process(es), {trainer.device}, {trainer.precision}"
    )


def audit(run: Path) -> int:
    from biggan.data.audit import audit_run

    report = audit_run(run)
    print("\n".join(report.lines()))
    return 0 if report.ok else 1


if __name__ == "__main__":
    main()
