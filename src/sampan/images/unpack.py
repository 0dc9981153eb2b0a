"""From layers as blobs to layers as the snapshotter has them: several at once, each checked against its diff id.

    blob ──► decompress ──► hash (diff id) ──► snapshotter.stage()     one thread a layer
                                                    │ all staged and every diff id right
                                                    ▼
                                               publish(chain id, parent), bottom first

Nothing has a name before it was verified, and a layer that is there already is not read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sampan.errors import InvalidArgument
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Image
from sampan.images.progress import Meter, Progress, short, silent
from sampan.spec.image import LAYER_COMPRESSION, Descriptor
from sampan.storage import decompress
from sampan.storage.snapshots import Staged, chain_ids
from sampan.storage.streams import HashingReader, ReadAhead
from sampan.storage.tar import Readable

WORKERS = 3


class Metered:
    """Passes a stream through, counting for the progress and stopping when cancelled."""

    def __init__(self, source: Readable, meter: Meter | None, cancel: Cancel) -> None:
        self._source = source
        self._meter = meter
        self._cancel = cancel

    def read(self, size: int, /) -> bytes:
        self._cancel.check()
        data = self._source.read(size)
        if self._meter is not None:
            self._meter.add(len(data))
        return data


def ensure(catalog: Catalog, image: Image, *, progress: Progress = silent) -> None:
    """Every layer of the image, unpacked: does nothing when they are."""
    if image.chain_id and not catalog.snapshots.exists(image.chain_id):
        unpack(catalog, image.manifest.layers, image.diff_ids, progress=progress)


def unpack(
    catalog: Catalog,
    layers: Sequence[Descriptor],
    diff_ids: Sequence[str],
    *,
    progress: Progress = silent,
    action: str = "Loading layer",
    cancel: Cancel | None = None,
) -> None:
    """Unpack the layers that are not there yet. Their blobs are in the store."""
    ids = chain_ids(diff_ids)
    missing = [n for n, chain_id in enumerate(ids) if not catalog.snapshots.exists(chain_id)]
    if not missing:
        return

    def stage_one(number: int) -> Staged:
        layer = layers[number]
        meter = Meter(progress, action, short(diff_ids[number]), layer.size)
        return stage_blob(catalog, layer, ids[number], diff_ids[number], meter, inner)

    with (
        (cancel or Cancel.never()).child() as inner,
        ThreadPoolExecutor(min(WORKERS, len(missing)), thread_name_prefix="unpack") as pool,
    ):
        futures = {n: pool.submit(stage_one, n) for n in missing}
        publish(futures, ids, inner)


def publish(
    futures: Mapping[int, Future[Staged] | Future[Staged | None]],
    ids: Sequence[str],
    cancel: Cancel,
) -> None:
    """Name the staged layers bottom first. After a failure the others are stopped and nothing more is named."""
    failure: BaseException | None = None
    for number, future in futures.items():
        try:
            staged = future.result()
            if staged is None:
                continue  # the snapshotter had it, only the blob was missing
            with staged:
                if failure is None:
                    staged.publish(ids[number], ids[number - 1] if number else None)
        except BaseException as error:  # noqa: BLE001 -- raised below, when every thread has ended
            failure = failure or error
            cancel.set()
    if failure is not None:
        raise failure


def stage_blob(
    catalog: Catalog,
    layer: Descriptor,
    chain_id: str,
    diff_id: str,
    meter: Meter | None,
    cancel: Cancel,
) -> Staged:
    """One layer of the store. Plain tars may be shared by the snapshotter as they are."""
    with catalog.open_layer(layer, chain_id) as file:
        source = Metered(file, meter, cancel)
        if layer.digest == diff_id and catalog.blobs.has(layer.digest):
            path = catalog.blobs.path(layer.digest)
            return catalog.snapshots.stage(source, limits=catalog.limits, blob=path)
        return stage_stream(catalog, source, layer, diff_id)


def stage_stream(catalog: Catalog, source: Readable, layer: Descriptor, diff_id: str) -> Staged:
    """A layer as it arrives, compressed as its media type says. Raises when it is not the one it should be."""
    expected = LAYER_COMPRESSION.get(layer.media_type, "")
    stream = decompress.open_stream(source)
    if expected and stream.kind != expected and stream.kind not in {"none", "gzip", "zstd"}:
        raise InvalidArgument(f"layer {layer.digest} is {stream.kind}, not {layer.media_type}")
    with ReadAhead(stream) as ahead, HashingReader(ahead) as hashed:
        try:
            staged = catalog.snapshots.stage(hashed, limits=catalog.limits)
        except InvalidArgument as error:
            error.add_note(f"layer {layer.digest}")
            raise InvalidArgument(f"layer {short(layer.digest)}: {error}") from None
        found = hashed.digest()
    if found != diff_id:
        staged.discard()
        raise _wrong_diff_id(layer, diff_id, found)
    return staged


def check_diff_id(source: Readable, layer: Descriptor, diff_id: str) -> None:
    """Read a layer that need not be unpacked: it must be what it claims all the same."""
    with HashingReader(decompress.open_stream(source)) as hashed:
        while hashed.read(1 << 20):
            pass
        found = hashed.digest()
    if found != diff_id:
        raise _wrong_diff_id(layer, diff_id, found)


def _wrong_diff_id(layer: Descriptor, diff_id: str, found: str) -> InvalidArgument:
    return InvalidArgument(
        f"layer {short(layer.digest)}: invalid diffID: expected {diff_id}, got {found}"
    )
