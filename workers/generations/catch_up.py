"""Catching up: a generation's model assigns the images that its trie lacks."""

from collections.abc import Collection, Sequence

import structlog

from model.progress import Progress, quiet
from schemas.errors import RejectInputError
from schemas.records import Assignment, ByteArray
from stream.images.store import ImageStore
from workers.generations.image_assigner import ImageAssigner, LoadAssigner, is_working
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.postings import APPENDED, append
from workers.repository.stored_images import StoredImage, missing_images
from workers.runtime.pictures import read_picture
from workers.runtime.poison import is_of_the_event

# Images assigned in one transaction, which locks them and their leaves: well under a second.
BATCH = 64

log = structlog.get_logger()


class CatchUp:
    """Assigns the images that one generation lacks; may be run again for those that came meanwhile.

    The model is loaded when the first missing image turns up, unless `assigner` is given.
    """

    def __init__(
        self,
        conn: Connection,
        generation: Generation,
        store: ImageStore,
        load: LoadAssigner,
        *,
        assigner: ImageAssigner | None = None,
    ) -> None:
        self.generation = generation
        self.assigned = 0
        """Images that got a place, in all runs."""
        self.unplaceable: set[int] = set()
        """Keys of images that it cannot take, because the store lost the picture."""
        self._conn = conn
        self._store = store
        self._load = load
        self._assigner = assigner

    def run(self, after: int = 0, until: int | None = None, progress: Progress = quiet) -> int:
        """Assign every missing image with a key above `after`, up to `until`.

        Without `until` it ends when it has caught up with the arrivals. Returns how many images got
        a place.
        """
        before = self.assigned
        with progress("catch up", 0) as bar:
            while True:
                missing = missing_images(self._conn, self.generation.id, after=after, limit=BATCH)
                if not missing:
                    break
                due = images_up_to(missing, until)
                bar.update(self.assign(placeable(due, self.unplaceable)))
                # Keys ascend: fewer images due than found means that `until` is reached.
                if len(due) < len(missing):
                    break
                after = missing[-1].image_key
        return self.assigned - before

    def missing(self, after: int = 0) -> list[StoredImage]:
        """Images above the key `after` that are still to be assigned: all, or at least a batch."""
        # The unplaceable ones are still missing in the database, so look further by their number.
        limit = BATCH + len(self.unplaceable)
        missing = missing_images(self._conn, self.generation.id, after=after, limit=limit)
        return placeable(missing, self.unplaceable)

    def assign(self, images: Sequence[StoredImage]) -> int:
        """Assign these images, in one transaction; returns how many got a place."""
        readable: list[tuple[StoredImage, ByteArray]] = []
        for image in images:
            picture = self._picture(image)
            if picture is not None:
                readable.append((image, picture))
        if not readable:
            return 0
        assigner = self._loaded_assigner()
        assignments = self._infer(assigner, readable)
        assigned = 0
        for outcome in append(self._conn, self.generation.id, assigner.shape, assignments):
            assigned += outcome.status in APPENDED
        self.assigned += assigned
        return assigned

    def _infer(
        self, assigner: ImageAssigner, images: Sequence[tuple[StoredImage, ByteArray]]
    ) -> list[Assignment]:
        """Let the model look at pictures; one that it fails on is left out, the others are not."""
        try:
            inferred = assigner.infer([picture for _, picture in images])
        except Exception as error:
            if not is_of_the_event(error):
                raise
            if len(images) > 1:
                middle = len(images) // 2
                first, second = images[:middle], images[middle:]
                return [*self._infer(assigner, first), *self._infer(assigner, second)]
            if not is_working(assigner):
                raise
            self._leave_out(images[0][0], "image not assigned: the model fails on it", error)
            return []
        return [
            looked.assignment(image.image_key)
            for looked, (image, _) in zip(inferred, images, strict=True)
        ]

    def _leave_out(self, image: StoredImage, what: str, error: Exception) -> None:
        log.error(
            what,
            image_id=image.image_id,
            generation=self.generation.id,
            reason=str(error),
        )
        self.unplaceable.add(image.image_key)

    def _picture(self, image: StoredImage) -> ByteArray | None:
        try:
            return read_picture(self._store, image.normalized_uri)
        except RejectInputError as error:
            self._leave_out(
                image, "image not assigned: the store has no readable picture of it", error
            )
            return None

    def _loaded_assigner(self) -> ImageAssigner:
        if self._assigner is None:
            self._assigner = self._load(self.generation)
        return self._assigner


def images_up_to(images: Sequence[StoredImage], until: int | None) -> list[StoredImage]:
    """The images whose key is at most `until`; all of them without a bound."""
    if until is None:
        return list(images)
    return [image for image in images if image.image_key <= until]


def placeable(images: Sequence[StoredImage], unplaceable: Collection[int]) -> list[StoredImage]:
    """The images whose key is not among the unplaceable ones, in their order."""
    return [image for image in images if image.image_key not in unplaceable]
