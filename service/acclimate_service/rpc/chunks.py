"""Blobs as streams of messages, read off the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from acclimate_service.rpc.bounds import Lane
from acclimate_service.store.blobs import Blobs

CHUNK: Final = 256 * 1024  # bytes; well under every client's message limit


async def blob_chunks(blobs: Blobs, digest: str, *, lane: Lane) -> AsyncIterator[bytes]:
    """The content of a blob in pieces of ``CHUNK`` bytes, the last one shorter.

    Raises:
        BlobNotFound: there is no such blob.
        BlobCorrupt: its bytes are not what they are named by; nothing was given out.
    """
    file = await lane.run(blobs.open, digest)
    try:
        while chunk := await lane.run(file.read, CHUNK):
            yield chunk
    finally:
        file.close()
