"""`build --on-error=shell`: a shell in the root filesystem that a failed step left behind."""

from __future__ import annotations

from sampan.cli.session import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.session import Session


def shell(session: Session, image: dict[str, Any]) -> int:
    """Run it, with the step's variables, directory and user; the image is removed afterwards."""
    from sampan.cli.main import main

    identity = str(image["id"])
    warn(
        f"A shell in the file system of the failed step (image {identity[7:19]}); leave it with exit."
    )
    try:
        return main(["-H", session.host, "run", "--rm", "-it", identity])
    finally:
        session.client.delete(f"/images/{identity}", query={"force": "1"})
