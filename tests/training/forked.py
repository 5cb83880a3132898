"""Imported by the server that forks processes: what they would otherwise make anew, each of them."""

from clip_more.models import tokenizer
from clip_more.models.clip import load_clip
from tests.training.one_tokenizer import shared_tokenizer

tokenizer.clip_tokenizer = shared_tokenizer()
load_clip("tiny")
