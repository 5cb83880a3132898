"""What each verb of the command line takes: its options, its help, and examples."""

from __future__ import annotations

from typing import Any

from clip_more import inference_verbs, stage2_verb, verbs
from clip_more.options import DATA, JUDGE, add_recipe, add_verb


def add_verbs(choices: Any) -> None:
    """Add every verb to the subparsers of `clip-more`, in the order of `--help`."""
    for add in (
        _train, _stage2, _stats, _prepare, _long_tail, _evaluate, _zero_shot, _export, _predict, _runs, _compare,
        _pretrain, _demo,
    ):  # fmt: skip
        add(choices)


def _train(choices: Any) -> None:
    train = add_verb(
        choices,
        "train",
        verbs.train,
        "fine-tune a CLIP by a recipe; naming the same run again resumes it",
        "clip-more train recipes/voc_mlt/bce_more.yaml --data_root ~/data --lr 2e-6\n"
        "clip-more train recipes/own_photos/ce.yaml --data_root ~/mine --model timm:resnet50/pretrained --head linear\n"
        "accelerate launch --num_processes 4 -m clip_more.cli train recipes/voc_mlt/bce_more.yaml --processes 4",
    )
    add_recipe(train)


def _stage2(choices: Any) -> None:
    stage2 = add_verb(
        choices,
        "stage2",
        stage2_verb.stage2,
        "make a classifier anew on the frozen features of a finished run: cRT, NCM, tau-norm, LWS, MaxNorm, logit "
        "adjustment",
        "clip-more stage2 runs/digits_lt-ce --method crt\n"
        "clip-more stage2 runs/cifar100_lt-weight_decay --method maxnorm_cb\n"
        "clip-more evaluate runs/digits_lt-ce/stage2/crt",
    )
    stage2_verb.add_stage2(stage2)


def _stats(choices: Any) -> None:
    stats = add_verb(
        choices,
        "stats",
        verbs.stats,
        "print and plot the class profile of a data set: counts, groups, imbalance, labels a photo, co-occurrence",
        "clip-more stats recipes/voc_mlt/bce.yaml --data_root ~/data --out profile\n"
        "clip-more stats --dataset folder --data_root ~/photos",
    )
    stats.add_argument("--out", metavar="FOLDER", help="write statistics.json and class_profile.png there")
    add_recipe(stats, DATA)


def _prepare(choices: Any) -> None:
    prepare = add_verb(
        choices,
        "prepare",
        verbs.prepare,
        "decode, check and resize all photos of a data set once, into an Arrow data set that loads fast",
        "clip-more prepare recipes/coco/bce.yaml --data_root ~/coco --out ~/coco_256\n"
        "clip-more train recipes/coco/bce.yaml --dataset prepared --data_root ~/coco_256",
    )
    prepare.add_argument("--out", required=True, metavar="FOLDER", help="of the prepared set; naming it again goes on")
    prepare.add_argument(
        "--short_side", type=int, default=256, metavar="PIXELS", help="shorter side of a stored photo (default: 256)"
    )
    prepare.add_argument(
        "--store",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw pixels, the fastest, about 265 kB a photo; or JPEG of quality 95, about a seventh (default: raw)",
    )
    add_recipe(prepare, DATA)


def _long_tail(choices: Any) -> None:
    long_tail = add_verb(
        choices,
        "long-tail",
        verbs.long_tail,
        "subsample a data set to a long tail, as list files that anybody can use",
        "clip-more long-tail recipes/coco/bce.yaml --data_root ~/coco --long_tail pareto --out lists\n"
        "clip-more long-tail --dataset cifar100 --data_root ~/cifar --task single_label --long_tail exponential "
        "--out lists",
    )
    long_tail.add_argument("--out", required=True, metavar="FOLDER", help="of train.txt, test.txt and classes.txt")
    add_recipe(long_tail, DATA)


