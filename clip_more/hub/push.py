"""Uploading an exported folder, behind huggingface_hub's own login."""

from __future__ import annotations

import os
from pathlib import Path


def push_folder(folder: str | os.PathLike[str], repo_id: str, *, private: bool = True) -> str:
    """Upload `folder` as the Hub model `repo_id`, made if absent; its address.

    The token is huggingface_hub's business: it is neither read into a message nor stored.

    Args:
        folder: An exported folder, such as `merged/`.
        repo_id: `<user or organisation>/<name>`.
        private: Of a repository that is made now; an existing one stays as it is.

    Raises:
        FileNotFoundError: If `folder` is no exported model.
        ValueError: If nobody is logged in, or the Hub refuses.
        ConnectionError: If the Hub cannot be reached or is set offline.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no exported model (no config.json), so nothing was uploaded")
    again = f"The export is complete in {folder}; upload it later with `hf upload {repo_id} {folder}`"
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"the Hub is set offline (HF_HUB_OFFLINE), so nothing was uploaded. {again}")
    if get_token() is None:
        raise ValueError(f"not logged in to the Hub: run `hf auth login` first. {again}")
    api = HfApi()
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the merged checkpoint")
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no Hub name (<user>/<name>): {error}. {again}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(
            f"the Hub refused the upload to {repo_id} (HTTP {status}): may this login write there? {again}"
        ) from None
    except OSError as error:
        raise ConnectionError(f"the Hub could not be reached ({type(error).__name__}). {again}") from error
    return f"{constants.ENDPOINT}/{name}"
