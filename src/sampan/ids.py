"""Identities of things: 64-hex ids, short ids, prefix lookup, and the names given to the unnamed.

    id        64 lower-case hex digits, random; never reused
    short id  its first 12 digits: what `ps` prints and the default hostname
    name      what people choose, or adjective_surname when they do not
    ref       whatever the user typed: an id, a name (with or without "/"), or a unique prefix of an id

The surnames are of people who knew boats, boxes, stars, or how to isolate a thing in order to study it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from sampan.errors import InvalidArgument

SHORT = 12
_HEX = frozenset("0123456789abcdef")
_NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME_REST = _NAME_FIRST | frozenset("_.-")


def new_id() -> str:
    """A fresh 64-hex id whose short form is not a plain number.

    Tools that see an all-digit hostname or id take it for an integer, so such an id is thrown back.
    """
    while True:
        candidate = os.urandom(32).hex()
        if not candidate[:SHORT].isdecimal():
            return candidate


def short_id(full: str) -> str:
    """The first twelve digits, after an algorithm prefix if there is one."""
    return full.partition(":")[2][:SHORT] if ":" in full else full[:SHORT]


def is_hex(text: str, *, length: int = 64) -> bool:
    return len(text) == length and _HEX.issuperset(text)


def is_name(text: str) -> bool:
    """Whether `text` may name a container, a volume or a network."""
    return len(text) > 1 and text[0] in _NAME_FIRST and _NAME_REST.issuperset(text)


def by_prefix(prefix: str, ids: Iterable[str]) -> str | None:
    """The one id that starts with `prefix`; None where none does; two are an error."""
    if not prefix or not _HEX.issuperset(prefix):
        return None
    found: str | None = None
    for candidate in ids:
        if candidate.startswith(prefix):
            if found is not None:
                raise InvalidArgument(f"multiple IDs found with provided prefix: {prefix}")
            found = candidate
    return found


def random_name(is_taken: Callable[[str], bool]) -> str:
    """An unused adjective_surname; after a few collisions with a digit behind it."""
    for attempt in range(64):
        left = _ADJECTIVES[int.from_bytes(os.urandom(2), "little") % len(_ADJECTIVES)]
        right = _SURNAMES[int.from_bytes(os.urandom(2), "little") % len(_SURNAMES)]
        name = f"{left}_{right}" + (str(os.urandom(1)[0] % 10) if attempt >= 6 else "")
        if not is_taken(name):
            return name
    return f"{left}_{right}_{os.urandom(4).hex()}"


_ADJECTIVE_LIST = """
    able agile airy alert amber ample ardent awake balmy blithe bold bonny brave breezy bright brisk buoyant
    calm candid careful cheerful clear clever cool cordial cosy crisp curious dapper daring dazzling deft
    devoted dreamy durable eager early earnest easy elated elegant eloquent epic fabled fair faithful fearless
    festive fleet fluent fond frank free fresh friendly frugal gallant gentle gifted glad gleaming golden
    graceful grand great handy happy hardy hearty helpful honest hopeful humble ideal jaunty jolly jovial
    joyful keen kind lasting light lively loyal lucid lucky mellow merry mighty mild modest neat nifty nimble
    noble open patient peaceful placid playful plucky polite proud prudent quick quiet radiant rapid ready
    robust rosy rugged sage sedate serene sharp shining silent silver sincere skilful sleek smart snug sober
    solid spirited sprightly spruce stately steady sterling stoic strong sturdy subtle sunny sure swift tame
    tender thrifty tidy tranquil trim true trusty upbeat upright valiant vast vivid warm wary watchful wise
    witty wondrous worthy young zealous zesty
    """

_SURNAME_LIST = """
    abbe abel agnesi aiken alhazen alvarez ampere anning archimedes aryabhata asimov atanasoff avogadro
    babbage bacon banneker banting bardeen barton bassi bateson beaufort becquerel bell berners bernoulli
    bessel bhaskara blackwell boltzmann boole born bose bowditch boyle bragg brahe brahmagupta brunel burnell
    cantor cardano carnot carson carver cassini cauchy cavendish celsius chandra chappe chatelet clarke
    clausius cook copernicus coriolis coulomb cousteau crick curie cuvier dalton darwin davy dedekind descartes
    dijkstra dirac doppler drake earhart eddington edison ehrlich einstein elion erdos euclid euler
    faraday fermat fermi feynman fibonacci fleming flinders foucault fourier franklin fraunhofer fresnel
    galileo galois galton gama gauss germain gibbs goddard goodall gould gutenberg haber hale halley hamilton
    harrison harvey heaviside heisenberg helmholtz henry herschel hertz hilbert hipparchus hippocrates hodgkin
    hooke hopper hubble humboldt hutton huygens hypatia jacquard jenner joliot joule kapitsa kelvin kepler
    khayyam kirchhoff knuth koch kolmogorov kovalevskaya lagrange lamarr landau laplace lavoisier leavitt
    leeuwenhoek leibniz lhermite linnaeus lister lorentz lovelace lyell mach magellan maathai marconi
    mayer maxwell mccarthy mclean mead mechnikov meitner mendel mendeleev mercator mersenne michelson
    millikan minkowski mirzakhani mitchell moebius montgolfier morse nansen napier nash neumann newcomen
    newton nightingale nobel noether oersted ohm oppenheim ostrom pascal pasteur pauli pauling pavlov
    peano penrose perlman piccard planck poincare poisson priestley ptolemy pythagoras raman ramanujan ramsay
    rayleigh riemann ritchie roentgen rubin rutherford sagan salk shackleton shannon shen slocum snell
    soddy somerville stokes swan tereshkova tesla thales thomson torricelli tu turing tyndall vesalius
    volta wallace watt wegener weyl wheatstone whitney wiener wilkes wright wu yalow young zhang zheng
    zuse
    """

_ADJECTIVES = tuple(_ADJECTIVE_LIST.split())
_SURNAMES = tuple(_SURNAME_LIST.split())
