"""gpt2/infer/hub.py: what is asked of the hub, and what is said without one."""

import huggingface_hub
import pytest

from gpt2.infer.hub import NotUploaded, check_repo, upload


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3000))
    return tmp_path


@pytest.mark.parametrize("environ", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_without_hub_or_token_it_says_what_would_go_where(folder, environ, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", bool(environ))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(NotUploaded) as error:
        upload(folder, "me/gpt2-ra")
    said = str(error.value)
    assert said.startswith("nothing was uploaded: ")
    assert "https://huggingface.co/me/gpt2-ra, 2 files, 2.9 KiB:" in said
    assert "model.safetensors  2.9 KiB" in said


def test_a_new_repository_is_private_and_gets_the_whole_folder(folder, monkeypatch):
    calls: list[tuple[str, dict]] = []

    class Hub:
        def whoami(self):
            calls.append(("whoami", {}))

        def create_repo(self, name, **words):
            calls.append((name, words))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, **words):
            calls.append(("upload", words))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert upload(folder, "me/x") == "https://huggingface.co/me/x"
    (_, _), (name, made), (_, sent) = calls
    assert (name, made) == ("me/x", {"private": True, "exist_ok": True})
    assert (sent["repo_id"], sent["folder_path"]) == ("me/x", folder)


@pytest.mark.parametrize("name", ["", "gpt2", "me/", "me/../x", "a/b/c", "https://x/y"])
def test_what_names_no_repository_is_refused(name):
    with pytest.raises(ValueError, match="must be an account and a name"):
        check_repo(name)