def _evaluate(choices: Any) -> None:
    evaluate = add_verb(
        choices,
        "evaluate",
        verbs.evaluate,
        "judge a merged checkpoint: AP by class, mAP by group",
        "clip-more evaluate runs/voc_mlt-bce_more --published voc_mlt\n"
        "clip-more evaluate path/to/merged recipes/voc_mlt/bce.yaml --data_root ~/data --score softmax",
    )
    evaluate.add_argument(
        "checkpoint", help="a run, or a folder with multilabel.json or head.json (then a recipe must follow)"
    )
    evaluate.add_argument("--published", choices=("voc_mlt", "coco_mlt"), help="print published figures beside")
    evaluate.add_argument("--json", metavar="FILE", help="write the results there too")
    add_recipe(evaluate, JUDGE)


def _zero_shot(choices: Any) -> None:
    zero_shot = add_verb(
        choices,
        "zero-shot",
        verbs.zero_shot,
        "compare models by prompts: untouched CLIP, general part, merged model, others; prompt sets; unseen classes",
        "clip-more zero-shot runs/voc_mlt-bce_more\n"
        "clip-more zero-shot runs/voc_mlt-bce_more --prompts names,plain,clip7 --scores logit,softmax --out report\n"
        "clip-more zero-shot runs/voc_mlt-bce_more --alphas 0,0.25,0.5,0.75,1 --out report\n"
        "clip-more zero-shot openai/clip-vit-base-patch16 recipes/voc_mlt/bce.yaml --data_root ~/data",
    )
    zero_shot.add_argument("checkpoint", help="a finished run, or any CLIP (then a recipe must follow)")
    zero_shot.add_argument("--others", metavar="MODEL,...", help="more CLIPs to set beside it: folders or Hub ids")
    zero_shot.add_argument(
        "--prompts",
        metavar="SET,...",
        help="prompt sets: recipe, names, plain, ensemble, clip7, clip80, files of templates, or templates with {}; "
        "with a ; between them, or at the end, where one holds a comma; the first also serves --alphas and --unseen "
        "(default: recipe)",
    )
    zero_shot.add_argument("--scores", metavar="SCORE,...", help="logit, sigmoid, softmax; the recipe's own without it")
    zero_shot.add_argument(
        "--alphas", metavar="A,...", help="WiSE-FT: interpolate untouched and merged weights at these points"
    )
    zero_shot.add_argument(
        "--unseen", metavar="NAME,...|FILE", help="classes that training never saw: mAP before and after"
    )
    zero_shot.add_argument(
        "--on",
        choices=("test", "held_out"),
        default="test",
        help="photos judged: test, or those the run held out of train, to choose alpha or prompts on (default: test)",
    )
    zero_shot.add_argument("--out", metavar="FOLDER", help="write the comparison and its figures there")
    zero_shot.add_argument("--json", metavar="FILE", help="write the numbers alone there")
    add_recipe(zero_shot, JUDGE)


def _export(choices: Any) -> None:
    export = add_verb(
        choices,
        "export",
        inference_verbs.export,
        "write a classifier that needs no text tower: a folder, or one ONNX or .pt2 file, checked against torch",
        "clip-more export runs/voc_mlt-bce_more --form classifier --out voc_classifier\n"
        "clip-more export runs/voc_mlt-bce_more --form onnx --out voc.onnx --photos ~/photos",
    )
    export.add_argument(
        "checkpoint", help="a finished run, a folder with multilabel.json or head.json, or an exported classifier"
    )
    export.add_argument(
        "--form",
        choices=("classifier", "onnx", "torch"),
        required=True,
        help="classifier: a folder of safetensors that stock transformers reads; onnx: one file for ONNX Runtime; "
        "torch: one .pt2 file of torch.export",
    )
    export.add_argument("--out", required=True, metavar="PATH", help="folder of the classifier, or .onnx or .pt2 file")
    export.add_argument(
        "--photos", metavar="FOLDER|FILE", help="check the file on 8 of these photos; on random pixels without it"
    )


