"""`daemon`: becomes the engine. The command line imports nothing of it; it replaces itself by an interpreter that does.

The engine's interpreter starts as ours did (-I -S), and gets the two directories it needs: the package's own, and the
site-packages of the environment that its interpreter belongs to.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options
    from sampan.cli.session import Session

PROGRAM = "import sys; sys.path[:0] = {paths!r}; sys.argv[0] = 'sampan daemon'; from sampan.daemon import main; sys.exit(main())"


def daemon(session: Session, options: Options) -> int:
    words = command(_given(session, options))
    os.execv(words[0], words)


def _given(session: Session, options: Options) -> list[str]:
    """The engine reads its own flags; -H before the verb is passed on too."""
    hosts = [word for host in session.host_flags for word in ("-H", host)]
    return hosts + options.args


def command(arguments: list[str]) -> list[str]:
    """The words that start an engine."""
    flags = ["-I", "-S", "-X", "utf8"]
    if sys.pycache_prefix:
        flags += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return [sys.executable, *flags, "-c", PROGRAM.format(paths=paths()), *arguments]


def paths() -> list[str]:
    """Where the package lies, and where its dependencies do."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    environment = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    found = [package]
    for directory in ("site-packages", "dist-packages"):
        path = f"{environment}/lib/{version}/{directory}"
        if path not in found and os.path.isdir(path):
            found.append(path)
    if len(found) == 1 and not package.endswith("-packages"):
        import site

        found += [
            path
            for path in [*site.getsitepackages(), site.getusersitepackages()]
            if os.path.isdir(path)
        ]
    return found
