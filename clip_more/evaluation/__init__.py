"""AP per class, mAP by frequency group, intervals, comparisons, chance, results and figures."""

from clip_more.evaluation.average_precision import average_precision, to_scores
from clip_more.evaluation.bootstrap import bootstrap_maps, paired_difference
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.compare import Comparison, compare
from clip_more.evaluation.groups import format_table, markdown_table, split_map
from clip_more.evaluation.multi_label import f1_at_k, micro_average_precision, precision_recall_f1
from clip_more.evaluation.plots import plot_ap_by_frequency
from clip_more.evaluation.protocol import Protocol
from clip_more.evaluation.published import published_table
from clip_more.evaluation.results import Results, identify
from clip_more.evaluation.run_plots import plot_training
from clip_more.evaluation.scores import load_scores, save_scores
from clip_more.evaluation.single_label import top1_by_group
from clip_more.evaluation.thresholds import fit_thresholds

__all__ = [
    "Comparison",
    "Protocol",
    "Results",
    "average_precision",
    "bootstrap_maps",
    "chance_map",
    "compare",
    "f1_at_k",
    "fit_thresholds",
    "format_table",
    "identify",
    "load_scores",
    "markdown_table",
    "micro_average_precision",
    "paired_difference",
    "plot_ap_by_frequency",
    "plot_training",
    "precision_recall_f1",
    "published_table",
    "save_scores",
    "split_map",
    "to_scores",
    "top1_by_group",
]
