# Sourced by ./sampan and ./test, with $here set to the clone. `bootstrap [EXTRA...]` makes .venv when it is missing or
# stale and sets $python to its interpreter. The usual case costs two file tests and no process.
#
# Stale means: pyproject.toml is newer than the stamp that the last good installation left, or the interpreter is gone.
# Making it is scripts/bootstrap.py's work: it locks, so that two first starts at once make one environment.

#
# Somebody else's clone, with an environment whose interpreter we may not start or that was never made: then one of our
# own, in the user's cache, at the clone's path below it.

bootstrap() {
    venv=$here/.venv
    if [ ! -w "$here" ] && { [ ! -x "$venv/bin/python" ] || [ ! -f "$venv/.sampan-base" ]; }; then
        venv=${XDG_CACHE_HOME:-${HOME:-/var}/.cache}/sampan/clones$(cd "$here" && pwd -P)/.venv
    fi
    python=$venv/bin/python
    for extra in base "$@"; do
        stamp=$venv/.sampan-$extra
        if [ ! -x "$python" ] || [ ! -f "$stamp" ] || [ "$here/pyproject.toml" -nt "$stamp" ]; then
            bootstrap_host_python
            "$host_python" -I "$here/scripts/bootstrap.py" "$here" "$venv" "$@" || exit 1
            return 0
        fi
    done
}

# New enough, and able to make an environment with pip (Debian keeps that in python3-venv).
bootstrap_check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

# The distribution's own interpreter first: every user of the machine may run it, nobody but root can change it, and it
# is built with profile and link-time optimisation (a fifth faster than one compiled by a version manager's defaults).
# Then the first on PATH that is new enough. SAMPAN_PYTHON overrides both.
bootstrap_host_python() {
    for host_python in ${SAMPAN_PYTHON:-} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$host_python" >/dev/null 2>&1 && "$host_python" -I -c "$bootstrap_check" 2>/dev/null; then
            return 0
        fi
    done
    echo "sampan: needs Python 3.11 or newer, and found none on PATH" >&2
    echo "(install python3 and python3-venv, or name one: SAMPAN_PYTHON=/path/to/python3)" >&2
    exit 1
}
