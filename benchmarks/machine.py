"""What a reader needs to judge or repeat a benchmark's numbers."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def about() -> dict:
    """Command, date, processor, GPU where there is one, cores, memory, load and versions."""
    packages = ("torch", "torchvision", "torchrl", "tensordict")
    return {
        "command": shlex.join(["python", *command()]),
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def command() -> list[str]:
    """The command line, the script as it is called from the project's root."""
    root, script = Path(__file__).resolve().parents[1], Path(sys.argv[0]).resolve()
    if script.is_relative_to(root):
        return [script.relative_to(root).as_posix(), *sys.argv[1:]]
    return list(sys.argv)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    features = [f for f in ("avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()]
    name = fields.get("model name", platform.processor())
    return f"{name} ({', '.join(features) or 'no bfloat16 instructions'})"


def in_words(about: dict) -> str:
    """One line of Markdown."""
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return (
        f"`{about['command']}`, {about['date']}; {gpu}{about['cpu']}, {about['cores']} cores, "
        f"{about['memory_gb']} GB, {about['threads']} torch threads, load {about['load_before']:.1f} "
        f"before; {versions}."
    )
