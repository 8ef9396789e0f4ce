"""Names of the Hub beside a folder of their owner, and what of them has been downloaded."""

import pytest

from text_jepa.names import check_name


@pytest.mark.parametrize(
    ("kind", "folder", "remedy"),
    [
        ("model", "here/models--owner--name", "`hf download --cache-dir 'HERE' owner/name` first"),
        ("dataset", "hub/datasets--owner--name", "`hf download --repo-type dataset owner/name` first"),
    ],
)
def test_a_download_is_looked_for_where_the_remedy_puts_it(tmp_path, monkeypatch, kind, folder, remedy):
    """Data sets are downloaded to the cache of the Hub, whatever the cache of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "owner" / "names").mkdir(parents=True)
    cache = str(tmp_path / "my cache" / "here")
    with pytest.raises(ValueError, match=r"^no such folder in owner; for a repository") as refused:
        check_name("owner/name", cache, kind)
    assert str(refused.value).endswith(f"{remedy.replace('HERE', cache)}; did you mean 'names'?")
    (tmp_path / "my cache" / folder if kind == "model" else tmp_path / folder).mkdir(parents=True)
    check_name("owner/name", cache, kind)
