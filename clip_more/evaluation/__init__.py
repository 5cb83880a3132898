"""AP per class, mAP by frequency group, chance, results and figures."""

from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.chance import chance_map
from clip_more.evaluation.groups import format_table, markdown_table, split_map
from clip_more.evaluation.plots import plot_ap_by_frequency, plot_training
from clip_more.evaluation.results import Protocol, Results, identify

__all__ = [
    "Protocol",
    "Results",
    "average_precision",
    "chance_map",
    "format_table",
    "identify",
    "markdown_table",
    "plot_ap_by_frequency",
    "plot_training",
    "split_map",
]
