"""What a kubeconfig says, and what is said of one that is wrong."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from kone.client.kubeconfig import KubeconfigError, load_kubeconfig


def config(**user: Any) -> dict[str, Any]:
    return {
        "current-context": "main",
        "contexts": [
            {"name": "main", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
            {"name": "bare", "context": {"cluster": "c"}},
            {"name": "broken", "context": {"cluster": "nowhere"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://h:6443/", "certificate-authority-data": _b64("CA")}},
        ],
        "users": [{"name": "u", "user": user}],
    }


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def written(folder: Path, content: Any) -> Path:
    path = folder / "config"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_current_context(tmp_path: Path) -> None:
    found = load_kubeconfig(written(tmp_path, config(token="t")))
    assert (found.server, found.namespace, found.token, found.ca_pem) == ("https://h:6443", "shop", "t", "CA")


def test_another_context_and_no_user(tmp_path: Path) -> None:
    found = load_kubeconfig(written(tmp_path, config(token="t")), context="bare")
    assert (found.namespace, found.token) == ("default", "")


def test_certificates_in_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "c.crt").write_text("CERT")
    user = {"client-certificate": "c.crt", "client-key-data": _b64("KEY"), "tokenFile": "token"}
    found = load_kubeconfig(written(tmp_path, config(**user)))
    assert (found.client_cert_pem, found.client_key_pem) == ("CERT", "KEY")
    assert found.token_file == str(tmp_path / "token")


@pytest.mark.parametrize(
    ("content", "context", "text"),
    [
        (config(), "nope", "has no entry 'nope' in contexts"),
        (config(), "broken", "has no entry 'nowhere' in clusters"),
        ("a: [", "", "is no YAML"),
        ("text", "", "is no kubeconfig"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: Any, context: str, text: str) -> None:
    with pytest.raises(KubeconfigError, match=text):
        load_kubeconfig(written(tmp_path, content), context=context)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match="No such file"):
        load_kubeconfig(tmp_path / "none")
