"""Upload of an exported folder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from lib.human import size

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class NotUploaded(RuntimeError):
    """No network, no account, or the hub refused; with what would be uploaded."""


def check_repo(repo: str) -> None:
    """ValueError unless the name is that of a repository."""
    if not REPO.fullmatch(repo):
        raise ValueError(
            f"REPO={repo!r} must be an account and a name, as in me/gpt2-ra"
        )


def upload(folder: Path, repo: str) -> str:
    """Upload all files of a folder in one commit; the address of the repository.

    A new repository is private. Raises NotUploaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi()
    try:
        api.whoami()
        made = api.create_repo(repo, private=True, exist_ok=True)
        message = "Model exported by kablate"
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError:
        reason = "there is no token: log in by `hf auth login`, or set HF_TOKEN"
        raise NotUploaded(_not_done(folder, repo, reason)) from None
    except Exception as error:  # of the HTTP client, which changes with its version
        line = " ".join(str(error).split())[:300]
        raise NotUploaded(_not_done(folder, repo, line)) from None
    return str(made)


def _not_done(folder: Path, repo: str, reason: str) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    total = size(sum(path.stat().st_size for path in files))
    listed = "".join(f"\n  {p.name}  {size(p.stat().st_size)}" for p in files)
    return (
        f"nothing was uploaded: {reason}\n"
        f"This would go to https://huggingface.co/{repo}, {len(files)} files, {total}:"
        f"{listed}"
    )
