"""A create request and an image's config become one ContainerConfig. Pure.

The image says what its author could say; the request wins field by field, in Docker's way: lists of names
(environment, ports, volumes, labels) are united, a request's entrypoint drops the image's command.
"""

from __future__ import annotations

import msgspec

from sampan.spec.engine.container import ContainerConfig, HealthConfig
from sampan.spec.engine.wire import Empty
from sampan.spec.image import Healthcheck, RunConfig


def merge(config: ContainerConfig, image: RunConfig) -> ContainerConfig:
    """The request's config completed from the image's."""
    entrypoint, command = _process(config, image)
    return msgspec.structs.replace(
        config,
        user=config.user or image.user,
        env=_environment(config.env, image.env),
        entrypoint=entrypoint,
        cmd=command,
        working_dir=config.working_dir or image.working_dir,
        exposed_ports={**dict.fromkeys(image.exposed_ports or {}, Empty()), **config.exposed_ports},
        volumes=_volumes(config, image),
        labels={**(image.labels or {}), **config.labels},
        stop_signal=config.stop_signal or image.stop_signal,
        stop_timeout=image.stop_timeout if config.stop_timeout is None else config.stop_timeout,
        healthcheck=_healthcheck(config.healthcheck, image.healthcheck),
        on_build=config.on_build if config.on_build is not None else None,
        shell=config.shell if config.shell is not None else _list(image.shell),
    )


def argv(config: ContainerConfig) -> list[str]:
    """What is executed: entrypoint and command together."""
    return [*(config.entrypoint or []), *(config.cmd or [])]


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def _process(
    config: ContainerConfig, image: RunConfig
) -> tuple[list[str] | None, list[str] | None]:
    entrypoint, command = config.entrypoint, config.cmd
    if not entrypoint:
        if not command:
            # `--entrypoint ""` arrives as [""]: that is not empty, so the image's command stays away.
            command = _list(image.cmd)
        if entrypoint is None:
            entrypoint = _list(image.entrypoint)
    if entrypoint == [""]:
        entrypoint = None
    return entrypoint, command


def _environment(wanted: list[str] | None, image: tuple[str, ...] | None) -> list[str]:
    """The request's variables, then those of the image that it does not name."""
    env = list(wanted or [])
    names = {text.partition("=")[0] for text in env}
    env += [text for text in image or () if text.partition("=")[0] not in names]
    return env


def _volumes(config: ContainerConfig, image: RunConfig) -> dict[str, Empty] | None:
    union = {**dict.fromkeys(image.volumes or {}, Empty()), **(config.volumes or {})}
    return union or None


def _healthcheck(wanted: HealthConfig | None, image: Healthcheck | None) -> HealthConfig | None:
    if image is None:
        return wanted
    base = HealthConfig(
        test=_list(image.test),
        interval=image.interval,
        timeout=image.timeout,
        start_period=image.start_period,
        start_interval=image.start_interval,
        retries=image.retries,
    )
    if wanted is None:
        return base
    return HealthConfig(
        test=wanted.test or base.test,
        interval=wanted.interval or base.interval,
        timeout=wanted.timeout or base.timeout,
        start_period=wanted.start_period or base.start_period,
        start_interval=wanted.start_interval or base.start_interval,
        retries=wanted.retries or base.retries,
    )
