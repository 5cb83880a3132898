from types import SimpleNamespace

import pytest

from clip_more.hub.push import push_folder

TOKEN = "hf_secret-token-of-this-test"


@pytest.fixture
def merged(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)


def refuse(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_upload_asks_for_a_private_repository_and_returns_its_address(merged, online, monkeypatch):
    calls = {}

    class Made:
        repo_id = "someone/clip"

    def create_repo(self, repo_id, **options):
        calls["create"] = (repo_id, options)
        return Made()

    def upload_folder(self, **options):
        calls["upload"] = options

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    assert push_folder(merged, "clip") == "https://huggingface.co/someone/clip"
    assert calls["create"] == ("clip", {"private": True, "exist_ok": True})
    assert calls["upload"]["repo_id"] == "someone/clip"
    assert calls["upload"]["folder_path"] == merged


def test_without_a_login_the_command_to_log_in_is_named(merged, online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"not logged in to the Hub: run `hf auth login` first.*hf upload me/clip"):
        push_folder(merged, "me/clip")


def test_refusal_gives_the_status_and_never_the_token(merged, online, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    response = SimpleNamespace(status_code=403, headers={}, request=None)
    error = HfHubHTTPError(f"the header was Bearer {TOKEN}", response=response)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse(error))
    with pytest.raises(ValueError, match=r"refused the upload to me/clip \(HTTP 403\)") as caught:
        push_folder(merged, "me/clip")
    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_unreachable_and_offline_hub_say_so(merged, online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse(OSError("no route")))
    with pytest.raises(ConnectionError, match="the Hub could not be reached"):
        push_folder(merged, "me/clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push_folder(merged, "me/clip")


def test_folder_that_is_no_export_is_not_uploaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no exported model"):
        push_folder(tmp_path, "me/clip")
