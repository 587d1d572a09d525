"""Where other libraries keep their datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sb3_dmamba.paths import minari_folder


def test_minaris_folder_is_where_minari_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari.storage.datasets_root_dir")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    assert minari_folder() == tmp_path / "home" / ".minari" / "datasets"
    assert minari_folder() == minari.get_dataset_path()
    for given in (str(tmp_path / "given"), "~", "given"):  # as it is: Minari expands nothing
        monkeypatch.setenv("MINARI_DATASETS_PATH", given)
        assert minari_folder() == Path(given) == minari.get_dataset_path()
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    assert minari_folder() == tmp_path / "home" / ".minari" / "datasets"
