"""From image files to texts: cached, resumable, and shared with other processes that work on the same cache."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pl_fed.isa.extractor import ExtractionError, Extractor, PromptedExtractor, TransientExtractionError, check_mode
from pl_fed.isa.images import ImageFile, ImageReadError, LoadedImage, read_image
from pl_fed.isa.story import Mode
from pl_fed.isa.text_cache import CachedText, TextCache, cache_key

_POLL_SECONDS = 0.2
_MAX_FAILURES = 3  # in a row, each after its own retries: then nobody is there


@dataclass(frozen=True)
class Extracted:
    """What became of one image.

    Args:
        file: The image.
        text: What the extractor wrote; empty if there is an error.
        error: Why there is no text; empty if there is one.
        note: What a reader should know, for example that a content was seen before.
        image: The image, unless it cannot be read.
    """

    file: ImageFile
    text: str = ""
    error: str = ""
    note: str = ""
    image: LoadedImage | None = None


class Extraction:
    """Runs an extractor over images.

    Args:
        extractor: What writes the texts.
        mode: How it is asked.
        cache: Where texts are kept; None keeps none.
        retry_errors: Whether images that failed before are tried again.
    """

    def __init__(self, extractor: Extractor, mode: Mode, cache: TextCache | None, retry_errors: bool = False) -> None:
        check_mode(mode)
        self.extractor, self.mode = extractor, mode
        self.cache = cache if extractor.cacheable else None
        self.retry_errors = retry_errors
        self.num_extracted = 0
        self._failures = 0  # transient ones in a row
        self._seen: dict[str, str] = {}

    def run(self, files: Sequence[ImageFile]) -> Iterator[tuple[int, Extracted]]:
        """Yield the place of each image in `files`, and what became of it; those that others work on come last.

        Raises:
            FederatedConfigError: If the extractor cannot work at all.
        """
        settings = {**self.extractor.settings, "mode": self.mode}
        waiting: list[tuple[int, ImageFile]] = []
        for i, file in enumerate(files):
            found = self._one(file, settings)
            if found is None:
                waiting.append((i, file))
            else:
                yield i, found
        for i, file in waiting:
            while (found := self._one(file, settings)) is None:
                time.sleep(_POLL_SECONDS)
            yield i, found

    def count_new(self, files: Sequence[ImageFile]) -> int:
        """Return how many different images the extractor would be asked about."""
        settings, new = {**self.extractor.settings, "mode": self.mode}, set()
        for file in files:
            try:
                sha256 = read_image(file).sha256
            except ImageReadError:
                continue
            if self.cache is None or self._known(cache_key(sha256, settings)) is None:
                new.add(sha256)
        return len(new)

    def _one(self, file: ImageFile, settings: Mapping[str, Any]) -> Extracted | None:
        """Return what became of an image; None if another process is at it."""
        try:
            image = read_image(file)
        except ImageReadError as error:
            return Extracted(file, error=str(error))
        if self.cache is None:
            return self._result(image, self._extract(image)[0])
        key = cache_key(image.sha256, settings)
        known = self._known(key)
        if known is None:
            if not self.cache.claim(key):
                return None
            try:
                known = self._known(key)  # another process may have finished it just now
                if known is None:
                    known, lasting = self._extract(image)
                    if lasting:
                        self.cache.put(key, image.sha256, settings, known)
            finally:
                self.cache.release(key)
        return self._result(image, known)

    def _known(self, key: str) -> CachedText | None:
        assert self.cache is not None, "only asked with a cache"
        known = self.cache.get(key)
        return None if known is not None and known.error is not None and self.retry_errors else known

    def _extract(self, image: LoadedImage) -> tuple[CachedText, bool]:
        """Return a result, and whether the next run may rely on it."""
        if self._failures >= _MAX_FAILURES:
            return CachedText(error=f"not tried, since the {_MAX_FAILURES} images before got no answer"), False
        try:
            text = self._ask(image)
        except TransientExtractionError as error:
            self._failures += 1
            return CachedText(error=str(error)), False
        except ExtractionError as error:
            self._failures = 0
            return CachedText(error=str(error)), True
        self._failures = 0
        self.num_extracted += 1
        return CachedText(text), True

    def _ask(self, image: LoadedImage) -> str:
        if not isinstance(self.extractor, PromptedExtractor):
            return self.extractor.extract(image, self.mode)
        with self.extractor.keeping(self.cache):
            return self.extractor.extract(image, self.mode)

    def _result(self, image: LoadedImage, found: CachedText) -> Extracted:
        twin = self._seen.setdefault(image.sha256, image.file.name)
        notes = [image.note] if image.note else []
        notes += [f"the same content as {twin}"] if twin != image.file.name else []
        return Extracted(image.file, found.text, found.error or "", "; ".join(notes), image)


def with_progress(found: Iterable[tuple[int, Extracted]], total: int) -> Iterator[tuple[int, Extracted]]:
    """Pass results on and show how many there are and how long the rest will take, on a terminal only.

    Args:
        found: The results.
        total: Number of images.
    """
    console = Console(stderr=True)
    columns = (TextColumn("Images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=total)
        for item in found:
            progress.advance(task)
            yield item
