"""Provenance of a result: code, versions, machine, environment, date."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.cpus import usable_cores
from lib.files import text_or_empty
from lib.jobs.run_files import now

DIFF_LIMIT = 200_000  # characters of a dirty diff that are kept
PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "pytorch-triton-rocm",
    "tiktoken",
    "datasets",
    "kconfiglib",
    "safetensors",
    "liger-kernel",
)
# Paths of the project that results depend on. Results, texts, notes and virtual
# environments may be in the same folder; presets are recorded as resolved settings.
CODE = ("Kconfig", "gpt2", "lib", "pyproject.toml", "scripts")
# Named one by one: an environment may hold secrets, and a manifest is published.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTHONHASHSEED",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "NCCL_DEBUG",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "KABLATE_ATTEMPT",
)


def collect(root: str | Path, environ: Mapping[str, str] | None = None) -> dict:
    """Provenance as plain data for a manifest.

    root: the project's own folder, whose git state is recorded.
    environ: default os.environ; only the names in ENVIRONMENT are kept.
    """
    environ = os.environ if environ is None else environ
    return {
        "date": now(),
        "command": list(sys.argv),
        "git": git_state(root),
        "python": platform.python_version(),
        "packages": package_versions(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "environment": {k: environ[k] for k in ENVIRONMENT if k in environ},
    }


def git_state(root: str | Path) -> dict[str, Any]:
    """{"sha", "dirty", "diff_sha256", "diff", "untracked", "note"} of a work tree.

    sha is None, and note says why, without git or where root is not a work tree of its
    own (such as an unpacked archive inside another repository). Changes and untracked
    files count where they are in CODE. The diff is against HEAD; its text is cut at
    DIFF_LIMIT characters, its sum is of the whole.
    """
    state: dict[str, Any] = {"sha": None, "dirty": None, "note": ""}
    try:
        top = _git(root, "rev-parse", "--show-toplevel").strip()
        if Path(top).resolve() != Path(root).resolve():
            return {**state, "note": "not a git work tree of its own"}
        state["sha"] = _git(root, "rev-parse", "HEAD").strip()
        options = ("--no-ext-diff", "--no-textconv", "--binary")
        diff = _git(root, "diff", "HEAD", *options, "--", *CODE)
        listed = ("ls-files", "--others", "--exclude-standard", "--", *CODE)
        names = _git(root, *listed).splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return {**state, "note": f"git does not answer ({error})"}
    state["dirty"] = bool(diff or names)
    state["untracked"] = names[:200]
    state["diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest() if diff else None
    state["diff"] = diff[:DIFF_LIMIT]
    if len(diff) > DIFF_LIMIT:
        state["note"] = f"diff cut at {DIFF_LIMIT} of {len(diff)} characters"
    return state


def package_versions() -> dict[str, str | None]:
    """Installed versions without importing anything; None where absent."""
    return {name: _version(name) for name in PACKAGES}


def cpu(proc: str | Path = "/proc") -> dict[str, Any]:
    """Model name, cores this process may use, and memory in bytes (None: unknown)."""
    lines, memory = (
        text_or_empty(Path(proc, name)).splitlines() for name in ("cpuinfo", "meminfo")
    )
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    total = [x.split()[1] for x in memory if "MemTotal" in x]
    return {
        "model": names[0] if names else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": int(total[0]) * 1024 if total else None,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: str | Path, *words: str) -> str:
    # inside a hook GIT_DIR and its like name the repository of the commit
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        check=True,
        timeout=30,
        env=environ,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.decode("utf-8", errors="replace")
