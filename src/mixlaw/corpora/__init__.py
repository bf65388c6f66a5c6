"""Corpora: text turned into token files, with what is on hand of each domain."""

from mixlaw.corpora.build import add_domain
from mixlaw.corpora.corpus import Corpus, CorpusDomain
from mixlaw.corpora.demo import fetch_demo_corpus
from mixlaw.corpora.documents import Progress

__all__ = ["Corpus", "CorpusDomain", "Progress", "add_domain", "fetch_demo_corpus"]
