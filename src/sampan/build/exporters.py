"""What becomes of a result: an image in the store, an archive or a directory for the caller, a push to a registry.

    moby, image    the store, under its names; push=true sends it on          docker, oci   an archive of images
    local          the files in a directory of the caller's                   tar           the same as an archive
    cacheonly      nothing

Each returns facts for `--metadata-file`, by BuildKit's keys.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan.build.caching import ship
from sampan.build.client import Client
from sampan.build.graph import digest
from sampan.build.layout import Packer, index_of, write_layout
from sampan.build.progress import Board, Task
from sampan.build.request import Export
from sampan.build.result import Built, tag_reference
from sampan.engine import images
from sampan.engine.pipes import ByteOutlet
from sampan.errors import InvalidArgument, Unsupported
from sampan.spec.reference import Reference
from sampan.storage.pack import PackRules, archive, pack

if TYPE_CHECKING:
    from sampan.build.builder import Builder

Response = dict[str, str]
CONFIG_DIGEST = "containerimage.config.digest"
IMAGE_DIGEST = "containerimage.digest"
DESCRIPTOR = "containerimage.descriptor"
IMAGE_NAME = "image.name"


class Exporter:
    """One build's exports."""

    def __init__(
        self, builder: Builder, client: Client, board: Board, results: tuple[Built, ...]
    ) -> None:
        self.builder = builder
        self.engine = builder.engine
        self.client = client
        self.board = board
        self.results = results

    async def run(self, export: Export) -> Response:
        """Raises InvalidArgument for a type or an attribute that is not known."""
        ways: dict[str, tuple[str, Callable[[Export, Task], Awaitable[Response]]]] = {
            "moby": ("exporting to image", self._store),
            "image": ("exporting to image", self._store),
            "docker": ("exporting to docker image format", self._archive),
            "oci": ("exporting to oci image format", self._archive),
            "tar": ("exporting to client tarball", self._tar),
            "local": ("exporting to client directory", self._local),
        }
        if export.type in ("", "cacheonly"):
            return {}
        if export.type not in ways:
            raise InvalidArgument(f'exporter "{export.type}" could not be found')
        title, way = ways[export.type]
        ident = digest(title.encode(), export.id.encode(), msgspec.json.encode(export.attrs))
        with self.board.task(ident, title) as task:
            return await way(export, task)

    # -- the store

    async def _store(self, export: Export, task: Task) -> Response:
        names = names_of(export)
        own = self._own()
        task.count("exporting layers", done=True)
        for built in self.results:
            image_names = names if built is own else []
            await self.engine.run_blocking(self._keep, built, image_names)
            task.count(f"writing image {built.document.id}", done=True)
        for name in names:
            task.count(f"naming to {_bare(name)}", done=True)
            self.engine.events.tell("image", "tag", own.document.id, {"name": name.familiar()})
        response = {CONFIG_DIGEST: own.document.id, IMAGE_DIGEST: own.document.id}
        if names:
            response[IMAGE_NAME] = ",".join(_bare(name) for name in names)
        if export.flag("push"):
            for name in names:
                several = len(self.results) > 1
                pushed = await (
                    self._push_index(name, export) if several else self._push(name, task)
                )
                response[IMAGE_DIGEST] = pushed
                task.count(f"pushing {name}", done=True)
        return response

    async def _push_index(self, name: Reference, export: Export) -> str:
        """All platforms under one name: an index of their manifests."""
        blocking = self.engine.run_blocking
        compression = export.attrs.get("compression", "gzip")
        with Packer(self.engine.catalog, compression=compression, oci=True) as packer:
            packed = [await blocking(packer.pack, built) for built in self.results]
            index = index_of(packed)
            manifests = [each.blobs[0] for each in packed]
            blobs = [blob for each in packed for blob in each.blobs[1:]]
            auth = await self.client.credentials(name.domain)
            await blocking(ship, self.engine, name, auth, blobs, manifests, index)
        return index.descriptor.digest

    def _own(self) -> Built:
        """The one that gets the names: for this machine, where there is one."""
        from sampan.images.platform import host_platform, matches

        here = host_platform()
        return next((b for b in self.results if matches(here, b.platform)), self.results[0])

    def _keep(self, built: Built, names: list[Reference]) -> None:
        catalog = self.engine.catalog
        with catalog.holding() as hold:
            if built.chain_id:
                hold.layers(built.chain_id)
            catalog.add(built.manifest, built.document, references=names)

    async def _push(self, name: Reference, task: Task) -> str:
        found = ""

        def tell(line: dict[str, object]) -> None:
            nonlocal found
            aux = line.get("aux")
            if isinstance(aux, dict) and aux.get("Digest"):
                found = str(aux["Digest"])

        with_auth = await self.client.credentials(name.domain)
        await images.push(
            self.engine, name.familiar_name, tag=name.tag, auth=with_auth, progress=tell
        )
        return found

    # -- archives

    async def _archive(self, export: Export, task: Task) -> Response:
        is_docker = export.type == "docker"
        if is_docker and len(self.results) > 1:
            raise Unsupported("docker exporter does not currently support exporting manifest lists")
        names = names_of(export)
        compression = export.attrs.get("compression", "uncompressed" if is_docker else "gzip")
        packer = Packer(
            self.engine.catalog, compression=compression,
            oci=export.flag("oci-mediatypes", default=not is_docker),
            force=export.flag("force-compression"),
        )  # fmt: skip
        annotations = {
            k.partition(".")[2]: v for k, v in export.attrs.items() if k.startswith("annotation.")
        }
        with packer:
            packed = []
            for built in self.results:
                packed.append(await self.engine.run_blocking(packer.pack, built, annotations))
            task.count("exporting layers", done=True)
            outlet = ByteOutlet()
            made = []
            chunks = outlet.start(
                self.engine.pool,
                lambda out: made.append(write_layout(packed, names, out.write, docker=is_docker)),
            )
            try:
                await self.client.send_file(export, aiter(chunks))
            finally:
                await chunks.aclose()
            task.count("sending tarball", done=True)
        own = packed[0]
        top = made[0]
        response = {CONFIG_DIGEST: own.manifest.config.digest, IMAGE_DIGEST: top.digest}
        response[DESCRIPTOR] = base64.b64encode(msgspec.json.encode(top)).decode()
        if names:
            response[IMAGE_NAME] = ",".join(_bare(name) for name in names)
        return response

    # -- files

    def _roots(self, export: Export, held: ExitStack) -> dict[str, int]:
        """Blocking: every platform's files by the directory they go to, open until `held` ends."""
        split = export.flag("platform-split", default=len(self.results) > 1)
        roots: dict[str, int] = {}
        for built in self.results:
            fd = self.builder.open_stack(built.chain_id)
            held.callback(self.builder.close, fd)
            roots[str(built.platform).replace("/", "_") if split else ""] = fd
        return roots

    async def _tar(self, export: Export, task: Task) -> Response:
        with ExitStack() as held:
            roots = await self.engine.run_blocking(self._roots, export, held)
            outlet = ByteOutlet()
            chunks = outlet.start(
                self.engine.pool, lambda out: [out.write(c) for c in files_tar(roots)]
            )
            try:
                await self.client.send_file(export, aiter(chunks))
            finally:
                await chunks.aclose()
        task.count("sending tarball", done=True)
        return {}

    async def _local(self, export: Export, task: Task) -> Response:
        with ExitStack() as held:
            roots = await self.engine.run_blocking(self._roots, export, held)
            await self.client.send_directory(export, roots)
        task.count("copying files", done=True)
        return {}


def files_tar(roots: dict[str, int]) -> Iterator[bytes]:
    """Trees as one archive, each below its directory."""

    def entries() -> Iterator[bytes]:
        for place, fd in roots.items():
            yield from pack(
                fd,
                prefix=place.encode(),
                with_root=bool(place),
                rules=PackRules(one_file_system=True),
            )

    return archive(entries())


def names_of(export: Export) -> list[Reference]:
    """The names of an export's attributes. Raises InvalidArgument."""
    return [
        tag_reference(text)
        for each in export.attrs.get("name", "").split(",")
        if (text := each.strip())
    ]


def _bare(name: Reference) -> str:
    return str(name).removesuffix(":latest") if name.tag == "latest" else str(name)
