"""A catalogue on a temporary directory, and registries beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sampan.images.catalog import Catalog
from sampan.images.endpoints import Proxies, RegistryConfig
from sampan.images.pull import Puller
from tests.support.registry import FakeRegistry
from tests.support.stores import open_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(tmp_path)


@pytest.fixture
def registries() -> RegistryConfig:
    """Fast to give up, and alone with what is on loopback."""
    return RegistryConfig(
        certs_dirs=(),
        proxies=Proxies(),
        idle_timeout_s=20,
        connect_timeout_s=20,
        retry_delay_s=0.01,
    )


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as one:
        yield one


@pytest.fixture
def puller(catalog: Catalog, registries: RegistryConfig) -> Puller:
    return Puller(catalog, registries)


@pytest.fixture
def impatient(catalog: Catalog, registries: RegistryConfig) -> Puller:
    """Gives up on silence soon: for registries that hang on purpose."""
    return Puller(catalog, msgspec.structs.replace(registries, idle_timeout_s=0.2))
