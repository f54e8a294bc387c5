"""Two whole reports, made once for all tests that read pages."""

import pytest
from report_pages import build_report, hostile_comparison
from report_runs import make_comparison


@pytest.fixture(scope="session")
def plain_comparison():
    """Three runs of four problems."""
    return make_comparison(problems=4, n=2)


@pytest.fixture(scope="session")
def plain(plain_comparison, tmp_path_factory):
    """Its report's folder."""
    return build_report(plain_comparison, tmp_path_factory.mktemp("plain") / "report").parent


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The folder of a report in which every text is hostile."""
    return build_report(hostile_comparison(), tmp_path_factory.mktemp("hostile") / "report").parent
