"""The device that a training run uses."""

from __future__ import annotations

import torch

from ..errors import ConfigError

_AUTO, _CPU = "auto", "cpu"


def check_device(name: str) -> None:
    """Check that a device exists on this machine.

    Raises:
        ConfigError: it does not exist; the message lists the devices that do.
    """
    if name in (_AUTO, _CPU):
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is no device: give {', '.join(available_devices())}") from error
    accelerator, count = _accelerator()
    if device.type != accelerator or (device.index or 0) >= count:
        raise ConfigError(f"device={name!r} is not on this machine: give {', '.join(available_devices())}")


def available_devices() -> list[str]:
    """The device names that are valid on this machine."""
    accelerator, count = _accelerator()
    numbered = [f"{accelerator}:{index}" for index in range(count)]
    return [_AUTO, _CPU, *([accelerator] if accelerator else []), *numbered]


def uses_cpu(name: str) -> bool:
    """Whether a run with this device computes on the CPU."""
    return name == _CPU or not torch.accelerator.is_available()


def has_number(name: str) -> bool:
    """Whether the name is that of one of several devices, such as "cuda:1"."""
    return name not in (_AUTO, _CPU) and torch.device(name).index is not None


def select_device(name: str) -> None:
    """Make a device with a number the current one of its kind; nothing has to be done for other names."""
    if has_number(name) and torch.accelerator.device_count() > 1:
        device = torch.device(name)
        torch.get_device_module(device).set_device(device.index)


def _accelerator() -> tuple[str, int]:
    """Kind of this machine's accelerator, such as "cuda", and how many there are; ("", 0) without one."""
    if not torch.accelerator.is_available():
        return "", 0
    accelerator = torch.accelerator.current_accelerator()
    return (accelerator.type, torch.accelerator.device_count()) if accelerator else ("", 0)
