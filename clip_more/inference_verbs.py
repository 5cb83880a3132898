"""The verbs that need no training: a classifier written in other forms, and its predictions of many photos."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from clip_more.config import SECTIONS, ConfigError, TrainConfig
from clip_more.recipe import load_config
from clip_more.verbs import of_checkpoint, overrides, quiet

if TYPE_CHECKING:
    import datasets

# Keys that say how photos are read and at what speed, whatever photos they are.
PHOTO_KEYS = (
    "batch_size", "workers", "mixed_precision", "views", "worker_timeout", "processes", "process_timeout",
)  # fmt: skip


def export(options: argparse.Namespace) -> None:
    """Write a classifier without a text tower, and say how far it is from torch."""
    quiet()
    from clip_more.data.photo_list import list_photos
    from clip_more.hub.classifier_files import open_checkpoint, save_image_classifier
    from clip_more.hub.graph_files import write_graph
    from clip_more.models.image_classifier import ImageClassifier

    if options.form == "classifier" and options.photos:
        raise ValueError("--photos checks a file of --form onnx or torch; leave it out")
    module, description, _ = open_checkpoint(options.checkpoint)
    if options.form == "classifier":
        if not isinstance(module, ImageClassifier):
            raise ValueError(
                f"{options.checkpoint} has a head on features: its folder needs no text tower as it is, and predict "
                "and evaluate read it; --form onnx and --form torch write it as a graph"
            )
        save_image_classifier(options.out, module, description)
        print(f"{len(description.class_names)} classes: {options.out}")
        return
    photos = list_photos(options.photos)[0] if options.photos else []
    difference = write_graph(options.out, module, description, options.form, photos)
    seen = "photos" if photos else "random pixels"
    print(f"{len(description.class_names)} classes: {options.out}")
    print(f"largest difference of a logit from torch's, on {seen}: {difference:.1e}")


def predict(options: argparse.Namespace) -> None:
    """Write the probabilities of many photos, or go on with it."""
    config, dataset = _photos_to_predict(options)
    quiet()
    from clip_more.evaluation.prediction_parts import first_look
    from clip_more.evaluation.predictions import predict_parts, prediction_parts
    from clip_more.hub.classifier_files import open_checkpoint
    from clip_more.training.guards import on_main, shared_failure
    from clip_more.training.processes import make_accelerator

    if Path(options.out).suffix.lower() != ".parquet":
        raise ConfigError(f"--out is {options.out}; what is written is Parquet, so let the name end in .parquet")
    accelerator = make_accelerator(config)
    module, description, checkpoint = open_checkpoint(options.checkpoint)
    parts = prediction_parts(
        options.out,
        description,
        dataset,
        checkpoint=checkpoint,
        batch_size=config.batch_size,
        views=config.views,
        precision=config.mixed_precision,
    )

    def claim() -> None:
        lock.enter_context(parts.alone())
        parts.claim()

    with ExitStack() as lock:
        on_main(accelerator, claim)
        with shared_failure(accelerator):
            if parts.finished():
                accelerator.print(f"{options.out} is complete already; name another to predict anew")
            else:
                absent = parts.absent()
                left = sum(len(part.photos) for part in absent)
                before = f", {len(dataset) - left:,} of {len(dataset):,} done before" if left < len(dataset) else ""
                accelerator.print(f"{left:,} photos to predict on {accelerator.device}{before}")
                accelerator.wait_for_everyone()  # or a slow process would find parts that a fast one has just written
                predict_parts(
                    parts,
                    absent,
                    module.to(accelerator.device),
                    description,
                    dataset,
                    accelerator,
                    workers=config.workers,
                    broken=options.broken,
                    worker_timeout=config.worker_timeout,
                )
                accelerator.wait_for_everyone()
                on_main(accelerator, parts.join)
    if options.top:
        accelerator.print(first_look(options.out, description.class_names, options.top))
    accelerator.print(parts.summary())


def _photos_to_predict(options: argparse.Namespace) -> tuple[TrainConfig, datasets.Dataset]:
    """What is to be predicted, in the common form, and the config that says how."""
    if options.photos in ("train", "test"):
        config, folder = of_checkpoint(options)
        from clip_more.data.load import read_data
        from clip_more.training.run_folder import read_test_ids

        data = read_data(config, None if folder is None else read_test_ids(folder))
        return config, data.train if options.photos == "train" else data.test
    if options.recipe:
        raise ConfigError(
            f"{options.recipe} names a data set, and so does {options.photos}; give train or test instead"
        )
    given = overrides(options)
    if foreign := [
        field.name for part in SECTIONS for field in fields(part) if field.name in given.keys() - {*PHOTO_KEYS}
    ]:
        raise ConfigError(f"--{foreign[0]} is of a data set, and {options.photos} is none; give train or test instead")
    config = load_config(None, {"dataset": "folder", "data_root": options.photos} | given)
    from clip_more.data.form import make_dataset
    from clip_more.data.photo_list import list_photos

    paths, names = list_photos(options.photos)
    if options.broken == "refuse" and Path(options.photos).is_file():  # rather now than after an hour
        absent = [path for path in paths if not Path(path).is_file()]
        if absent:
            raise FileNotFoundError(
                f"{options.photos}: {len(absent)} of {len(paths)} photos are absent: {', '.join(absent[:3])}. "
                "Correct the list, or go on without them with --broken skip"
            )
    return config, make_dataset(paths, [()] * len(paths), ["photo"], image_ids=names)
