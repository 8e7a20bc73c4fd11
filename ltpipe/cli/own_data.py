"""From one's own data to predictions on it: init, export, predict."""

from __future__ import annotations

import argparse
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
        "a training list file, or embeddings (HDF5, npz, npy); say what they are like and write a "
        "commented experiment file for them.",
    )
    command.add_argument("data", type=Path, metavar="IMAGES_OR_FEATURES")
    command.add_argument("--output", type=Path, required=True, metavar="EXPERIMENT.yaml")
    command.add_argument("--force", action="store_true", help="replace the file if it exists")
    command.add_argument(
        "--images", type=Path, metavar="DIR", help="folder that a list file's paths start from"
    )
    command.add_argument(
        "--sample",
        type=int,
        default=2000,
        metavar="N",
        help="images to open at most; 0 opens all (default: 2000)",
    )
    command.add_argument(
        "--size", type=int, metavar="PIXELS", help="input side (default: by the images' size)"
    )
    command.add_argument(
        "--epochs", type=int, help="of stage one (default: by the number of images)"
    )
    command.add_argument(
        "--pretrained", action="store_true", help="start large networks from ImageNet's weights"
    )
    command.set_defaults(run=_init)

    command = commands.add_parser(
        "export",
        help="a trained classifier as a folder that predicts by itself",
        description="Write a bundle: weights, preprocessing, class names, thresholds and a card, "
        "for `ltpipe predict` and ltpipe.predict.load.",
    )
    command.add_argument(
        "folder", type=Path, help="results/stage2/DATASET/METHOD/DIGEST/seed0, or its parent"
    )
    command.add_argument("--output", type=Path, required=True, metavar="BUNDLE")
    command.add_argument(
        "--point",
        metavar="POINT",
        help="of a sweep: a number, or NAME=VALUE,... (default: the only one)",
    )
    command.add_argument("--seed", type=int, help="where there are several (default: the only one)")
    command.add_argument(
        "--onnx", action="store_true", help="also write model.onnx (pip install 'ltpipe[onnx]')"
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


def _init(options: argparse.Namespace) -> int:
    from ltpipe.init.advice import advise
    from ltpipe.init.survey import survey
    from ltpipe.init.writing import check_output, describe, warnings, write_experiment

    check_output(options.output, options.force)
    found = survey(options.data, options.images, options.sample)
    advice = advise(found, options.size, options.epochs, options.pretrained)
    print("\n".join(describe(found)))
    print("\n".join(f"  - {reason}" for reason in advice.reasons))
    command = write_experiment(found, advice, options.output)
    for warning in warnings(found):
        print(f"warning: {warning}")
    print(f"\nwrote {options.output}; run it with\n  {command}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from ltpipe.bundles.export import export_bundle
    from ltpipe.bundles.format import CARD

    made = export_bundle(
        options.folder,
        options.output,
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
