"""Exports that stock libraries load, the model card, and the upload."""

from clip_more.hub.card import model_card
from clip_more.hub.export import export_model, export_run
from clip_more.hub.feature_export import export_feature_run
from clip_more.hub.push import push_folder
from clip_more.models.multilabel import make_multilabel, read_multilabel

__all__ = [
    "export_feature_run",
    "export_model",
    "export_run",
    "make_multilabel",
    "model_card",
    "push_folder",
    "read_multilabel",
]
