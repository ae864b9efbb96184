"""The dataset page: totals as in the ledger, nothing fetched, nobody named."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nibabel
import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from data_prep.report import write_report
from voxscale.seed import rng

SMALL = IngestConfig(workers=2, gigabytes=4.0, seconds=60)


class Page(HTMLParser):
    """Collects text, ids, links and what would be fetched."""

    def __init__(self, html):
        super().__init__()
        self.text, self.ids, self.links, self.tags = [], set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids.add(dict(attributes).get("id"))
        self.links.append(dict(attributes).get("href") if tag == "a" else None)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("CANARY")
    (home / "in").mkdir()
    for number in range(4):
        values = rng(number, "scan").normal(400, 90, (40, 42, 30)) * (rng(0, "b").random((40, 42, 30)) > 0.01)
        values[:4] = 0
        nibabel.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(
            home / "in" / f"{number}.nii"
        )
    shutil.copy(home / "in" / "0.nii", home / "in" / "again.nii")
    nibabel.Nifti1Image((values + 1).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(
        home / "in" / "copy.nii"
    )
    nibabel.Nifti1Image(np.full((40, 42, 30), 7, np.int16), np.eye(4)).to_filename(home / "in" / "flat.nii")
    (home / "in" / "broken.nii").write_text("nothing")
    ingest([home / "in"], home / "store", SMALL)
    return home / "store"


def test_totals_and_reasons_are_those_of_the_ledger(store):
    page = Page(write_report(store).read_text())
    text = " ".join(" ".join(page.text).split())
    assert "5 of 8 images are in the store; 2 were rejected and 1 wait" in text
    for rule in ("constant", "unreadable", "duplicate"):
        assert rule in text
    assert "1 pairs within the store" in text
    assert "All scans went through the privacy gate" in text
    rows = [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]
    shown = [row["id"] for row in rows if row["status"] != "accepted"]
    assert all(key in text for key in shown)


def test_the_page_fetches_nothing_and_names_nobody(store):
    html = write_report(store).read_text()
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "form")]
    sources = [attributes.get("src", "data:") for _, attributes in page.tags]
    assert all(source.startswith("data:") for source in sources)
    assert all(link[1:] in page.ids for link in page.links if link)
    assert "CANARY" not in html
    assert re.search(r"default-src 'none'", html)


def test_shards_and_the_command_line(store, tmp_path, capsys):
    plan = plan_task(store, 4096)
    pack(store, tmp_path / "shards", plan.contract, plan.patch, plan.strides, PackConfig(shard_mb=1))
    out = tmp_path / "page.html"
    assert main(["report", str(store), "--shards", str(tmp_path / "shards"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "the subject with most holds" in out.read_text()
    assert main(["report", str(tmp_path / "none")]) == 1


def test_an_empty_store_has_a_page_too(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.nii").write_text("nothing")
    ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    assert "0 of 1 images" in write_report(tmp_path / "store").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_no_sideways_scrolling_on_a_phone(store, tmp_path):
    html = (
        write_report(store).read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    )
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    (tmp_path / "page.html").write_text(html.replace("</body>", probe))
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    done = subprocess.run(
        [*words, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])


def test_of_very_many_scans_an_even_sample_is_told(store, monkeypatch):
    from data_prep import report

    monkeypatch.setattr(report, "MOST_ENTRIES", 2)
    text = write_report(store).read_text()
    assert "5 of 8 images are in the store" in text
    assert "tell of 2 scans, one in 3" in text
