"""Settings: every mistake is refused with the name, the value and what is allowed."""

import re
from pathlib import Path

import pytest

from models.errors import InvalidConfig
from service.settings import Settings, load_settings, server_environment


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MU2NET_SHARED", raising=False)  # the tests' own, see tests/shared_data.py
    monkeypatch.setenv("MU2NET_STORE", "some/store")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU2NET_MAX_BATCH_ROWS", "8")
    settings = load_settings()
    assert (settings.store, settings.max_batch_rows, settings.device) == ("some/store", 8, "auto")


def test_a_given_store_goes_before_the_environments() -> None:
    assert load_settings("other").store == "other"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param(
            "MU2NET_MAX_BACH_ROWS",
            "8",
            "unknown setting MU2NET_MAX_BACH_ROWS; known settings: MU2NET_BIND_ADDRESS, MU2NET_CACHE, ",
            id="unknown",
        ),
        pytest.param(
            "MU2NET_MAX_BATCH_ROWS",
            "0",
            "setting MU2NET_MAX_BATCH_ROWS = '0': Input should be greater than or equal to 1 "
            "(pairs of image and task that run together)",
            id="out-of-range",
        ),
        pytest.param(
            "MU2NET_DEVICE",
            "tpu",
            "setting MU2NET_DEVICE = 'tpu': Input should be 'auto', 'cpu' or 'cuda' (auto takes CUDA where",
            id="not-a-choice",
        ),
        pytest.param(
            "MU2NET_TRACES",
            "collector:4317",
            "setting MU2NET_TRACES = 'collector:4317': String should match pattern '^https?://",
            id="not-a-url",
        ),
        pytest.param(
            "MU2NET_TIMEOUT_S",
            "soon",
            "setting MU2NET_TIMEOUT_S = 'soon': Input should be a valid number, unable to parse string as a number",
            id="not-a-number",
        ),
    ],
)
def test_a_mistake_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match=re.escape(message)):
        load_settings()


def test_a_missing_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MU2NET_STORE")
    with pytest.raises(InvalidConfig, match=re.escape("setting MU2NET_STORE is not set (the store to serve from")):
        load_settings()


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_started_server_finds_its_places_in_whatever_folder_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"CACHE": "cache", "SIGN": "../key", "KEYS": "keys", "QUEUE": "sqlite:///jobs.sqlite"}
    for name, value in own.items():
        monkeypatch.setenv(f"MU2NET_{name}", value)
    given = server_environment(load_settings(), store="/s", bind_address="127.0.0.1", bentoml_home=tmp_path)
    assert {name: given[f"MU2NET_{name}"] for name in own} == {
        "CACHE": f"{tmp_path}/cache",
        "SIGN": f"{tmp_path}/../key",
        "KEYS": f"{tmp_path}/keys",
        "QUEUE": f"sqlite:///{tmp_path}/jobs.sqlite",
    }
    elsewhere = {"KEYS": "s3://bucket/keys", "QUEUE": "postgresql+psycopg://user:secret@host/jobs"}
    for name, value in elsewhere.items():
        monkeypatch.setenv(f"MU2NET_{name}", value)
    given = server_environment(load_settings(), store="/s", bind_address="127.0.0.1", bentoml_home=tmp_path)
    assert {name: given[f"MU2NET_{name}"] for name in elsewhere} == elsewhere
