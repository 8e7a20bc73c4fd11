"""From one's own data to predictions on it: init, run, export, predict, mistakes."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from ltpipe.utils.errors import InputError


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = commands.add_parser(
        "init",
        help="an experiment file for images or embeddings of your own",
        description="Look at a folder of images (PATH/CLASS/*.jpg or PATH/{train,val,test}/CLASS), "
        "a table (CSV, TSV, Parquet: path, label, at will split), a list file, or embeddings "
        "(HDF5, npz, npy); say what they are like and write a commented experiment file for them. "
        "What has no test part is split.",
    )
    command.add_argument("data", type=Path, metavar="IMAGES_OR_FEATURES")
    command.add_argument("--output", type=Path, required=True, metavar="EXPERIMENT.yaml")
    command.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder that the paths of a table or a list start from",
    )
    command.add_argument(
        "--sample",
        type=int,
        default=2000,
        metavar="N",
        help="images to open at most; 0 opens all (default: 2000)",
    )
    command.add_argument(
        "--imbalance",
        type=float,
        metavar="RATIO",
        help="draw a long-tailed subset, its largest class so many times its smallest (default: "
        "all training samples)",
    )
    command.add_argument(
        "--draws", type=int, metavar="N", help="draw N such subsets; the table joins them"
    )
    command.add_argument(
        "--size", type=int, metavar="PIXELS", help="input side (default: by the images' size)"
    )
    command.add_argument(
        "--epochs", type=int, help="of a training (default: by the number of images)"
    )
    command.add_argument(
        "--train",
        action="store_true",
        help="train a network of one's own (default: a pretrained one, frozen, where there is one)",
    )
    command.add_argument(
        "--backbone", metavar="NAME", help="a network of the catalogue, see `ltpipe list backbones`"
    )
    command.add_argument(
        "--pretrained",
        action="store_true",
        help="train a large network that starts from ImageNet's weights",
    )
    command.set_defaults(run=_init)

    command = commands.add_parser(
        "run",
        help="run an experiment: from data to table and report, from any folder",
        description="Run an experiment file, as `snakemake --cores N --configfile FILE` does, with "
        "results/ in the working folder. What is there already is not made again. Further options "
        "and targets go to Snakemake as they are: `ltpipe run FILE -- stage2 -n`.",
    )
    command.add_argument("experiment", type=Path, help="the experiment file")
    command.add_argument(
        "--cores", type=int, metavar="N", help="CPU cores (default: all of this machine)"
    )
    command.add_argument(
        "-n", "--dry-run", action="store_true", help="say what would be made, and make nothing"
    )
    command.add_argument(
        "more", nargs=argparse.REMAINDER, metavar="-- ...", help="what Snakemake is told, too"
    )
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "export",
        help="a trained classifier as a folder that predicts by itself",
        description="Write a bundle: weights, preprocessing, class names, thresholds and a card, "
        "for `ltpipe predict` and ltpipe.predict.load.",
    )
    command.add_argument(
        "source",
        type=Path,
        metavar="EXPERIMENT.yaml",
        help="the experiment file, or a folder results/stage2/DATASET/METHOD/DIGEST/seed0",
    )
    command.add_argument(
        "method", nargs="?", metavar="METHOD", help="the method as the experiment calls it"
    )
    command.add_argument("--dataset", metavar="NAME", help="where the experiment has several")
    command.add_argument("--output", type=Path, required=True, metavar="BUNDLE")
    command.add_argument(
        "--point",
        metavar="POINT",
        help="of a sweep: a number, or NAME=VALUE,... (default: the only one)",
    )
    command.add_argument(
        "--seed", type=int, help="where there are several (default: an experiment's first)"
    )
    command.add_argument(
        "--onnx", action="store_true", help="also write model.onnx (pip install -e '.[onnx]')"
    )
    command.add_argument("--force", action="store_true", help="replace a bundle that is there")
    command.set_defaults(run=_export)

    command = commands.add_parser(
        "predict",
        help="the classes of images of your own, by an exported bundle",
        description="Predict the classes of image files, and of all images below folders.",
    )
    command.add_argument("bundle", type=Path, help="what `ltpipe export` wrote")
    command.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="files or folders; for a bundle without backbones a feature file, or ROLE=FILE",
    )
    command.add_argument(
        "--csv", type=Path, metavar="FILE", help="where the table goes (default: standard output)"
    )
    command.add_argument("--top", type=int, default=1, metavar="K", help="labels a row, default 1")
    command.add_argument(
        "--probabilities", action="store_true", help="also a column for every class"
    )
    command.add_argument("--batch", type=int, metavar="N", help="images at once")
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    command.add_argument(
        "--skip-bad", action="store_true", help="go on after images that can't be read; name them"
    )
    command.add_argument(
        "--adapt",
        action="store_true",
        help="estimate how frequent classes are among these images, and predict for that (bundles "
        "of method calibrated)",
    )
    command.add_argument(
        "--sets",
        type=float,
        metavar="COVERAGE",
        help="also a column with all classes that may be the true one, such that it is among them "
        "this often, as in 0.9 (bundles of method calibrated)",
    )
    command.set_defaults(run=_predict)

    command = commands.add_parser(
        "mistakes",
        help="what a method gets wrong: a table, and a page with the photos",
        description="List the test samples that a method gets wrong, with the training samples "
        "nearest to each, likely wrong labels first: mistakes.csv and the page mistakes.html.",
    )
    command.add_argument("source", type=Path, metavar="EXPERIMENT.yaml", help="what was run")
    command.add_argument("method", metavar="METHOD", help="as the experiment calls it")
    command.add_argument("--dataset", metavar="NAME", help="where the experiment has several")
    command.add_argument("--seed", type=int, help="default: the first")
    command.add_argument(
        "--point", type=int, default=0, metavar="N", help="of a sweep, by number (default: 0)"
    )
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: EXPERIMENT-METHOD-mistakes"
    )
    command.add_argument(
        "--limit", type=int, default=200, metavar="N", help="photos on the page (default: 200)"
    )
    command.set_defaults(run=_mistakes)


def _init(options: argparse.Namespace) -> int:
    from ltpipe.config.experiment import find_catalogue, read_catalogue
    from ltpipe.init.advice import Options, advise
    from ltpipe.init.survey import survey
    from ltpipe.init.writing import check_output, describe, warnings, write_experiment

    check_output(options.output, options.force)
    found = survey(options.data, options.images, options.sample, options.imbalance, options.draws)
    asked = Options(
        options.train, options.backbone, options.size, options.epochs, options.pretrained
    )
    networks = read_catalogue(find_catalogue(options.output))["backbones"]
    advice = advise(found, asked, networks)
    print("\n".join(describe(found)))
    print("\n".join(f"  - {reason}" for reason in advice.reasons))
    command = write_experiment(found, advice, options.output)
    for warning in [*warnings(found), *filter(None, [advice.seen])]:
        print(f"warning: {warning}")
    print(f"\nwrote {options.output}; run it with\n  {command}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from ltpipe.runtime.start import start_workflow

    if options.cores is not None and options.cores < 1:
        raise InputError(f"--cores {options.cores}: at least 1")
    more = options.more[1:] if options.more[:1] == ["--"] else options.more
    if options.dry_run:
        more = ["-n", *more]
    return start_workflow(options.experiment, options.cores, more)


def _export(options: argparse.Namespace) -> int:
    from ltpipe.bundles.export import export_bundle
    from ltpipe.bundles.format import CARD

    folder, label = _result(options)
    made = export_bundle(
        folder,
        options.output,
        label=label,
        point=options.point,
        seed=options.seed,
        force=options.force,
        onnx=options.onnx,
    )
    size = sum(file["bytes"] for file in made["files"].values())
    print(f"{options.output}: {made['method']['kind']}, {size / 1e6:.1f} MB")
    if made["onnx"] is not None:
        print(f"model.onnx agrees to {made['onnx']['max_difference']:.1e}")
    print(f"card: {options.output / CARD}")
    return 0


def _mistakes(options: argparse.Namespace) -> int:
    from ltpipe.evaluation.mistakes import Pictures, find_mistakes, write_mistakes
    from ltpipe.plan.choosing import find_result

    if options.limit < 1:
        raise InputError(f"--limit {options.limit}: at least 1")
    result = find_result(options.source, options.method, options.dataset, options.seed)
    label = str(result.row["label"])
    found = find_mistakes(result.folder, options.point)
    try:
        pictures = Pictures(result.dataset, result.data, result.root)
    except InputError as error:
        print(f"no photos on the page: {error}")
        pictures = None
    name = f"{result.experiment}-{label}-mistakes"
    output = options.output or Path(re.sub(r"[^\w.+-]+", "-", name))
    title = f"What {label} gets wrong on {result.row['dataset']}"
    write_mistakes(found, output, title=title, pictures=pictures, limit=options.limit)
    suspects = int(found.table["suspect"].sum())
    print(f"{len(found.table)} of {found.total} wrong, {suspects} of them perhaps mislabelled")
    print(f"table: {output / 'mistakes.csv'}\npage: {output / 'mistakes.html'}")
    return 0


def _result(options: argparse.Namespace) -> tuple[Path, str | None]:
    """Return the folder of the result that is meant, and what its experiment calls it."""
    from ltpipe.plan.choosing import find_result

    if options.source.is_dir():
        if options.method is not None:
            raise InputError(f"{options.source} is a folder: name no method, or an experiment file")
        return options.source, None
    if options.method is None:
        raise InputError(f"{options.source}: which method? `ltpipe show {options.source}` has them")
    result = find_result(options.source, options.method, options.dataset, options.seed)
    return result.folder, str(result.row["label"])


def _predict(options: argparse.Namespace) -> int:
    from ltpipe.bundles.listing import feature_files, image_files, write_table
    from ltpipe.predict import load

    predictor = load(options.bundle, options.device)
    classes = len(predictor.class_names)
    if not 1 <= options.top <= classes:
        raise InputError(f"--top {options.top}: the bundle has {classes} classes")
    bad: dict[int, str] = {}
    if predictor.takes_images:
        files = image_files(options.images)
        skipped = bad if options.skip_bad else None
        found = predictor.predict(files, batch_size=options.batch, bad=skipped)
        names = [str(path) for place, path in enumerate(files) if place not in bad]
        if not names:
            raise InputError(f"no image could be read; the first: {next(iter(bad.values()))}")
    else:
        tables = feature_files(options.images, predictor.roles)
        found = predictor.predict(tables, batch_size=options.batch)
        names = [str(row) for row in range(len(found.labels))]
    probabilities, sets = found.probabilities, None
    if options.sets is not None:
        sets = predictor.corrected().sets(probabilities, options.sets)
    if options.adapt:
        probabilities, prior = predictor.corrected().adapted(probabilities)
        shares = zip(predictor.class_names, prior, strict=True)
        listed = ", ".join(f"{name} {share:.1%}" for name, share in shares)
        print(f"ltpipe: estimated shares of the classes: {listed}", file=sys.stderr)
    write_table(
        options.csv or sys.stdout,
        names,
        predictor.class_names,
        probabilities,
        sets=sets,
        column="path" if predictor.takes_images else "row",
        top=options.top,
        full=options.probabilities,
    )
    for message in bad.values():
        print(f"ltpipe: skipped: {message}", file=sys.stderr)
    if bad:
        print(f"ltpipe: skipped {len(bad)} of {len(bad) + len(names)} images", file=sys.stderr)
    return 0