def _predict(choices: Any) -> None:
    predict = add_verb(
        choices,
        "predict",
        inference_verbs.predict,
        "write the probability of every class for many photos into a Parquet file; naming it again goes on",
        "clip-more predict runs/voc_mlt-bce_more ~/photos --out predictions.parquet --top 3\n"
        "clip-more predict voc_classifier list.txt --out predictions.parquet --broken skip --workers 8\n"
        "clip-more predict runs/voc_mlt-bce_more test --out test.parquet\n"
        "clip-more predict voc_classifier train recipes/voc_mlt/bce.yaml --data_root ~/data --out train.parquet\n"
        "accelerate launch --num_processes 4 -m clip_more.cli predict voc_classifier ~/photos --out p.parquet",
    )
    predict.add_argument(
        "checkpoint", help="a finished run, a folder with multilabel.json or head.json, or an exported classifier"
    )
    predict.add_argument(
        "photos",
        help="a folder, read at any depth; a text file with one path a line, relative to that file; or train or test: "
        "that split of a data set (a run's own, or a recipe follows; ./test is a folder)",
    )
    predict.add_argument(
        "--out", required=True, metavar="FILE", help="Parquet; parts lie in FILE.parts until it is done"
    )
    predict.add_argument(
        "--broken",
        choices=("refuse", "skip"),
        default="refuse",
        help="photos that cannot be read: stop at the first, naming it, or list them in FILE.skipped.csv and go on "
        "(default: refuse)",
    )
    predict.add_argument(
        "--top", type=int, default=0, metavar="K", help="print the K likeliest classes of the first ten photos"
    )
    add_recipe(predict, DATA, inference_verbs.PHOTO_KEYS)


def _runs(choices: Any) -> None:
    runs = add_verb(
        choices,
        "runs",
        verbs.runs,
        "list runs: finished, running, stopped, interrupted, failed or damaged, how far, and their mAP by group",
        "clip-more runs\nclip-more runs /data/runs --json runs.json",
    )
    runs.add_argument("folder", nargs="?", default="runs", help="that holds the runs (default: runs)")
    runs.add_argument("--json", metavar="FILE", help="write the list there too")


def _compare(choices: Any) -> None:
    compare = add_verb(
        choices,
        "compare",
        verbs.compare,
        "set two results side by side, photo by photo: is the difference of a group more than noise?",
        "clip-more compare runs/voc_mlt-bce runs/voc_mlt-bce_more\n"
        "clip-more compare runs/digits_lt-ce runs/digits_lt-ce/stage2/crt",
    )
    compare.add_argument(
        "first", help="a run, a method of its stage2/, or a results.json: what the other is compared with"
    )
    compare.add_argument("second", help="likewise")
    compare.add_argument(
        "--rows",
        metavar="ROW,ROW",
        help="rows of the two results: zero-shot, general, merged; joint or the method of a second stage (default: "
        "merged of a run, the method of a second stage)",
    )
    compare.add_argument("--draws", type=int, default=1000, help="resamples of the test photos (default: 1000)")
    compare.add_argument("--json", metavar="FILE", help="write the comparison there")


def _pretrain(choices: Any) -> None:
    pretrain = add_verb(
        choices,
        "pretrain",
        verbs.pretrain,
        "train a small CLIP from random weights on class prompts or label sentences",
        "clip-more pretrain recipes/digits_mlt/pretrain.yaml --out runs/my_digits_clip",
    )
    add_recipe(pretrain)
    pretrain.usage = f"{pretrain.usage} --out FOLDER"
    group = pretrain.add_argument_group("Pretraining")
    group.add_argument("--out", required=True, metavar="FOLDER", help="of the new checkpoint; must not exist yet")
    group.add_argument(
        "--objective",
        choices=("sigmoid", "contrastive"),
        default="sigmoid",
        help="pairwise sigmoid loss over class prompts, or contrastive loss on label sentences (default: sigmoid)",
    )
    group.add_argument("--steps", type=int, default=3000, help="optimiser steps (default: 3000)")
    group.add_argument("--pretrain_batch", type=int, default=128, help="photos a process and step (default: 128)")
    group.add_argument("--pretrain_lr", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    group.add_argument("--half", action="store_true", help="save weights in fp16")


def _demo(choices: Any) -> None:
    demo = add_verb(
        choices, "demo", verbs.demo, "BCE, ASL and BCE + MORE on handwritten digits, in minutes, no download"
    )
    demo.add_argument("--output_dir", default="runs", metavar="FOLDER", help="of the demo's runs (default: runs)")
